"""How well a model predicts text, and how well it finds a key in it.

`tasks` needs the extra ``exsel[eval]`` and is imported only when tasks of lm-evaluation-harness are asked for;
`passkey_picture` only when a picture is drawn.
"""

from exsel.evaluation.loss import Evaluation, evaluate_loss
from exsel.evaluation.retrieval import PasskeyResult, passkey

__all__ = ["Evaluation", "PasskeyResult", "evaluate_loss", "passkey"]
