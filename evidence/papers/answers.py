"""What the experiments answer to somebody who asks whether it helps: every difference, the surest first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from evidence.papers import experiments
from evidence.papers.outcome import ExperimentRecord, Finding
from evidence.papers.results_page import PAGE, anchor_of, markdown_table, with_interval

#: What is said first: a subject, the experiment that answers for it, and by which of its findings.
_IN_SHORT = (
    ("Exclusive attention, trained from scratch", "training", "gain of exclusive over the baseline, nats"),
    ("Selective attention, trained from scratch", "speed-up", "gain of selective over the baseline, nats"),
    (
        "Selective attention put into a pretrained model, beyond one learned constant a head",
        "fine-tuning-controls",
        "gain of selective beside the norms over a constant a head beside the norms, nats",
    ),
    (
        "Exclusive attention put into a pretrained model, its strength learned from 0",
        "fine-tuning-exclusive",
        "gain of exclusive, strength learned from 0 over the model as it is, nats",
    ),
    (
        "Selective attention put into a pretrained model whose weights are all trained",
        "fine-tuning-all",
        "gain of selective beside all weights over all weights, nats",
    ),
    (
        "Exclusive attention put into a pretrained model at strength 1, finding passkeys",
        "fine-tuning-exclusive",
        "gain of exclusive beside the norms over the norms' weights, share of passkeys found",
    ),
    (
        "Exclusive attention, trained on to find passkeys",
        "passkey",
        "gain of exclusive over the baseline, share of passkeys found",
    ),
    (
        "Exclusive attention, learning to copy",
        "induction",
        "exclusive less plain, 2 layers, accuracy over the course",
    ),
    (
        "Exclusive attention with a learned strength, learning to copy in 4 layers",
        "induction",
        "learned strength less plain, 4 layers, accuracy over the course",
    ),
    (
        "Exclusive attention, learning to look a value up by its key in 2 layers",
        "recall",
        "exclusive less plain, 2 layers, accuracy over the course",
    ),
    (
        "The same with a learned strength",
        "recall",
        "learned strength less plain, 2 layers, accuracy over the course",
    ),
    (
        "Exclusive attention, learning to look a value up by its key in 4 layers",
        "recall",
        "exclusive less plain, 4 layers, accuracy over the course",
    ),
)
_WORDS = {1: "helps", 0: "no difference is told", -1: "hurts"}
# Findings of the other kinds (counts, times, shares) are no differences between two ways to do the same.
_IS_DIFFERENCE = re.compile(r"gain of .*|.* less plain\b.*")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number that is above 0 where one way is better than another.

    Args:
        finding: the number.
        model: the size of the model, in words.
        place: a link to what found it.
    """

    finding: Finding
    model: str
    place: str

    @property
    def sureness(self) -> float:
        """How many times the half width of its interval the mean is away from 0: above 1 it is told."""
        ours = self.finding.ours
        if ours.low is None or ours.high is None or ours.high == ours.low:
            return 0.0
        return 2 * abs(ours.mean) / (ours.high - ours.low)

    @property
    def number(self) -> str:
        """With its interval."""
        return with_interval(self.finding.ours, self.finding.digits)


def differences(records: Sequence[ExperimentRecord]) -> list[Difference]:
    """All that the experiments found, the surest first; what several share is told of the first of them."""
    titles = {experiment.name: experiment.title for experiment in experiments.EXPERIMENTS}
    order = list(titles)
    found: dict[tuple[float, ...], Difference] = {}
    for record in sorted(records, key=lambda record: order.index(record.experiment)):
        model, title = re.split(r"[,;]", record.outcome.size, maxsplit=1)[0], titles[record.experiment]
        for finding in record.outcome.findings:
            if record.budget != "smoke" and _IS_DIFFERENCE.fullmatch(finding.quantity):
                difference = Difference(finding=finding, model=model, place=f"[{title}]({PAGE}#{anchor_of(title)})")
                found.setdefault(finding.ours.values, difference)
    return surest_first(found.values())


def surest_first(found: Iterable[Difference]) -> list[Difference]:
    """By their sureness."""
    return sorted(found, key=lambda each: each.sureness, reverse=True)


def in_short(records: Sequence[ExperimentRecord], most: int | None = None) -> str:
    """A line for each subject that an experiment has looked at, for the first ``most`` of them."""
    lines = _lines({record.experiment: record for record in records if record.budget != "smoke"})
    return "\n".join(islice(lines, most))


def _lines(by_name: dict[str, ExperimentRecord]) -> Iterator[str]:
    for subject, name, quantity in _IN_SHORT:
        found = differences([by_name[name]]) if name in by_name else []
        for difference in (each for each in found if each.finding.quantity == quantity):
            seeds = len(difference.finding.ours.values)
            yield (
                f"* **{subject}: {_WORDS[difference.finding.ours.sign()]}.** "
                f"{difference.finding.quantity.capitalize()}: {difference.number}, {seeds} seeds, {difference.model}."
            )


def answers(found: Sequence[Difference]) -> str:
    """Every difference in a table, the surest first."""
    told = sum(each.sureness > 1 for each in found)
    rows = [
        (
            each.finding.quantity.removeprefix("gain of "),
            _WORDS[each.finding.ours.sign()] if each.sureness > 1 else "is not told",
            each.number,
            f"{each.sureness:.1f}",
            str(len(each.finding.ours.values)),
            each.model,
            each.place,
        )
        for each in surest_first(found)
    ]
    headings = ("Gain of", "It", "Ours [95% interval]", "Sureness", "Seeds", "Model", "Experiment")
    return "\n\n".join(
        (
            f"Of {len(found)} differences {told} are told: their 95% interval leaves out 0. Where nothing differs, one "
            "in twenty would be told all the same. *Sureness* is the mean over the half width of its interval: above 1 "
            "a difference is told, and far above 1 it is safe. Each experiment's command, text and seeds stand where "
            "the last column leads.",
            markdown_table(headings, rows, right=headings[2:5]),
        )
    )
