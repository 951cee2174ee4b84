"""What exclusive attention costs, and the models and tasks of its paper: Figure 2, Tables 1 and 2."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table, Verdict
from exsel.bench import model_contenders
from exsel.bench.cases import DTYPES, GROUPS, SHAPES, Case
from exsel.bench.measuring import Clock, make_clock, measure
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.intervals import Estimate
from exsel.machine import can_compile
from exsel.model_sizes import SIZES
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.report.charts import Chart, Curve
from exsel.report.formatting import percent
from exsel.training.settings import DEFAULTS
from exsel.variants import BASELINE

#: The paper's models by our names: layers, width, heads, head size, learning rate. Zhai 2026, Table 1.
TABLE_1: Mapping[str, tuple[int, int, int, int, float]] = {
    "0.7b": (24, 1536, 6, 256, 5e-4),
    "1.4b": (24, 2048, 24, 128, 4e-4),
    "2.7b": (32, 2560, 24, 128, 3e-4),
}

TASKS = ("ARC-E", "BoolQ", "HellaS", "LAMB", "OBQA", "PIQA", "SIQA", "WinoG")
#: Accuracies in percent of each size without (SA) and with exclusive attention (XSA), and their mean as it was
#: printed. Zhai 2026, Table 2.
TABLE_2: Mapping[tuple[str, str], tuple[tuple[float, ...], float]] = {
    ("0.7b", "SA"): ((51.26, 61.07, 55.68, 52.82, 35.00, 74.05, 40.02, 55.88), 53.22),
    ("0.7b", "XSA"): ((52.69, 61.19, 56.29, 54.07, 32.20, 73.78, 41.45, 56.20), 53.48),
    ("1.4b", "SA"): ((56.19, 65.47, 60.69, 56.24, 34.60, 75.90, 41.40, 58.80), 56.16),
    ("1.4b", "XSA"): ((58.84, 62.29, 62.41, 58.57, 36.00, 76.61, 42.84, 59.98), 57.19),
    ("2.7b", "SA"): ((58.59, 60.98, 66.20, 60.18, 37.00, 76.61, 42.94, 61.96), 58.06),
    ("2.7b", "XSA"): ((60.65, 64.86, 67.40, 62.04, 38.40, 77.80, 41.45, 62.75), 59.42),
}
_VARIANTS = {"SA": "baseline", "XSA": "exclusive"}

#: "Little" is our reading of the figure: less than a twentieth of a block's time.
LITTLE = 1.05


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """The blocks that are timed: their size, sequences, lengths, rounds a seed, and ways to run them."""

    size: str
    batch: int
    tokens: tuple[int, ...]
    rounds: int
    ways: tuple[str, ...]


# The paper has 32 sequences in bfloat16; on the CPU that would take hours.
_BLOCKS: Mapping[Budget, _Blocks] = {
    "smoke": _Blocks(size="tiny", batch=1, tokens=(32, 64), rounds=2, ways=("eager",)),
    "cpu": _Blocks(size="124m", batch=1, tokens=(256, 512, 1024, 2048), rounds=7, ways=GROUPS),
    "gpu": _Blocks(size="1.4b", batch=32, tokens=(512, 1024, 2048, 4096, 8192), rounds=6, ways=GROUPS),
}
# By name in :data:`exsel.bench.model_contenders.VARIANTS`.
_FORMS = {"exclusive": "ours", "naive exclusive": "the two published lines"}

Ratios = dict[tuple[str, str, int], list[float]]


def run_overhead(job: Job) -> Outcome:
    """Time one block, plain and exclusive, forward and backward, in turn in one process (Figure 2).

    A seed is a session: the median over its rounds of the time divided by the plain block's in the same round.
    """
    blocks = _BLOCKS[job.budget]
    dtype = "bfloat16" if job.device == "cuda" else "float32"
    ways = [way for way in blocks.ways if way == "eager" or can_compile()]
    ratios: Ratios = {}
    plain: dict[tuple[str, int], list[float]] = {}
    clock = make_clock(torch.device(job.device))
    for seed in job.seeds:
        for tokens in blocks.tokens:
            job.progress.note(f"one block, {blocks.batch} × {tokens} tokens, session {seed}")
            for row in _measure(job, blocks, ways, tokens, seed, DTYPES[dtype], clock):
                both = row["passes"].get("both")
                if both is not None and row["contender"] == BASELINE:
                    plain.setdefault((row["group"], tokens), []).append(both["ms_median"])
                elif both is not None:
                    ratios.setdefault((row["group"], row["contender"], tokens), []).append(both["ratio_median"])
    return _overhead(blocks, dtype, ways[-1], ratios, plain)


def _measure(
    job: Job, blocks: _Blocks, ways: list[str], tokens: int, seed: int, dtype: torch.dtype, clock: Clock
) -> list[dict[str, Any]]:
    torch.compiler.reset()  # what was compiled for another length would count against the limit of this one
    gc.collect()
    torch.manual_seed(seed)
    case = Case(
        shape=SHAPES[blocks.size], tokens=tokens, batch=blocks.batch, device=torch.device(job.device), dtype=dtype
    )
    contenders = [one for one in model_contenders.block_contenders(case, ways) if one.name in (BASELINE, *_FORMS)]
    return measure(contenders, clock=clock, device=case.device, rounds=blocks.rounds, say=lambda _: None)


def _overhead(
    blocks: _Blocks, dtype: str, way: str, ratios: Ratios, plain: Mapping[tuple[str, int], list[float]]
) -> Outcome:
    """Findings of the last way, which is the faster; the chart shows all."""
    estimates = {key: Estimate.of(*values) for key, values in ratios.items()}
    ours = {tokens: one for (group, form, tokens), one in estimates.items() if (group, form) == (way, "exclusive")}
    naive = {
        tokens: one for (group, form, tokens), one in estimates.items() if (group, form) == (way, "naive exclusive")
    }
    sessions = zip(*(ratios[way, "exclusive", tokens] for tokens in ours), strict=True)
    largest = Estimate.of(*(max(session) for session in sessions))
    findings = [
        _ratio(f"ours, {way}, the length where it is largest", largest, f"below {LITTLE}"),
        *(_ratio(f"ours, {way}, {tokens} tokens", one, f"below {LITTLE}") for tokens, one in ours.items()),
        *(_ratio(f"the two published lines, {way}, {tokens} tokens", one, "") for tokens, one in naive.items()),
    ]
    holds = [finding.holds for finding in findings[1 : 1 + len(ours)]]
    verdict: Verdict = "unclear"
    if all(holds):
        verdict = "reproduced"
    elif False in holds:
        verdict = "partly" if True in holds else "not reproduced"
    ours_in_words, naive_in_words = (
        ", ".join(f"{one.mean:.3f}×" for one in of_form.values()) for of_form in (ours, naive)
    )
    return Outcome(
        verdict=verdict,
        conclusion=f"Run {way}, forward and backward of a block with exclusive attention take {ours_in_words} "
        f"the plain block's time at {', '.join(map(str, ours))} tokens; with the two published lines {naive_in_words}.",
        size=f"one block of the {blocks.size} model, {blocks.batch} × {blocks.tokens[0]} to {blocks.tokens[-1]} "
        f"tokens, {dtype}, {blocks.rounds} rounds a session, a session a seed (the paper: 32 sequences, bfloat16, GPU)",
        findings=tuple(findings),
        charts=(_overhead_chart(estimates),),
        tables=(_overhead_table(estimates, plain),),
    )


def _ratio(quantity: str, estimate: Estimate, expected: str) -> Finding:
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    holds = True if high < LITTLE else False if low > LITTLE else None
    return Finding(
        quantity=f"{quantity}: time ÷ plain block's",
        ours=estimate,
        expected=expected,
        holds=holds if expected else None,
        digits=3,
    )


def _overhead_chart(estimates: Mapping[tuple[str, str, int], Estimate]) -> Chart:
    curves = []
    for way, form in dict.fromkeys((way, form) for way, form, _ in estimates):
        points = {tokens: one for (group, name, tokens), one in estimates.items() if (group, name) == (way, form)}
        low = tuple(one.low for one in points.values() if one.low is not None)
        high = tuple(one.high for one in points.values() if one.high is not None)
        curves.append(
            Curve(
                label=f"{_FORMS[form]}, {way}",
                x=tuple(map(float, points)),
                y=tuple(one.mean for one in points.values()),
                low=low or None,  # every length has as many sessions
                high=high or None,
                style="dashed" if form.startswith("naive") else "line",
            )
        )
    return Chart(
        name="ratio",
        title="One block with exclusive attention, forward and backward",
        x_label="tokens a sequence",
        y_label="time ÷ plain block's",
        curves=tuple(curves),
        log_x=True,
        caption="Mean over sessions of the median ratio, with its 95% interval; each is divided by the plain block "
        "that is run in the same way, eager or compiled.",
    )


def _overhead_table(
    estimates: Mapping[tuple[str, str, int], Estimate], plain: Mapping[tuple[str, int], list[float]]
) -> Table:
    rows = []
    for (way, tokens), milliseconds in plain.items():
        found = [estimates.get((way, form, tokens)) for form in _FORMS]
        ratios = ["–" if one is None else f"{one.mean:.3f}×" for one in found]
        rows.append((way, str(tokens), f"{statistics.median(milliseconds):,.2f}", *ratios))
    headings = ("Way", "Tokens", "Plain, ms", *(form.capitalize() for form in _FORMS.values()))
    return Table(title="Forward and backward", headings=headings, rows=tuple(rows))


def run_sizes(job: Job) -> Outcome:
    """Build the paper's three models without memory for their weights, and count (Table 1)."""
    counts = {size: _parameters(size) for size in TABLE_1}
    findings = []
    for size, count in counts.items():
        published = float(size.removesuffix("b"))
        findings.append(
            Finding(
                quantity=f"{size.upper()}: parameters without embeddings (billions)",
                ours=Estimate.of(count / 1e9),
                published=published,
                expected="the same to the digit in its name",
                holds=round(count / 1e9, 1) == published,
                digits=3,
            )
        )
    different = [size for size, values in TABLE_1.items() if _configured(size) != values]
    has_all = all(finding.holds for finding in findings) and not different
    agree = "agree with the paper's" if not different else f"differ from the paper's in {', '.join(different)}"
    return Outcome(
        verdict="exact" if has_all else "not reproduced",
        conclusion=f"The three have {', '.join(f'{count / 1e9:.3f}' for count in counts.values())} billion parameters "
        f"without embeddings; layers, widths, heads, head sizes and learning rates {agree}.",
        size="the models themselves, built without weights",
        findings=tuple(findings),
        tables=(_configurations(), _new_parameters(counts)),
    )


