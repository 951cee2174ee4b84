"""The outcome of a comparison in one honest sentence, which claims only what the intervals tell.

The sentence has at most twenty words. What qualifies it (losses, intervals, what would tell more) is a note below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from exsel.intervals import Estimate
from exsel.report.comparison import (
    entries,
    mean,
    plus_minus,
    ratio_range,
    read_estimate,
    section,
    variant_name,
)
from exsel.report.formatting import fixed, learning_rate, number, ratio, signed
from exsel.report.selection import hardly_moved, selection_notes
from exsel.variants import BASELINE

Row = Mapping[str, Any]

# With fewer points of the validation curve it is not seen whether the loss still falls steeply.
_FEWEST_EVALUATIONS = 5
# After fewer steps a new model knows hardly more than which tokens are frequent: which variant leads then is chance.
_FEWEST_STEPS = 100
# The loss falls as steeply as at the start where its last third falls by more than this share of its first third.
_STEEP = 0.5


class Verdict(NamedTuple):
    """The sentence, the note below it, and the row that it speaks of (``None``: nothing could be compared)."""

    sentence: str
    note: str = ""
    row: Row | None = None


def headline(results: Mapping[str, Any]) -> str:
    """Return the outcome in one sentence, for the page's head and for the terminal's last line."""
    return verdict(results).sentence


def headline_note(results: Mapping[str, Any]) -> str:
    """Return what qualifies the headline, to be shown below it; empty where nothing does."""
    return verdict(results).note


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge each variant against the baseline, each at the learning rate chosen for it.

    A variant is better per token where the 95% interval of its difference in final loss lies below 0, and better per
    second where that of the time to the baseline's final loss, over the baseline's own, lies below 1.
    """
    if parts := section(results, "parts"):
        said = " ".join(f"{label}: {verdict(part).sentence}" for label, part in parts.items())
        return Verdict(f"{len(parts)} comparisons on the same data, each against its own baseline.", said)
    outcome = _judged(results)
    if outcome.row is not None and _can_gain(outcome.row, results) and hardly_moved(results, variant_name(outcome.row)):
        return outcome._replace(note=f"{outcome.note} Its temperatures hardly moved: selection has no part in this.")
    return outcome


def _judged(results: Mapping[str, Any]) -> Verdict:
    rows = [row for row in entries(results, "variants") if mean(row, "loss") is not None]
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
        return Verdict(sentence, _loss_note(others[0]))
    if not others:
        return Verdict(f"Only the baseline has a final loss: {fixed(_loss(baseline), 2)}.", _loss_note(baseline))
    able = [row for row in others if _can_gain(row, results)]
    by_sign: dict[int, list[Row]] = {-1: [], 0: [], 1: []}
    for row in able:
        gap = read_estimate(row, "difference")
        by_sign[0 if gap is None else gap.sign()].append(row)
    row = (by_sign[-1] or able or others)[0]
    name, losses = variant_name(row), _final_losses(row, baseline)
    if short := _too_short(results):
        return Verdict(f"Too short to conclude from: {short}.", f"{losses} More steps would tell.", row)
    if not able:
        sentence = f"No verdict on selection: the temperatures of {name} hardly moved."
        return Verdict(sentence, " ".join(selection_notes(results)), row)
    if by_sign[-1]:
        return _better(row, losses)
    if by_sign[0]:
        return _not_told(by_sign[0][0], baseline)
    if len(able) == 1:
        return Verdict(f"{name} did not beat the baseline.", losses, row)
    return Verdict(f"No variant beat the baseline; closest was {name}.", losses, row)


def _can_gain(row: Row, results: Mapping[str, Any]) -> bool:
    """Whether a variant is another model than the baseline: not by temperatures alone that hardly moved."""
    name = variant_name(row)
    has_more = section(section(results, "recipes"), name).get("exclusive") is not None
    return has_more or not hardly_moved(results, name)


def _too_short(results: Mapping[str, Any]) -> str:
    """Why the trainings are too short to conclude from, as a clause; empty where they are not."""
    curves = [
        [loss for point in entries(run, "validation_curve") if (loss := number(point.get("loss"))) is not None]
        for run in entries(results, "runs")
    ]
    fewest = min(filter(None, map(len, curves)), default=None)
    if fewest is None:
        return ""
    if fewest < _FEWEST_EVALUATIONS:
        times = "once" if fewest == 1 else f"{fewest} times"
        return f"the loss was evaluated {times}, and it takes {_FEWEST_EVALUATIONS}"
    config = section(results, "config")
    steps = number(config.get("steps"))
    if steps is not None and steps < _FEWEST_STEPS and config.get("source") is None:
        return f"a new model needs {_FEWEST_STEPS} steps at least, and these took {steps:,.0f}"
    is_steep = max(map(_late_fall, filter(None, curves))) > _STEEP
    return "the loss still falls about as fast as at the start" if is_steep else ""


