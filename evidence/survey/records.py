"""Every model type of the installed transformers: upgraded and verified, or refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from evidence.survey.layer_checks import VerificationError
from evidence.survey.outcomes import Outcome
from evidence.survey.verification import NotReachedError, verify
from evidence.survey.zoo import NotBuilt, build_small_model
from exsel.upgrading import attention_layers


@dataclass(frozen=True)
class SurveyRecord:
    """What came of one model type.

    Args:
        model_type: a key of transformers' ``CONFIG_MAPPING``.
        outcome: a key of :data:`evidence.survey.outcomes.OUTCOMES`.
        family: of the model that was built; empty where none was.
        layers: how many layers were upgraded.
        called: how many of them the inputs reached, and were verified.
        reasons: why not everything was, each with its class.
    """

    model_type: str
    outcome: Outcome
    family: str = ""
    layers: int = 0
    called: int = 0
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "reasons": list(self.reasons)}


def survey(model_types: Iterable[str]) -> Iterator[SurveyRecord]:
    """Build, upgrade and verify a small model of each type, one after the other.

    Args:
        model_types: keys of transformers' ``CONFIG_MAPPING``.
    """
    for model_type in model_types:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hundreds of models, each about itself
            yield _record(model_type)


def _record(model_type: str) -> SurveyRecord:
    try:
        specimen = build_small_model(model_type)
    except NotBuilt as error:
        return SurveyRecord(model_type, "not built", reasons=(str(error),))
    layers = attention_layers.counted_layers(specimen.model)
    reasons = tuple(
        dict.fromkeys(
            f"{target.cls}: {target.exclusive or f'not selective: {target.selective}'}"
            for target in layers
            if target.exclusive or target.selective
        )
    )
    if all(target.exclusive for target in layers):
        return SurveyRecord(model_type, "refused" if layers else "no attention", specimen.family, reasons=reasons)
    try:
        verified = verify(specimen.model, specimen.inputs, can_generate=specimen.can_generate)
    except NotReachedError as error:
        return SurveyRecord(model_type, "not built", specimen.family, reasons=(str(error), *reasons))
    except VerificationError as error:
        return SurveyRecord(model_type, "wrong", specimen.family, reasons=(str(error), *reasons))
    except (
        Exception
    ) as error:  # a model that breaks when it is upgraded is as wrong as one that computes something else
        return SurveyRecord(
            model_type, "wrong", specimen.family, reasons=(f"{type(error).__name__}: {error}", *reasons)
        )
    outcome: Outcome = "partly" if reasons else "verified"
    return SurveyRecord(model_type, outcome, specimen.family, verified.layers, verified.called, reasons)
