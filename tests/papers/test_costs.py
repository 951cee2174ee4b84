from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest

from evidence.papers import costs
from evidence.papers.outcome import Job, Outcome
from exsel.bench.model_contenders import parameter_count
from exsel.cli import eval as eval_command
from exsel.cli import train as train_command
from exsel.cli.display import RunLines
from exsel.cli.training import build_settings
from exsel.intervals import Estimate
from exsel.models import ExselForCausalLM
from exsel.variants import VARIANTS
from papers.fakes import read_again

TABLE_2_FIRST = ("51.26", "61.07", "55.68", "52.82", "35.00", "74.05", "40.02", "55.88", "53.22", "53.22")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(budget="smoke", device="cpu", seeds=(0, 1), data=(), folder=tmp_path, progress=RunLines())


def check_json(outcome: Outcome) -> None:
    assert read_again(outcome) == outcome


def test_overhead(job: Job) -> None:
    outcome = costs.run_overhead(job)
    check_json(outcome)
    assert outcome.verdict in ("reproduced", "partly", "not reproduced", "unclear")
    by_quantity = {finding.quantity: finding.ours for finding in outcome.findings}
    ours = [by_quantity[f"ours, eager, {tokens} tokens: time ÷ plain block's"] for tokens in (32, 64)]
    largest = outcome.findings[0].ours
    assert largest.values == tuple(max(pair) for pair in zip(*(one.values for one in ours), strict=True))
    assert all(len(one.values) == 2 and min(one.values) > 0.3 for one in by_quantity.values())
    (chart,) = outcome.charts
    assert [curve.label for curve in chart.curves] == ["ours, eager", "the two published lines, eager"]
    assert all(curve.x == (32.0, 64.0) and curve.low is not None for curve in chart.curves)
    (table,) = outcome.tables
    assert [row[:2] for row in table.rows] == [("eager", "32"), ("eager", "64")]
    assert "2 rounds" in outcome.size


@pytest.mark.parametrize(
    ("ratios", "verdict", "holds"),
    [
        (([1.01, 1.011], [1.01, 1.01]), "reproduced", [True, True]),
        (([1.01, 1.011], [1.5, 1.501]), "partly", [True, False]),
        (([1.5, 1.501], [1.6, 1.6]), "not reproduced", [False, False]),
        (([1.01, 1.02], [1.01, 1.01]), "unclear", [None, True]),  # two sessions that differ by a hundredth
    ],
)
def test_what_the_ratios_say(ratios: tuple[list[float], list[float]], verdict: str, holds: list[bool | None]) -> None:
    blocks = costs._BLOCKS["smoke"]
    found = {("eager", "exclusive", tokens): values for tokens, values in zip((32, 64), ratios, strict=True)}
    outcome = costs._overhead(blocks, "float32", "eager", found, {("eager", 32): [1.0], ("eager", 64): [2.0]})
    assert outcome.verdict == verdict
    assert [finding.holds for finding in outcome.findings[1:]] == holds
    assert outcome.tables[0].rows[1] == ("eager", "64", "2.00", f"{Estimate.of(*ratios[1]).mean:.3f}×", "–")


def test_sizes(job: Job) -> None:
    outcome = costs.run_sizes(job)
    check_json(outcome)
    assert outcome.verdict == "exact"
    assert [finding.published for finding in outcome.findings] == [0.7, 1.4, 2.7]
    for finding, size in zip(outcome.findings, costs.TABLE_1, strict=True):
        assert finding.holds
        # All but the norms, by hand.
        assert finding.ours.mean * 1e9 == pytest.approx(parameter_count(size), rel=1e-3)
    configured, new = outcome.tables
    assert configured.rows[1] == ("1.4b", "24", "2048", "24", "128", "0.0004")
    assert "(" not in "".join(cell for row in configured.rows for cell in row)
    by_mechanism = {row[0]: row[1:] for row in new.rows}
    assert by_mechanism["exclusive"][:3] == ("0", "0", "0")
    # One γ a head and layer.
    assert by_mechanism["exclusive, learned strength"][0].startswith(f"{24 * 6} (")


def test_sizes_that_differ_are_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "TABLE_1", {"0.7b": (24, 1536, 6, 256, 6e-4)})
    outcome = costs.run_sizes(job)
    assert outcome.verdict == "not reproduced"
    assert "differ from the paper's in 0.7b" in outcome.conclusion
    assert outcome.tables[0].rows == (("0.7b", "24", "1536", "6", "256", "0.0005 (0.0006)"),)


def test_embeddings_are_not_counted() -> None:
    import torch

    from exsel.models import SIZES, ExselConfig

    with torch.device("meta"):
        model = ExselForCausalLM(ExselConfig(**SIZES["0.7b"]))
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert everything - costs._parameters("0.7b") == model.config.vocab_size * model.config.hidden_size


def test_tasks_are_not_run_and_nothing_is_invented(job: Job) -> None:
    outcome = costs.run_tasks(job)
    check_json(outcome)
    assert outcome.verdict == "not run"
    assert outcome.findings == ()
    assert "Each published mean is that of its row" in outcome.conclusion
    assert "+0.26, +1.03, +1.36" in outcome.conclusion
    published, commands = outcome.tables
    assert published.rows[0] == ("0.7B SA", *TABLE_2_FIRST)
    assert len(published.rows) == len(commands.rows) == 6


def test_a_wrong_published_mean_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    row, mean = costs.TABLE_2["1.4b", "SA"]
    monkeypatch.setitem(costs.TABLE_2, ("1.4b", "SA"), (row, mean + 0.1))  # type: ignore[arg-type]
    assert "Not of its row: 1.4b SA" in costs.run_tasks(job).conclusion


def parse(command: Any, line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="exsel x")
    command.add_arguments(parser)
    return parser.parse_args(shlex.split(line)[2:])


@pytest.mark.parametrize("size", list(costs.TABLE_1))
def test_the_commands_are_the_papers_set_up(size: str) -> None:
    arguments = parse(train_command, costs.train_command(size, "exclusive"))
    arguments.device, arguments.compile = "cpu", False
    settings = build_settings(
        arguments, None, variant=VARIANTS[arguments.variant], learning_rate=arguments.lr, seed=arguments.seed
    )
    assert (settings.steps, settings.batch_size, settings.seq_len, settings.warmup_steps) == (200_000, 256, 2048, 2000)
    assert settings.learning_rate == costs.TABLE_1[size][4]
    assert (settings.variant.name, settings.tokenizer) == ("exclusive", "gpt2")
    evaluated = parse(eval_command, costs.evaluate_command(size, "exclusive"))
    assert evaluated.model == str(arguments.out)
    assert evaluated.tasks == ["exclusive-paper"]
