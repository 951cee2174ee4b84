"""All metrics of a diagnosis, in the order of the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of one attention layer."""

    name: str  #: its key in ``diagnostics.json``
    symbol: str  #: the papers' notation
    title: str  #: a few words
    meaning: str  #: a sentence
    low: float | None  #: the least possible value, if there is one
    high: float | None  #: the greatest possible value, if there is one


METRICS: tuple[Metric, ...] = (
    Metric("similarity", "cos(yᵢ, vᵢ)", "Similarity to the own value",
        "How far attention's output points along the token's own value, before any exclusive projection: the "
        "attention similarity bias.", -1.0, 1.0),
    Metric("similarity_after", "cos(zᵢ, vᵢ)", "Similarity after exclusion",
        "The same of what reaches the output projection, after the exclusive projection.", -1.0, 1.0),
    Metric("value_similarity", "cos(vᵢ, vⱼ)", "Similarity of values",
        "Mean cosine of a token's value with the values of the other tokens of its sequence, in the same head.",
        -1.0, 1.0),
    Metric("centred_similarity", "cos(yᵢ, vᵢ) ⊥ m̂", "Similarity without the common direction",
        "The similarity to the own value once the mean direction m̂ of the sequence's values is taken out of both: "
        "what is left is no direction that all tokens share.", -1.0, 1.0),
    Metric("self_weight", "aᵢᵢ", "Self-weight",
        "The attention weight of a token on itself.", 0.0, 1.0),
    Metric("spikiness", "‖p‖₁ / (‖p‖₂² L)", "Spikiness",
        "Share of the L tokens that may be attended over which a row of weights is spread: 1 is uniform, and lower "
        "is spikier.", 0.0, 1.0),
    Metric("entropy", "H(p)", "Entropy",
        "Entropy of a row of attention weights, in nats.", 0.0, None),
    Metric("effective_tokens", "exp H(p)", "Effective tokens",
        "Over how many tokens a row of weights is spread: as many as a uniform row of its entropy has.", 1.0, None),
    Metric("sink_mass", "aᵢ₁", "Sink mass",
        "The attention weight on the first token of the sequence, of all tokens after it.", 0.0, 1.0),
    Metric("query_temperature", "τ_q", "Query temperature",
        "Inverse temperature of a token's query: higher is spikier.", None, None),
    Metric("key_temperature", "τ_k", "Key temperature",
        "Inverse temperature of a token's key.", None, None),
    Metric("value_temperature", "τ_v", "Value temperature",
        "Factor of a token's value: near 0 a token is not listened to.", None, None),
    Metric("token_norm", "‖Wᵀx‖", "Norm of W along a token",
        "Length of Wᵀx, W = W_q W_kᵀ and x the layer's input: how strongly the weights themselves, without a "
        "temperature, let a token's query choose.", 0.0, None),
    Metric("operator_norm", "‖W‖", "Operator norm of W",
        "Largest singular value of W = W_q W_kᵀ: the largest score that the weights can give two unit vectors, "
        "but for the scale.", 0.0, None),
)  # fmt: skip

#: Metrics that the report shows token by token.
PICTURED: tuple[str, ...] = (
    "similarity",
    "self_weight",
    "effective_tokens",
    "query_temperature",
    "value_temperature",
    "token_norm",
)
