"""What a comparison says of its temperatures: how far they moved, and whether what they gain is selection's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.intervals import Estimate
from exsel.report.comparison import entries, plus_minus, runs_of_variants
from exsel.report.formatting import fixed, number, plain, signed
from exsel.variants import CONTROL

#: Temperatures that moved by less have no effect to speak of. Rounding a query to bfloat16 changes its numbers by up to
#: 2⁻⁸ of themselves, and nobody calls that another model. Scores deviate by 2 to 4 within a row, so that the weights of
#: attention change by under 2%; a value's share of an output changes by 0.4%.
HARDLY = 2.0**-8

_SELECTIVE = "selective"
_PLURALS = {"query": "queries", "key": "keys", "value": "values"}


class Moved(NamedTuple):
    """The temperatures of one variant and kind over layers and seeds: root mean squares, but the mean of τ."""

    variant: str
    kind: str
    mean: float
    moved: float
    over_tokens: float
    over_heads: float

    @property
    def subject(self) -> str:
        """What is scaled."""
        return _PLURALS.get(self.kind, self.kind)

    def __str__(self) -> str:
        how_far = f"moved by {fixed(self.moved)}, {fixed(self.over_tokens)} from token to token"
        return f"temperatures of {self.subject}: mean {fixed(self.mean)}, {how_far}"


def moved_temperatures(results: Mapping[str, Any]) -> list[Moved]:
    """The temperatures of each variant that has some, kind by kind; results without records give none."""
    found = []
    for variant, runs in runs_of_variants(results).items():
        records = [record for run in runs for record in entries(run, "temperatures")]
        for kind in dict.fromkeys(plain(record.get("kind")) for record in records):
            of_kind = [record for record in records if plain(record.get("kind")) == kind]
            values = {
                name: [value for record in of_kind if (value := number(record.get(name))) is not None]
                for name in Moved._fields[2:]
            }
            if all(values.values()):
                means = {name: math.sqrt(math.fsum(x * x for x in each) / len(each)) for name, each in values.items()}
                means["mean"] = math.fsum(values["mean"]) / len(values["mean"])
                found.append(Moved(variant, kind, **means))
    return found


def hardly_moved(results: Mapping[str, Any], variant: str) -> bool:
    """Whether a variant has temperatures, and none that moved by :data:`HARDLY` or more."""
    own = [each.moved for each in moved_temperatures(results) if each.variant == variant]
    return bool(own) and max(own) < HARDLY


def selection_notes(results: Mapping[str, Any]) -> list[str]:
    """Say what the losses tell of selection: of which variants nothing and why, and what is left beside the control."""
    groups: dict[str, list[Moved]] = {}
    for each in moved_temperatures(results):
        groups.setdefault(each.variant, []).append(each)
    notes = []
    for variant, kinds in groups.items():
        how_far = " and ".join(f"{fixed(each.moved)} ({each.subject})" for each in kinds)
        if hardly_moved(results, variant):
            notes.append(
                f"The temperatures of {variant} hardly moved: by {how_far}, and rounding to bfloat16 is up to "
                f"{fixed(HARDLY)}. Its loss says nothing about selection. Higher learning rates of its own "
                "(token-lr, position-lr) or more steps would move them."
            )
        elif max(each.over_tokens for each in kinds) < HARDLY:
            notes.append(
                f"The temperatures of {variant} moved by {how_far}, and differ from token to token by less than "
                f"{fixed(HARDLY)}: they are constants, and what they gain is not selection's."
            )
    if note := _beside_control(results):
        notes.append(note)
    return notes


def _beside_control(results: Mapping[str, Any]) -> str:
    """What selective attention gains beyond one constant a head, over seeds; empty where no two seeds have both."""
    losses = {
        variant: {run.get("seed"): loss for run in runs if (loss := number(run.get("loss"))) is not None}
        for variant, runs in runs_of_variants(results).items()
    }
    own, control = losses.get(_SELECTIVE, {}), losses.get(CONTROL.name, {})
    differences = [loss - control[seed] for seed, loss in own.items() if seed in control]
    if len(differences) < 2:
        return ""
    found = Estimate.of(*differences)
    size = f"{fixed(abs(found.mean))} {plus_minus(found)}"
    match found.sign():
        case -1:
            return f"Beyond one constant a head, {_SELECTIVE} lowers the loss by {size}: that much is selection's."
        case 1:
            return f"One constant a head does better than {_SELECTIVE}, by {size}: selection does not help here."
    return (
        f"Between {_SELECTIVE} and one constant a head no difference is told ({signed(found.mean)} "
        f"{plus_minus(found)}): what it gains, a constant may gain as well."
    )
