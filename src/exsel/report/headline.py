"""The outcome of a comparison in one honest sentence: better per token, better per second, or neither."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.report import formatting, summary
from exsel.report.formatting import number
from exsel.variants import BASELINE

Row = Mapping[str, Any]


class Verdict(NamedTuple):
    """The sentence, and the rows that it speaks of (``None``: nothing could be compared)."""

    sentence: str
    per_token: Row | None = None
    per_second: Row | None = None


class Gap(NamedTuple):
    """How far a variant's final loss lies from the baseline's; below zero is better."""

    mean: float
    spread: float | None
    seeds: int

    @property
    def unclear(self) -> bool:
        """Whether the spread over the seeds is at least as large as the difference."""
        return self.spread is not None and abs(self.mean) <= self.spread


def headline(results: Mapping[str, Any]) -> str:
    """Return the outcome in one sentence, for the page's head and for the terminal's last line."""
    return verdict(results).sentence


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge each variant, at its best learning rate, against the baseline at its own best.

    A variant is better per token when its final loss is lower than the baseline's after the same tokens, by
    more than the spread of the difference where there is one; it is better per second when it reached the
    baseline's final loss in less time.
    """
    rows = [row for row in summary.best_rows(results) if summary.mean(row, "loss") is not None]
    baseline = next((row for row in rows if summary.variant_name(row) == BASELINE), None)
    others = sorted((row for row in rows if row is not baseline), key=_loss)
    if not rows:
        return Verdict("The results hold no final loss, so nothing can be compared.")
    if baseline is None:
        return Verdict(_without_baseline(others))
    if not others:
        loss = formatting.fixed(_loss(baseline), 2)
        return Verdict(f"Only the baseline has a final loss: {loss}{_bracketed(_spread_words(baseline))}.")
    better = [row for row in others if _gap(row, baseline).mean < 0 and not _gap(row, baseline).unclear]
    if not better:
        return Verdict(_nothing_better(others[0], baseline, alone=len(others) == 1), others[0], others[0])
    timed = [row for row in better if _seconds_ratio(row) < 1]
    per_second = min(timed, key=_seconds_ratio, default=None)
    return Verdict(_better(better[0], per_second, baseline), better[0], per_second or better[0])


def _better(row: Row, quickest: Row | None, baseline: Row) -> str:
    outcome = _final_losses(row, baseline)
    name = summary.variant_name(row)
    reach = summary.section(row, "reach")
    tokens, seconds = (
        formatting.ratio(reach.get("tokens_ratio")),
        formatting.ratio(reach.get("seconds_ratio")),
    )
    target = "the baseline's final loss"
    if not _same_rate(row, baseline):
        target = "the final loss of the baseline at the same learning rate"
    if formatting.MISSING in (tokens, seconds):
        sentence = f"Better per token: {name}, {outcome}; the time to {target} is not known"
    elif seconds == "1.00×":
        sentence = (
            f"Better per token, level per second: {name} reached {target} in {tokens} the tokens and as much "
            f"time; {outcome}"
        )
    elif _seconds_ratio(row) < 1:
        sentence = (
            f"Better per token and per second: {name} reached {target} in {tokens} the tokens and {seconds} "
            f"the time; {outcome}"
        )
    else:
        sentence = (
            f"Better per token, not per second: {name} reached {target} in {tokens} the tokens but {seconds} "
            f"the time; {outcome}"
        )
    if quickest is not None and quickest is not row:
        fastest = formatting.ratio(_seconds_ratio(quickest))
        if fastest not in (seconds, "1.00×"):
            sentence += f". Quickest to that loss was {summary.variant_name(quickest)}, in {fastest} the time"
    return f"{sentence}."


def _nothing_better(row: Row, baseline: Row, *, alone: bool) -> str:
    gap = _gap(row, baseline)
    name = summary.variant_name(row)
    digits = _digits(gap)
    if gap.unclear:
        own, other = formatting.fixed(_loss(row), digits), formatting.fixed(_loss(baseline), digits)
        return (
            f"No clear difference: {name} ended at a loss of {own}, the baseline at {other}; the difference "
            f"({formatting.signed(gap.mean, digits)}) is no larger than its spread "
            f"(± {formatting.fixed(gap.spread, digits)} over {gap.seeds} seeds)."
        )
    subject = f"{name} did not beat the baseline" if alone else f"No variant beat the baseline; closest was {name}"
    return f"{subject}: {_final_losses(row, baseline)}."


def _without_baseline(others: list[Row]) -> str:
    lowest = others[0]
    name, loss = summary.variant_name(lowest), formatting.fixed(_loss(lowest), 2)
    words = _bracketed(_spread_words(lowest))
    if len(others) == 1:
        return f"No baseline to compare with: {name} ended at a validation loss of {loss}{words}."
    return f"No baseline to compare with; the lowest final loss is that of {name}: {loss}{words}."


def _final_losses(row: Row, baseline: Row) -> str:
    gap = _gap(row, baseline)
    digits = _digits(gap)
    own, other = formatting.fixed(_loss(row), digits), formatting.fixed(_loss(baseline), digits)
    if _same_rate(row, baseline):
        words = "; one seed: no spread" if gap.seeds == 1 else ""
        if gap.spread is not None:
            words = f" ± {formatting.fixed(gap.spread, digits)} over {gap.seeds} seeds"
        return f"final loss {own} against {other} ({formatting.signed(gap.mean, digits)}{words})"
    rate, other_rate = (formatting.learning_rate(item.get("learning_rate")) for item in (row, baseline))
    words = "; one seed: no spread" if gap.seeds == 1 else ""
    return f"final loss {own} at learning rate {rate} against {other} at {other_rate}, each at its best{words}"


def _gap(row: Row, baseline: Row) -> Gap:
    recorded = summary.mean(row, "difference")
    own, other = summary.values(row, "loss"), summary.values(baseline, "loss")
    if recorded is not None and _same_rate(row, baseline):
        return Gap(recorded, summary.spread(row, "difference"), len(own))
    if len(own) == len(other) > 1:
        # Each seed has the same initial weights and batches in every variant: pair them, as the table does.
        pairs = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
        return Gap(statistics.fmean(pairs), statistics.stdev(pairs), len(pairs))
    return Gap(_loss(row) - _loss(baseline), None, len(own))


def _same_rate(row: Row, baseline: Row) -> bool:
    return number(row.get("learning_rate")) == number(baseline.get("learning_rate"))


def _digits(gap: Gap) -> int:
    """Enough decimals to show two digits of the difference, between two and four."""
    if gap.mean == 0:
        return 4
    return min(4, max(2, 1 - math.floor(math.log10(abs(gap.mean)))))


def _spread_words(row: Row) -> str:
    deviation, seeds = summary.spread(row, "loss"), len(summary.values(row, "loss"))
    if deviation is not None:
        return f"± {formatting.fixed(deviation, 3)} over {seeds} seeds"
    return "one seed: no spread" if seeds == 1 else ""


def _bracketed(words: str) -> str:
    return f" ({words})" if words else ""


def _loss(row: Row) -> float:
    loss = summary.mean(row, "loss")
    return math.inf if loss is None else loss


def _seconds_ratio(row: Row) -> float:
    ratio = number(summary.section(row, "reach").get("seconds_ratio"))
    return math.inf if ratio is None else ratio