def _parameters(size: str, **mechanisms: ExclusiveConfig | SelectiveConfig) -> int:
    """Without embeddings: the output layer is the token embedding."""
    config = ExselConfig(**SIZES[size], **mechanisms)
    with torch.device("meta"):
        model = ExselForCausalLM(config)
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)


def _configured(size: str) -> tuple[int, int, int, int, float]:
    values = SIZES[size]
    heads, head_dim = values["num_attention_heads"], values["head_dim"]
    return values["num_hidden_layers"], values["hidden_size"], heads, head_dim, DEFAULTS[size].learning_rate


def _configurations() -> Table:
    return Table(
        title="As `exsel train --model` has them; in brackets what the paper has where it differs",
        headings=("Model", "Layers", "Width", "Heads", "Head size", "Learning rate"),
        rows=tuple(
            (
                size,
                *(
                    f"{ours:g}" if ours == paper else f"{ours:g} ({paper:g})"
                    for ours, paper in zip(_configured(size), published, strict=True)
                ),
            )
            for size, published in TABLE_1.items()
        ),
    )


def _new_parameters(counts: Mapping[str, int]) -> Table:
    # Beside each what its paper says of its own models.
    mechanisms: dict[tuple[str, str], dict[str, ExclusiveConfig | SelectiveConfig]] = {
        ("exclusive", "0"): {"exclusive": ExclusiveConfig()},
        ("exclusive, learned strength", "–"): {"exclusive": ExclusiveConfig(strength="learned")},
        ("selective, shared weights", "below 0.5%"): {"selective": SelectiveConfig()},
        ("selective, mlp", "about 5%"): {"selective": SelectiveConfig(token="mlp")},
        ("selective, frequency", "below 0.01%"): {"selective": SelectiveConfig(token="frequency")},
    }

    def cell(size: str, count: int, config: Mapping[str, ExclusiveConfig | SelectiveConfig]) -> str:
        new = _parameters(size, **config) - count
        return f"{new:,} ({percent(100 * new / count)})" if new else "0"

    return Table(
        title="New parameters, and their share of those without embeddings",
        headings=("Mechanism", *counts, "Published, of the paper's models"),
        rows=tuple(
            (name, *(cell(size, count, config) for size, count in counts.items()), published)
            for (name, published), config in mechanisms.items()
        ),
    )


