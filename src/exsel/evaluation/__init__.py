"""How well a model predicts text."""

from exsel.evaluation.loss import Evaluation, evaluate_loss

__all__ = ["Evaluation", "evaluate_loss"]
