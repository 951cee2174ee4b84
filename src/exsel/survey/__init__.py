"""The evidence for upgrades: a small model of every type in the installed transformers, upgraded and verified."""

from exsel.survey.records import OUTCOMES, Record, survey
from exsel.survey.zoo import model_types

__all__ = ["OUTCOMES", "Record", "model_types", "survey"]
