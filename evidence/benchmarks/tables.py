"""The committed results as pages: all of ``docs/results.md``, ``docs/support.md`` and ``docs/reproduction.md`` with its
charts comes from ``evidence/benchmarks/results``, and so does what is between ``<!-- begin NAME -->`` and
``<!-- end NAME -->`` in ``README.md``, ``docs/performance.md`` and ``docs/elsewhere.md``; what is so marked in
``docs/scale.md`` comes from ``evidence/benchmarks/many_gpus.py``.

    python -m evidence.benchmarks.tables [--check]

``--check`` changes nothing and fails where a page is not what the results say, or a chart is missing or left over. It
does not look into the charts: another version of matplotlib lays out the same one a little differently.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from evidence.benchmarks import gpu, many_gpus, performance, startup, support, vllm_tokens
from evidence.papers.answers import Difference, answers, differences, in_short
from evidence.papers.outcome import ExperimentRecord, Finding
from evidence.papers.results_page import PAGE as REPRODUCTION
from evidence.papers.results_page import PICTURES, anchor_of, machine_in_words, picture_names, to_markdown, write_page
from exsel.files import read_json
from exsel.intervals import Estimate
from exsel.report import headline, headline_note, interval_sentence, summary_rows, table_headings
from exsel.variants import BASELINE, CONTROL

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "evidence" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
SUPPORT = ROOT / "docs" / "support.md"
KINDS = ("attention", "decode", "block", "products", "fine_tuning_steps", "upgrade_overhead", "long")
PERFORMANCE = ROOT / "docs" / "performance.md"
SCALE = ROOT / "docs" / "scale.md"
ELSEWHERE = ROOT / "docs" / "elsewhere.md"
SIDE_BY_SIDE = "Trained side by side"


def table(rows: list[dict[str, str]], headings: dict[str, str]) -> str:
    keys = [key for key in headings if key in rows[0]]
    lines = [[headings[key] for key in keys], ["---"] + ["---:"] * (len(keys) - 1)]
    lines += [[row[key] for key in keys] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(result: dict[str, Any]) -> str:
    return machine_in_words(result["machine"], result["git_revision"])


def quality_differences(result: dict[str, Any]) -> list[Difference]:
    """What the variants of the main job gain over the baseline, and selection over its control."""
    model = result["model"]
    losses: dict[str, dict[int, float]] = {}
    for run in result["runs"]:
        losses.setdefault(run["variant"], {})[run["seed"]] = run["loss"]
    words = {BASELINE: "the baseline", CONTROL.name: "a constant a head"}
    pairs = [(name, BASELINE) for name in losses if name != BASELINE]
    if {"selective", CONTROL.name} <= losses.keys():
        pairs.append(("selective", CONTROL.name))
    return [
        Difference(
            finding=Finding(
                quantity=f"gain of {words.get(name, name)} over {words[other]}, nats",
                ours=Estimate.of(*(losses[other][seed] - loss for seed, loss in losses[name].items())),
                digits=4,
            ),
            model=f"{model['num_hidden_layers']} layers of width {model['hidden_size']}",
            place=f"[{SIDE_BY_SIDE}](#{anchor_of(SIDE_BY_SIDE)})",
        )
        for name, other in pairs
    ]


def quality(result: dict[str, Any]) -> str:
    config, data = result["config"], result["data"]
    headings = table_headings(result)
    del headings["wall_clock"]  # other programs ran beside the trainings; a step's cost is measured apart
    return "\n\n".join(
        [
            f"## {SIDE_BY_SIDE}",
            f"{result['model']['name']} model, {config['steps']} steps of {config['batch_size']} × {config['seq_len']} "
            f"tokens of {data['name']} as bytes (sha256 {data['sha256'][:12]}), seeds "
            f"{', '.join(map(str, config['seeds']))}; {machine(result)}. `{result['command']}`",
            table(summary_rows(result), headings),
            f"{interval_sentence(result)}. {headline(result)} {headline_note(result)}",
        ]
    )


def starting(result: dict[str, Any]) -> str:
    rounds = min(len(rounds) for sides in result["rows"].values() for rounds in sides.values())
    return "\n\n".join(
        [
            "## Starting",
            "From the start of a command to its first line, which says what it works on, and to its answer (of a "
            f"training, its first step): medians of at least {rounds} rounds, alternating with revision "
            f"{result['before_revision'][:10]}; bytecode and compiled kernels are cached. CPU seconds are those of "
            f"the process, which other programs of the machine hardly change, while they make the seconds "
            f"longer. {machine(result)}. `{result['command']}`",
            table(startup.medians(result), startup.HEADINGS),
        ]
    )


def results_text(records: list[ExperimentRecord]) -> str:
    """``docs/results.md``."""
    trained = [read_json(path) for path in sorted(RESULTS.glob("quality*.json"))]
    found = [*differences(records), *(difference for result in trained for difference in quality_differences(result))]
    parts = [
        "# Does it help?",
        "Generated by `python -m evidence.benchmarks.tables` from `evidence/benchmarks/results`. What it costs: "
        "[performance.md](performance.md). All of it is from small models: what your text and your size say, `exsel "
        "compare` tells.",
        in_short(records),
        "## All differences, the surest first",
        answers(found),
        *map(quality, trained),
        *(gpu_training(kept) for kept in gpu_files() if gpu.training_results(kept)),
        *(starting(read_json(path)) for path in sorted(RESULTS.glob("startup*.json"))),
    ]
    return "\n\n".join(parts) + "\n"


def performance_sections() -> dict[str, str]:
    records = [read_json(path) for name in KINDS for path in sorted(RESULTS.glob(f"{name}_*.json"))]
    return performance.sections([*records, *(gpu.bench_record(kept) for kept in gpu_files())])


def gpu_files() -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted((RESULTS / "gpu").glob("*.json"))]


def gpu_training(kept: dict[str, Any]) -> str:
    results = gpu.training_results(kept)
    first = results[0]
    rows = []
    for name in dict.fromkeys(result["variant"] for result in results):
        own = [result for result in results if result["variant"] == name]
        losses = ", ".join(f"{result['loss']:.4f}" for result in own)
        step = statistics.median(result["ms_per_step"] for result in own)
        rows.append({"variant": name, "loss": losses, "step": f"{step:.1f}"})
    return "\n\n".join(
        [
            f"## On a GPU: {kept['machine']['device']}",
            f"{first['size']} model, {first['steps']:,} steps of {first['batch']} × {first['seq_len']:,} bytes of "
            "standard-library source, compiled layers. `python -m evidence.benchmarks gpu`",
            table(rows, {"variant": "Variant", "loss": "Validation loss, by seed", "step": "ms/step"}),
        ]
    )


def fill(path: Path, sections: dict[str, str]) -> str:
    """A page with its tables; the prose around the markers stays as it is."""
    page = path.read_text(encoding="utf-8")
    for name, text in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{path} must have one {begin} and one {end}")
        between = re.compile(f"{begin}.*?{end}", re.DOTALL)
        page = between.sub(lambda _, whole=f"{begin}\n{text}\n{end}": whole, page)  # type: ignore[misc]
    return page


def is_stale_reproduction(records: list[ExperimentRecord]) -> bool:
    """Whether the page of ``python -m evidence reproduce`` is not what the records say, or its charts are others."""
    docs = PAGE.parent
    page = docs / REPRODUCTION
    charts = {path.name for path in (docs / PICTURES).glob("*")}
    expected = {f"{name}.svg" for name in picture_names(records)}
    return not page.exists() or page.read_text(encoding="utf-8") != to_markdown(records) or charts != expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = 0
    records = [ExperimentRecord.read(path) for path in sorted((RESULTS / "reproduction").glob("*.json"))]
    served = sorted(RESULTS.glob("serving_*.json"))
    pages = {
        PAGE: results_text(records),
        README: fill(README, {"results": in_short(records, most=3)}),  # on its first screen
        PERFORMANCE: fill(PERFORMANCE, performance_sections()),
        ELSEWHERE: fill(ELSEWHERE, {"serving": vllm_tokens.what_serving_costs(map(read_json, served))}),
        SCALE: fill(SCALE, {"estimate": many_gpus.text()}),
    }
    if surveys := sorted(RESULTS.glob("support_*.json")):
        pages[SUPPORT] = support.page(read_json(surveys[-1]))
    for page, text in pages.items():
        if not is_check:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            print(
                f"{page} is not what the results say: run python -m evidence.benchmarks.tables",
                file=sys.stderr,
            )
            stale = 1
    if not is_check:
        write_page(PAGE.parent, records, png=False)
    elif is_stale_reproduction(records):
        print(
            "docs/reproduction.md or its charts are not what the records in results/reproduction say",
            file=sys.stderr,
        )
        stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