def _late_fall(curve: Sequence[float]) -> float:
    """How much a loss falls in the last third of its evaluations, over its fall in the first third."""
    third = (len(curve) - 1) // 3 or 1
    first, last = curve[0] - curve[third], curve[-1 - third] - curve[-1]
    return math.inf if first <= 0 < last else last / first if first > 0 else 0.0


def _better(row: Row, losses: str) -> Verdict:
    name, reach = variant_name(row), section(row, "reach")
    tokens, time = read_estimate(reach, "tokens_ratio"), read_estimate(reach, "time_ratio")
    if tokens is None or tokens.sign(1) >= 0:
        sentence = f"Better per token: {name} ended at a lower loss than the baseline."
        note = "How much sooner it reached the baseline's final loss is not told; more seeds would tell."
        return Verdict(sentence, f"{losses} {note}", row)
    target = f"{name} reached the baseline's final loss in {ratio(tokens.mean)} the tokens"
    ranges = f"Tokens {ratio(tokens.mean)} ({ratio_range(tokens)})"
    if time is None:
        return Verdict(f"Better per token: {target}; its time is not known.", f"{losses} {ranges}.", row)
    claims = {
        -1: f"Better per token and per second: {target} and {ratio(time.mean)} the time.",
        0: f"Better per token: {target}; per second nothing is told.",
        1: f"Better per token, not per second: {target} but {ratio(time.mean)} the time.",
    }
    side = time.sign(1)
    advice = "" if side else " More seeds would tell the time."
    return Verdict(claims[side], f"{losses} {ranges}, time {ratio(time.mean)} ({ratio_range(time)}).{advice}", row)


def _not_told(row: Row, baseline: Row) -> Verdict:
    gap, name = read_estimate(row, "difference"), variant_name(row)
    digits = _digits(gap)
    own, other = fixed(_loss(row), digits), fixed(_loss(baseline), digits)
    if gap is None or gap.low is None:
        sentence = f"One seed tells no difference: {name} ended at a loss of {own}, the baseline at {other}."
        return Verdict(sentence, "Three seeds or more would tell, such as --seeds 0,1,2.", row)
    sentence = f"No difference is told: {name} ended at a loss of {own}, the baseline at {other}."
    seeds, needed = len(gap.values), gap.seeds_to_tell()
    note = (
        f"The difference is {signed(gap.mean, digits)}, its 95% interval over {seeds} seeds "
        f"{signed(gap.low, digits)} to {signed(gap.high, digits)}."
    )
    if needed is not None and needed <= 100:
        note += f" If it is real, about {max(needed, seeds + 1)} seeds would tell it."
    else:
        note += " So small a difference takes over a hundred seeds to tell, or more steps to grow."
    return Verdict(sentence, note, row)


def _digits(gap: Estimate | None) -> int:
    """Enough decimals to show two digits of the difference, between two and four."""
    return 4 if gap is None or gap.mean == 0 else min(4, max(2, 1 - math.floor(math.log10(abs(gap.mean)))))


def _final_losses(row: Row, baseline: Row) -> str:
    gap = read_estimate(row, "difference")
    digits = _digits(gap)
    own, other = fixed(_loss(row), digits), fixed(_loss(baseline), digits)
    if gap is None:
        return f"Final loss {own} against {other}."
    seeds = len(gap.values)
    qualified = "; one seed" if seeds == 1 else f" {plus_minus(gap, digits)} over {seeds} seeds"
    words = f"{signed(gap.mean, digits)}{qualified}"
    rate, its_rate = (learning_rate(item.get("learning_rate")) for item in (row, baseline))
    if rate != its_rate:
        return f"Final loss {own} at learning rate {rate} against {other} at {its_rate}, each at its best ({words})."
    return f"Final loss {own} against {other} ({words})."


def _loss_note(row: Row) -> str:
    loss = read_estimate(row, "loss")
    if loss is None or not loss.values:
        return ""
    if loss.high is None:
        return "One seed: no interval."
    return f"{plus_minus(loss, 3)} over {len(loss.values)} seeds."


def _loss(row: Row) -> float:
    loss = mean(row, "loss")
    return math.inf if loss is None else loss