def run_tasks(job: Job) -> Outcome:
    """The published accuracies, and the commands that would measure ours (Table 2)."""
    unequal = [f"{size} {kind}" for (size, kind), (row, mean) in TABLE_2.items() if round(_mean(row), 2) != mean]
    checked = "Each published mean is that of its row" if not unequal else f"Not of its row: {', '.join(unequal)}"
    gains = [_mean(TABLE_2[size, "XSA"][0]) - _mean(TABLE_2[size, "SA"][0]) for size in TABLE_1]
    return Outcome(
        verdict="not run",
        conclusion="It needs six models trained on 105 billion tokens each, the smallest of 0.7 billion parameters, "
        "which no budget here allows; below are the commands that train and evaluate them. "
        f"{checked}: the paper's gains are {', '.join(f'{gain:+.2f}' for gain in gains)} points.",
        size="the published table",
        findings=(),
        tables=(_published_tasks(), _commands()),
    )


def _mean(row: tuple[float, ...]) -> float:
    return statistics.fmean(row)


def _published_tasks() -> Table:
    return Table(
        title="Published accuracies in percent (not ours); the last column is computed from the row",
        headings=("Model", *TASKS, "Mean", "Mean of the row"),
        rows=tuple(
            (f"{size.upper()} {kind}", *(f"{value:.2f}" for value in row), f"{mean:.2f}", f"{_mean(row):.2f}")
            for (size, kind), (row, mean) in TABLE_2.items()
        ),
    )


def train_command(size: str, variant: str) -> str:
    """What trains a model of Table 2; steps, learning rate, warm-up and lengths of a size are the paper's."""
    folder = f"runs/{size}-{variant}"
    return (
        f"exsel train --model {size} --variant {variant} --data HuggingFaceFW/fineweb:sample-100BT --tokenizer gpt2 "
        f"--accumulation 32 --device cuda --out {folder}"
    )


def evaluate_command(size: str, variant: str) -> str:
    """What evaluates it on the eight tasks."""
    folder = f"runs/{size}-{variant}"
    return f"exsel eval {folder} --tasks exclusive-paper --device cuda --json {folder}/tasks.json"


def _commands() -> Table:
    return Table(
        title="What would produce ours: 200,000 steps of 256 × 2048 tokens, then the eight tasks",
        headings=("Model", "Train", "Evaluate"),
        rows=tuple(
            (
                f"{size.upper()} {kind}",
                f"`{train_command(size, _VARIANTS[kind])}`",
                f"`{evaluate_command(size, _VARIANTS[kind])}`",
            )
            for size, kind in TABLE_2
        ),
    )
