"""The outcome of a comparison in one honest sentence: better per token, better per second, or neither.

The sentence has at most twenty words. What qualifies it (losses, spreads, rates) is a note that stands below it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.report.comparison import best_rows, mean, reached, section, spread, values, variant_name
from exsel.report.formatting import fixed, learning_rate, number, ratio, signed
from exsel.variants import BASELINE

Row = Mapping[str, Any]


class Verdict(NamedTuple):
    """The sentence, the note below it, and the rows that it speaks of (``None``: nothing could be compared)."""

    sentence: str
    note: str = ""
    per_token: Row | None = None
    per_second: Row | None = None


class _Gap(NamedTuple):
    """How far a variant's final loss lies from the baseline's; below zero is better."""

    mean: float
    spread: float | None

    @property
    def is_unclear(self) -> bool:
        """Whether the spread over the seeds is at least as large as the difference."""
        return self.spread is not None and abs(self.mean) <= self.spread

    @property
    def digits(self) -> int:
        """Enough decimals to show two digits of the difference, between two and four."""
        return 4 if self.mean == 0 else min(4, max(2, 1 - math.floor(math.log10(abs(self.mean)))))


def headline(results: Mapping[str, Any]) -> str:
    """Return the outcome in one sentence, for the page's head and for the terminal's last line."""
    return verdict(results).sentence


def headline_note(results: Mapping[str, Any]) -> str:
    """Return what qualifies the headline, to be shown below it; empty where nothing does."""
    return verdict(results).note


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge each variant, at its best learning rate, against the baseline at its own best.

    A variant is better per token when its final loss is lower than the baseline's after the same tokens, by more than
    the spread of the difference where there is one. It is better per second when it reached the baseline's final loss
    in less time.
    """
    if parts := section(results, "parts"):
        said = " ".join(f"{label}: {verdict(part).sentence}" for label, part in parts.items())
        return Verdict(f"{len(parts)} comparisons on the same data, each against its own baseline.", said)
    rows = [row for row in best_rows(results) if mean(row, "loss") is not None]
    baseline = next((row for row in rows if variant_name(row) == BASELINE), None)
    others = sorted((row for row in rows if row is not baseline), key=_loss)
    if not rows:
        return Verdict("The results hold no final loss, so nothing can be compared.")
    if baseline is None:
        name, loss = variant_name(others[0]), fixed(_loss(others[0]), 2)
        if len(others) == 1:
            sentence = f"No baseline to compare with: {name} ended at a validation loss of {loss}."
        else:
            sentence = f"No baseline to compare with; the lowest final loss is that of {name}: {loss}."
        return Verdict(sentence, _spread_note(others[0]))
    if not others:
        return Verdict(f"Only the baseline has a final loss: {fixed(_loss(baseline), 2)}.", _spread_note(baseline))
    better = [row for row in others if _gap(row, baseline).mean < 0 and not _gap(row, baseline).is_unclear]
    if not better:
        return _nothing_better(others[0], baseline, alone=len(others) == 1)
    timed = [row for row in better if _seconds_ratio(row) < 1]
    return _better(better[0], min(timed, key=_seconds_ratio, default=None), baseline)


def _better(row: Row, quickest: Row | None, baseline: Row) -> Verdict:
    name, seconds = variant_name(row), ratio(reached(row, "seconds_ratio"))
    notes = [_final_losses(row, baseline)]
    target = f"{name} reached the baseline's final loss in {ratio(reached(row, 'tokens_ratio'))} the tokens"
    if reached(row, "tokens_ratio") is None or reached(row, "seconds_ratio") is None:
        sentence = f"Better per token: {name} ended at a lower loss than the baseline."
        notes.append("The time to the baseline's final loss is not known.")
    else:
        if seconds == "1.00×":
            sentence = f"Better per token, level per second: {target} and as much time."
        elif _seconds_ratio(row) < 1:
            sentence = f"Better per token and per second: {target} and {seconds} the time."
        else:
            sentence = f"Better per token, not per second: {target} but {seconds} the time."
        if not _same_rate(row, baseline):
            notes.append("Tokens and time are to the final loss of the baseline at the same learning rate.")
    if quickest is not None and quickest is not row:
        fastest = ratio(_seconds_ratio(quickest))
        if fastest not in (seconds, "1.00×"):
            notes.append(f"Quickest to that loss was {variant_name(quickest)}, in {fastest} the time.")
    return Verdict(sentence, " ".join(notes), row, quickest or row)


def _nothing_better(row: Row, baseline: Row, *, alone: bool) -> Verdict:
    gap, name = _gap(row, baseline), variant_name(row)
    if gap.is_unclear:
        own, other = fixed(_loss(row), gap.digits), fixed(_loss(baseline), gap.digits)
        sentence = f"No clear difference: {name} ended at a loss of {own}, the baseline at {other}."
        note = (
            f"The difference ({signed(gap.mean, gap.digits)}) is no larger than its spread "
            f"(± {fixed(gap.spread, gap.digits)} over {len(values(row, 'loss'))} seeds)."
        )
        return Verdict(sentence, note, row, row)
    subject = f"{name} did not beat the baseline" if alone else f"No variant beat the baseline; closest was {name}"
    return Verdict(f"{subject}.", _final_losses(row, baseline), row, row)


def _final_losses(row: Row, baseline: Row) -> str:
    gap, seeds = _gap(row, baseline), len(values(row, "loss"))
    own, other = fixed(_loss(row), gap.digits), fixed(_loss(baseline), gap.digits)
    words = "; one seed: no spread" if seeds == 1 else ""
    if not _same_rate(row, baseline):
        rate, other_rate = (learning_rate(item.get("learning_rate")) for item in (row, baseline))
        return f"Final loss {own} at learning rate {rate} against {other} at {other_rate}, each at its best{words}."
    if gap.spread is not None:
        words = f" ± {fixed(gap.spread, gap.digits)} over {seeds} seeds"
    return f"Final loss {own} against {other} ({signed(gap.mean, gap.digits)}{words})."


def _gap(row: Row, baseline: Row) -> _Gap:
    recorded = mean(row, "difference")
    if recorded is not None and _same_rate(row, baseline):
        return _Gap(recorded, spread(row, "difference"))
    own, other = values(row, "loss"), values(baseline, "loss")
    if len(own) == len(other) > 1:
        # Each seed has the same initial weights and batches in every variant: pair them, as the table does.
        pairs = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
        return _Gap(statistics.fmean(pairs), statistics.stdev(pairs))
    return _Gap(_loss(row) - _loss(baseline), None)


def _same_rate(row: Row, baseline: Row) -> bool:
    return number(row.get("learning_rate")) == number(baseline.get("learning_rate"))


def _spread_note(row: Row) -> str:
    deviation, seeds = spread(row, "loss"), len(values(row, "loss"))
    if deviation is not None:
        return f"± {fixed(deviation, 3)} over {seeds} seeds."
    return "One seed: no spread." if seeds == 1 else ""


def _loss(row: Row) -> float:
    loss = mean(row, "loss")
    return math.inf if loss is None else loss


def _seconds_ratio(row: Row) -> float:
    share = reached(row, "seconds_ratio")
    return math.inf if share is None else share
