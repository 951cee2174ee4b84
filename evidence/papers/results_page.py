"""The page of all experiments in Markdown: each claim, where it is made, and what came of it at which size."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence.papers import experiments
from evidence.papers.experiments import READERS, Experiment
from evidence.papers.outcome import Budget, ExperimentRecord, Finding, Outcome
from exsel.files import write_text
from exsel.intervals import Estimate
from exsel.report.charts import Chart
from exsel.report.formatting import MISSING, duration
from exsel.report.looks import looks_of

#: The page, and the folder of its charts beside it.
PAGE, PICTURES = "reproduction.md", "reproduction"

#: Of a table of findings; ``expected`` is on the page alone.
HEADINGS = {
    "quantity": "Quantity",
    "published": "Published",
    "ours": "Ours [95% interval]",
    "difference": "Difference",
    "holds": "Holds",
}

_ORDER: tuple[Budget, ...] = ("cpu", "gpu", "smoke")

_CLAIMS = {
    "exact": "Holds exactly",
    "reproduced": "Reproduced",
    "partly": "Reproduced in part",
    "not reproduced": "Not reproduced at this size",
    "unclear": "Undecided at this size",
    "not run": "Not run",
}
_QUESTIONS = {**_CLAIMS, "reproduced": "Yes", "partly": "In part", "not reproduced": "Not at this size"}

_INTRODUCTION = """\
The experiments of the two papers run again, and what their readers ask. Written by \
`python -m evidence reproduce`, in a clone of the project, from the records of its runs; `--list` names the \
experiments, a NAME runs one.

A claim is tested at the size that is named with it, mostly far below the papers': what does not come out here may \
well come out there, and the other way round. *Ours* is the mean over seeds with the 95% confidence interval of the \
mean (Student's t), where there is more than one seed; variants of the same seed have the same initial weights and see \
the same batches. *Difference* is ours less the published number; a dash stands where the paper gives none. *Holds* \
says whether the number came out as expected, with a dash where that cannot be told. The time is that of the \
experiment alone, without trainings that an earlier one had done for it. Seconds of training are those of the machine \
as it was: where it had other work beside, their intervals are wide. With the smoke and cpu budgets training is not \
compiled, and small models pay for every operation: `exsel bench` measures what the mechanisms cost where it matters."""


def write_page(folder: Path, records: Sequence[ExperimentRecord], *, png: bool) -> Path:
    """Write :data:`PAGE` into a folder, and its charts into :data:`PICTURES` beside it.

    Args:
        folder: that exists.
        records: see :func:`to_markdown`.
        png: whether each chart is also written as PNG.

    Returns:
        The page.
    """
    from exsel.report.picture import write_picture

    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    kinds = (".svg", ".png") if png else (".svg",)
    for record in records:
        looks = looks_of(record.outcome.charts)
        for chart in record.outcome.charts:
            drawn = replace(chart, name=picture_name(record, chart))
            for kind in kinds:
                write_picture(drawn, pictures / f"{drawn.name}{kind}", looks)
    current = {f"{name}{kind}" for name in picture_names(records) for kind in kinds}
    for old in pictures.iterdir():
        if old.suffix in (".svg", ".png") and old.name not in current:
            old.unlink()
    write_text(folder / PAGE, to_markdown(records))
    return folder / PAGE


def picture_name(record: ExperimentRecord, chart: Chart) -> str:
    """The name of a chart's file, without its suffix."""
    return f"{record.experiment}-{record.budget}-{chart.name}"


def picture_names(records: Iterable[ExperimentRecord]) -> set[str]:
    """All of a page."""
    return {picture_name(record, chart) for record in records for chart in record.outcome.charts}


def to_markdown(records: Sequence[ExperimentRecord]) -> str:
    """The page as Markdown.

    Args:
        records: any; of one experiment one a budget. Those of the CPU come first.
    """
    ordered = sorted(records, key=lambda record: _ORDER.index(record.budget))
    by_name: dict[str, list[ExperimentRecord]] = {}
    for record in ordered:
        by_name.setdefault(record.experiment, []).append(record)
    parts = ["# Reproduction", _INTRODUCTION, _summary(by_name)]
    group = None
    for experiment in experiments.EXPERIMENTS:
        if experiment.group != group:
            group = experiment.group
            parts.append(f"## {group}")
        parts += _section(experiment, by_name.get(experiment.name, []))
    return "\n\n".join(parts) + "\n"


def verdict_in_words(record: ExperimentRecord) -> str:
    """What came of the claim, or the answer to the question."""
    is_question = any(one.name == record.experiment and one.group == READERS for one in experiments.EXPERIMENTS)
    return (_QUESTIONS if is_question else _CLAIMS)[record.outcome.verdict]


