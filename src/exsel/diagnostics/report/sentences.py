"""What was found, in a sentence made from the numbers. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence

from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.report.diagnosed_models import DiagnosedModel, diagnosed_models, difference, shown

# A mean cosine below this is called hardly any: random directions of a head of 64 numbers have ± 0.125.
_LITTLE = 0.1


def headline(diagnosis: Diagnosis, against: Diagnosis | None = None) -> str:
    """What attention's output has of the token's own value, in one sentence for one model and for two."""
    return sentence(diagnosed_models(diagnosis, against))


def sentence(sides: Sequence[DiagnosedModel]) -> str:
    """See :func:`headline`."""
    return _one(sides[0]) if len(sides) == 1 else _two(*sides)


def _one(side: DiagnosedModel) -> str:
    bias = side.mean("similarity")
    if bias is None:
        return _nothing(side)
    if abs(bias) < _LITTLE:
        text = f"Attention's output hardly points along the token's own value: mean cosine {shown(bias)}"
    elif bias < 0:
        text = f"Attention's output points away from the token's own value: mean cosine {shown(bias)}"
    else:
        text = f"Attention's output points along the token's own value: mean cosine {shown(bias)}"
    centred, weight, reaching = side.mean("centred_similarity"), side.mean("self_weight"), side.reaching()
    if centred is not None:
        text += f", and {shown(centred)} without the direction that all values share"
    if side.means("similarity_after"):
        text += f". The exclusive projection leaves {shown(reaching)} of it in what reaches the output projection"
    elif weight is not None:
        text += f". A token gives itself {weight:.0%} of its attention"
    return f"{text}."


def _two(side: DiagnosedModel, other: DiagnosedModel) -> str:
    reaching, theirs = side.reaching(), other.reaching()
    if reaching is None or theirs is None:
        return _nothing(side if reaching is None else other)
    gap = reaching - theirs
    numbers = f"mean cosine {shown(reaching)} against {shown(theirs)} ({difference(reaching, theirs)})"
    what = "the token's own value"
    if abs(gap) < 0.01:
        text = f"What attention passes on has as much of {what} in {side.name} as in {other.name}: {numbers}"
    else:
        word = "less" if gap < 0 else "more"
        text = f"What attention passes on has {word} of {what} in {side.name} than in {other.name}: {numbers}"
    bias, theirs = side.mean("similarity"), other.mean("similarity")
    if (side.means("similarity_after") or other.means("similarity_after")) and bias is not None and theirs is not None:
        text += f". Before any exclusive projection it is {shown(bias)} against {shown(theirs)}"
    return f"{text}."


def _nothing(side: DiagnosedModel) -> str:
    reasons = dict.fromkeys(reason for title, reason, _ in side.gaps() if title.startswith("Similarity to the own"))
    words = f": {'; '.join(reasons)}" if reasons else ""
    return f"How far attention's output points along the token's own value could not be measured in {side.name}{words}."
