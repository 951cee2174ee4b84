"""What was found, in a sentence made from the numbers, and what qualifies it."""

from __future__ import annotations

from collections.abc import Sequence

from exsel.diagnostics.diagnosis_report.diagnosed_models import DiagnosedModel, difference, shown

# Below this a mean cosine is "hardly" any: random directions in a head of 64 numbers have ± 0.125.
_LITTLE = 0.1
# Below this two mean cosines count as equal.
_SAME = 0.01


def diagnosis_headline(models: Sequence[DiagnosedModel]) -> str:
    """How much of the token's own value attention passes on, in at most twenty words."""
    for model in models:
        if model.mean("similarity") is None:
            return f"The similarity of outputs to own values could not be measured in {model.name}."
    if len(models) == 1:
        bias = models[0].mean("similarity") or 0.0
        points = "hardly points along" if abs(bias) < _LITTLE else "points away from" if bias < 0 else "points along"
        return f"Attention's output {points} the token's own value: mean cosine {shown(bias)}."
    first, second = (model.reaching() or 0.0 for model in models)
    gap = first - second
    more = "as much" if abs(gap) < _SAME else "less" if gap < 0 else "more"
    names = f"in {models[0].name} {'as' if abs(gap) < _SAME else 'than'} in {models[1].name}"
    return f"Attention passes on {more} of the token's own value {names}: {shown(first)} against {shown(second)}."


def qualifications(models: Sequence[DiagnosedModel]) -> str:
    """What stands below the headline."""
    similarities = [model.mean("similarity") for model in models]
    if None in similarities:
        gaps = models[similarities.index(None)].gaps()
        reasons = dict.fromkeys(reason for title, reason, _ in gaps if title == "Similarity to the own value")
        return f"The reason: {'; '.join(reasons)}." if reasons else ""
    has_after = any(model.means("similarity_after") for model in models)
    if len(models) == 2:
        reaching = [model.reaching() for model in models]
        parts = [f"Mean cosines of what reaches the output projection; they differ by {difference(*reaching)}"]
        if has_after:
            parts.append(f"Before any exclusive projection: {shown(similarities[0])} against {shown(similarities[1])}")
        return f"{'. '.join(parts)}."
    centred, weight = models[0].mean("centred_similarity"), models[0].mean("self_weight")
    parts = []
    if centred is not None:
        parts.append(f"Without the direction that all values share it is {shown(centred)}")
    if has_after:
        parts.append(
            f"The exclusive projection leaves {shown(models[0].reaching())} of it in what reaches the output projection"
        )
    elif weight is not None:
        parts.append(f"A token gives itself {weight:.0%} of its attention")
    return f"{'. '.join(parts)}." if parts else ""
