"""How well a model predicts text, what it makes up itself, and how well it finds a key in text.

`tasks` needs the extra ``exsel[eval]`` and is imported only when tasks of lm-evaluation-harness are asked for;
`passkey_picture` only when a picture is drawn.
"""

from exsel.evaluation.loss import Evaluation, evaluate_loss
from exsel.evaluation.retrieval import PasskeyResult, passkey
from exsel.evaluation.samples import Sample, sample_texts

__all__ = ["Evaluation", "PasskeyResult", "Sample", "evaluate_loss", "passkey", "sample_texts"]