def finding_rows(outcome: Outcome) -> list[dict[str, str]]:
    """A row a finding, by the keys of :data:`HEADINGS` and ``expected``."""
    return [
        {
            "quantity": finding.quantity,
            "expected": finding.expected or MISSING,
            "published": MISSING if finding.published is None else _shown(finding.published, finding.digits),
            "ours": with_interval(finding.ours, finding.digits),
            "difference": _difference(finding),
            "holds": MISSING if finding.holds is None else "yes" if finding.holds else "no",
        }
        for finding in outcome.findings
    ]


def machine_in_words(machine: Mapping[str, Any], git_revision: str | None) -> str:
    """Where something was measured, with what."""
    machine = {name: machine.get(name, "unknown") for name in ("cores", "processor", "device", "torch", "transformers")}
    cores = f"{machine['cores']} cores of {machine['processor']}"
    device = cores if machine["device"] == "cpu" else machine["device"]
    revision = (git_revision or "unknown")[:10]
    return f"{device}, torch {machine['torch']}, transformers {machine['transformers']}, revision {revision}"


def _summary(by_name: Mapping[str, Sequence[ExperimentRecord]]) -> str:
    rows: list[tuple[str, ...]] = []
    for experiment in experiments.EXPERIMENTS:
        first = (f"[{experiment.title}](#{anchor_of(experiment.title)})", experiment.source)
        found = by_name.get(experiment.name, [])
        rows += [(*first, one.budget, verdict_in_words(one), _key_number(one.outcome)) for one in found]
        if not found:
            rows.append((*first, MISSING, "Not run", MISSING))
    return markdown_table(("Experiment", "Source", "Budget", "Verdict", "Key number"), rows)


def anchor_of(title: str) -> str:
    """What a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _key_number(outcome: Outcome) -> str:
    if not outcome.findings:
        return MISSING
    finding = outcome.findings[0]
    published = "" if finding.published is None else f" (published {_shown(finding.published, finding.digits)})"
    return f"{finding.quantity}: {with_interval(finding.ours, finding.digits)}{published}"


def _section(experiment: Experiment, records: Sequence[ExperimentRecord]) -> list[str]:
    what = "Question" if experiment.group == READERS else f"Claim ({experiment.source})"
    parts = [f"### {experiment.title}", f"**{what}.** {experiment.claim}"]
    if not records:
        return [*parts, f"**Not run.** `python -m evidence reproduce {experiment.name}` runs it."]
    for record in records:
        if len(records) > 1:
            parts.append(f"#### With the {record.budget} budget")
        parts += _record(record)
    return parts


def _record(record: ExperimentRecord) -> list[str]:
    outcome = record.outcome
    parts = [f"**{verdict_in_words(record)}.** {outcome.conclusion}", _setting(record)]
    if outcome.findings:
        rows = finding_rows(outcome)
        headings = {"quantity": HEADINGS["quantity"], "expected": "Expected", **HEADINGS}
        if all(row["expected"] == MISSING for row in rows):
            del headings["expected"]
        right = [HEADINGS[key] for key in ("published", "ours", "difference")]
        parts.append(markdown_table(headings.values(), [[row[key] for key in headings] for row in rows], right=right))
    for chart in outcome.charts:
        alternative = re.sub(r"([\[\]])", r"\\\1", chart.title)
        parts.append(f"![{alternative}]({PICTURES}/{picture_name(record, chart)}.svg)")
        if chart.caption:
            parts.append(f"*{chart.title}.* {chart.caption}")
    for table in outcome.tables:
        parts += [f"*{table.title}*", markdown_table(table.headings, table.rows)]
    return parts


def _setting(record: ExperimentRecord) -> str:
    seeds = f"seed{'s' if len(record.seeds) > 1 else ''} {', '.join(map(str, record.seeds))}"
    machine = machine_in_words(record.machine, record.git_revision)
    return (
        f"Looked at: {record.outcome.size}. The {record.budget} budget, {seeds}, {duration(record.seconds)} on "
        f"{machine}. `{record.command}`"
    )


def _shown(value: float, digits: int) -> str:
    """With so many decimals, or in powers of ten where they would show nothing."""
    shown = f"{value:,.{digits}f}"
    if value and not float(shown.replace(",", "")):
        shown = f"{value:.1e}"
    return shown.replace("-", "−")


def with_interval(estimate: Estimate, digits: int) -> str:
    """The mean and its interval, as this page shows them."""
    mean = _shown(estimate.mean, digits)
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{_shown(estimate.low, digits)}, {_shown(estimate.high, digits)}]"


def _difference(finding: Finding) -> str:
    if finding.published is None:
        return MISSING
    difference = finding.ours.mean - finding.published
    return ("+" if difference > 0 else "") + _shown(difference, finding.digits)


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]], *, right: Collection[str] = ()) -> str:
    """A table in Markdown; the columns of ``right`` are of numbers."""
    first = list(headings)
    rules = ["---:" if heading in right else "---" for heading in first]
    lines = [first, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
