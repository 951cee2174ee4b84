"""Proposition 1 of the SSA paper: an attention map with one flat and one spiky row costs a W that grows as the two
tokens grow alike.

One layer, softmax(E W Eᵀ) without the factor 1/√D, on two unit tokens e1 and e2 of similarity ρ. With the logits
ℓ_i = e_iᵀ W (e2 − e1), row i is (1 − σ(ℓ_i), σ(ℓ_i)). *To ε* means here that no entry of the map is further than ε
from P* = [[1−γ, γ], [0, 1]]. Every usual norm of P − P* (a row's or the map's sum, Frobenius, operator) is at least
this entry, so that the bound is held against the mildest demand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.papers.experiment import Budget, Chart, Curve, Estimate, Finding, Job, Outcome, Table
from evidence.papers.norm_bounds import DIMENSION, Check, Effort, findings, least_norm, operator_norm, unit_pairs
from exsel.functional import attention

ERRORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
SIMILARITIES = (-0.9, -0.5, 0.0, 0.5, 0.9, 0.99)
GAMMAS = (0.05, 0.2, 0.5, 0.8)
#: What log10 ε, ρ and γ of the random settings lie between.
RANGES = ((-10.0, -0.5), (-0.999, 0.999), (0.001, 0.999))
# Where the figures and the table look.
SHOWN_GAMMA = 0.8
SHOWN_ERROR = 1e-4
SHOWN_SIMILARITY = 0.99
_EPS = torch.finfo(torch.float64).eps


_PLANS: Mapping[Budget, Effort] = {
    "smoke": Effort(trials=1000, starts=1, steps=100),
    "cpu": Effort(trials=100_000, starts=4, steps=1000),
    "gpu": Effort(trials=100_000, starts=4, steps=1000),
}


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Settings, alike in shape: ε, ρ, γ."""

    error: Tensor
    similarity: Tensor
    gamma: Tensor

    @classmethod
    def grid(cls, starts: int = 1) -> Cells:
        """Every ε, ρ and γ: ``[starts, ε, ρ, γ]``."""
        axes = (torch.tensor(values, dtype=torch.float64) for values in (ERRORS, SIMILARITIES, GAMMAS))
        error, similarity, gamma = (grid.expand(starts, -1, -1, -1) for grid in torch.meshgrid(*axes, indexing="ij"))
        return cls(error=error, similarity=similarity, gamma=gamma)

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Cells:
        """Random ones, ``[count]``: log ε, ρ and γ uniform over what :func:`run_proposition_1` says."""
        uniform = torch.rand(3, count, generator=generator, dtype=torch.float64)
        error, similarity, gamma = (
            low + (high - low) * values for (low, high), values in zip(RANGES, uniform, strict=True)
        )
        return cls(error=10**error, similarity=similarity, gamma=gamma)

    @property
    def distance(self) -> Tensor:
        """‖e1 − e2‖."""
        return (2 - 2 * self.similarity).sqrt()

    @property
    def target(self) -> Tensor:
        """P*, ``[..., 2, 2]``."""
        one, zero = torch.ones_like(self.gamma), torch.zeros_like(self.gamma)
        return torch.stack((torch.stack((1 - self.gamma, self.gamma), -1), torch.stack((zero, one), -1)), -2)

    def allowed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The least and the greatest ℓ1 within ε of γ, infinite where 0 or 1 is, and the least ℓ2."""
        low, high = (self.gamma - self.error).clamp_min(0), (self.gamma + self.error).clamp_max(1)
        return torch.logit(low), torch.logit(high), torch.log1p(-self.error) - self.error.log()


def bound(cells: Cells) -> Tensor:
    """The proposition's ‖e1 − e2‖⁻¹ (2 − 2ρ²)^(−1/2) (log(1/4ε) − Γ),  Γ = |log((1−γ)/γ)|.

    Where it is negative it says nothing.
    """
    gap = -(4 * cells.error).log() - torch.logit(cells.gamma).abs()
    return gap / (cells.distance * (2 - 2 * cells.similarity.square()).sqrt())


def norm_of_logits(first: Tensor, second: Tensor, cells: Cells) -> Tensor:
    """The least ‖W‖ with logits ℓ1 and ℓ2: √((ℓ1² + ℓ2² − 2ρ ℓ1ℓ2)/(1 − ρ²)) / ‖e1 − e2‖.

    W (e2 − e1) must be a vector of products ℓ1, ℓ2 with e1, e2. The shortest lies in their span, and a W of rank one
    has no more norm than that vector asks for.
    """
    square = first.square() + second.square() - 2 * cells.similarity * first * second
    return (square / (1 - cells.similarity.square())).sqrt() / cells.distance


def least(cells: Cells) -> Tensor:
    """The least ‖W‖ whose map is within ε of P*: the shortest vector's logits, ℓ1 = ρ ℓ2, or the nearest allowed.

    ℓ2 is the least allowed: the norm grows with it wherever ℓ1 = ρ ℓ2 or ℓ1 is the nearest to it.
    """
    low, high, second = cells.allowed()
    first = torch.minimum(torch.maximum(cells.similarity * second, low), high)
    return norm_of_logits(first, second, cells)


def with_temperatures(cells: Cells, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A map within ε of P* with an inverse temperature for each query, and the least max(τ_1, τ_2) ‖W‖.

    The logits then are τ_i e_iᵀ W (e2 − e1): their sizes are the temperatures' affair, their signs are not, since an
    inverse temperature is not negative. What remains is the shortest vector with products of *at least* |ℓ_i| and the
    sign of ℓ_i: ℓ2 e2 where ρ has the sign of ℓ1 and |ρ| ℓ2 ≥ |ℓ1|. Then max(τ_1, τ_2) ‖W‖ = ℓ2/‖e1 − e2‖, without the
    factor (1 − ρ²)^(−1/2) that grows as the tokens grow alike. Where ρ > 0 and γ < 1/2 the signs differ, and a
    temperature is of little help.

    Args:
        cells: the settings.
        tokens: e1 and e2, ``[..., 2, D]``.

    Returns:
        W ``[..., D, D]`` and τ ``[..., 2]``, of which the larger is 1.
    """
    low, high, second = cells.allowed()
    # Of the allowed first logits the smallest in size is the mildest demand; it is never larger than ℓ2.
    first = torch.minimum(torch.maximum(torch.zeros_like(low), low), high)
    logits = torch.stack((first, second), dim=-1)
    alone = second.unsqueeze(-1) * tokens[..., 1, :]
    both = (torch.linalg.pinv(tokens) @ logits.unsqueeze(-1)).squeeze(-1)
    is_met = cells.similarity * second * first.sign() >= first.abs()
    vector = torch.where(is_met.unsqueeze(-1), alone, both)
    across = tokens[..., 1, :] - tokens[..., 0, :]
    weight = vector.unsqueeze(-1) * (across / across.square().sum(-1, keepdim=True)).unsqueeze(-2)
    products = (tokens @ vector.unsqueeze(-1)).squeeze(-1)
    # A logit of 0 needs no product, and has none where ρ = 0.
    return weight, torch.where(logits == 0, 0, logits / products)


def search(cells: Cells, *, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Matrices whose maps are within ε of P*, and whose norms a descent has made small.

    W = M + E⁺(ℓ − E M u) uᵀ/‖u‖² with u = e2 − e1 has the logits ℓ; they move within what is allowed, and M is free.

    Returns:
        W ``[..., D, D]`` and the tokens ``[..., 2, D]``.
    """
    tokens = torch.stack(unit_pairs(cells.distance, generator), dim=-2)
    dual = torch.linalg.pinv(tokens)
    across = (tokens[..., 1, :] - tokens[..., 0, :]).unsqueeze(-1)
    along = across / across.square().sum(-2, keepdim=True)
    low, high, second = cells.allowed()
    # An end that is infinite is never where the norm is least.
    low, high = torch.maximum(low, -second), torch.minimum(high, second)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*low.shape, *shape, generator=generator, dtype=torch.float64).requires_grad_()

    free, place, more = draw(DIMENSION, DIMENSION), draw(), draw()

    def build() -> Tensor:
        first = (low + high) / 2 + (high - low) / 2 * place.sin()
        logits = torch.stack((first, second * (1 + more.square())), dim=-1).unsqueeze(-1)
        weight: Tensor = free + dual @ (logits - tokens @ free @ across) @ along.mT
        return weight

    return least_norm(build, (free, place, more), steps), tokens


def attention_map(weight: Tensor, tokens: Tensor, tau: Tensor | None = None) -> Tensor:
    """softmax(τ ⊙ E W Eᵀ) by :func:`exsel.attention`: ``[..., D, D]`` and ``[..., T, D]`` to ``[..., T, T]``."""
    query, key = (tokens @ weight).unsqueeze(-3), tokens.unsqueeze(-3)
    identity = torch.eye(tokens.shape[-2], dtype=tokens.dtype).expand(*key.shape[:-1], -1)
    query_scale = None if tau is None else tau.unsqueeze(-2)
    return attention(query, key, identity, scale=1.0, query_scale=query_scale, backend="reference").squeeze(-3)


def overshoot(weight: Tensor, tokens: Tensor, cells: Cells, tau: Tensor | None = None) -> Tensor:
    """By how much the map is further from P* than ε and rounding: negative where it is near enough.

    The scores are sums of numbers up to ‖W‖, and the largest entries are near 1.
    """
    error = (attention_map(weight, tokens, tau) - cells.target).abs().amax((-2, -1))
    return error - cells.error - 8 * _EPS * (1 + operator_norm(weight))


def run_proposition_1(job: Job) -> Outcome:
    """The bound against the least norms, with what temperatures need."""
    plan = _PLANS[job.budget]
    cells, one = Cells.grid(plan.starts), Cells.grid()
    random, stated, sharper, closed = [], [], [], []
    found, selective, within = [], [], []
    for seed in job.seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = Cells.draw(plan.trials, generator)
        random.append(Check.of(math.sqrt(2) * bound(drawn), least(drawn), 1e-9))
        weight, tokens = search(cells, steps=plan.steps, generator=generator)
        norm = operator_norm(weight)
        # What is computed of tokens so alike is divided by 1 − ρ².
        rounding = 64 * _EPS / (1 - cells.similarity.square())
        stated.append(Check.of(bound(cells), norm, rounding))
        sharper.append(Check.of(math.sqrt(2) * bound(cells), norm, rounding))
        closed.append(Check.of(least(cells), norm, rounding))
        found.append(norm.amin(0))
        scaled, tau = with_temperatures(cells, tokens)
        selective.append((tau.amax(-1) * operator_norm(scaled))[0])
        excess = torch.maximum(overshoot(weight, tokens, cells), overshoot(scaled, tokens, cells, tau))
        within.append(float(((excess <= 0) & (tau >= 0).all(-1)).double().mean()))
    is_within = min(within) == 1
    is_exact = is_within and not any(check.violations for check in (*stated, *closed))
    told = int((bound(one) > 0).sum())
    return Outcome(
        verdict="exact" if is_exact else "not reproduced",
        conclusion=_conclude(stated, (*sharper, *random), selective[0])
        if is_exact
        else "The bound failed: see the findings.",
        size=(
            f"two unit tokens in {DIMENSION} dimensions; {len(ERRORS)} ε from {ERRORS[0]:g} to {ERRORS[-1]:g}, "
            f"{len(SIMILARITIES)} ρ, {len(GAMMAS)} γ, {plan.starts} starts; the bound is positive in {told} of "
            f"{bound(one).numel()} settings, and {plan.trials:,} random ones a seed; to ε: no entry of the map is "
            "further from P* than ε; float64, no accelerator needed"
        ),
        findings=(
            *findings("the bound", stated),
            *findings("√2 times the bound", sharper),
            *findings("√2 times the bound, the closed form at random settings", random),
            *findings("the least ‖W‖ in closed form", closed),
            Finding(
                quantity="least ‖W‖ found / in closed form, at the worst setting",
                ours=Estimate.of(*(float((norm / least(one)[0]).max()) for norm in found)),
                expected="near 1",
                digits=6,
            ),
            Finding(
                quantity="share of the maps within ε, with and without temperatures",
                ours=Estimate.of(*within),
                expected="1",
                holds=is_within,
                digits=3,
            ),
        ),
        charts=(_by_error(found[0], selective[0]), _by_similarity(found[0], selective[0])),
        tables=(_table(found[0], selective[0]),),
    )


def _conclude(stated: Sequence[Check], sharper: Sequence[Check], selective: Tensor) -> str:
    largest = max(check.largest_ratio for check in stated)
    saved = (least(Cells.grid())[0] / selective)[ERRORS.index(SHOWN_ERROR), SIMILARITIES.index(SHOWN_SIMILARITY)]
    constant = (
        "never came nearer to ‖W‖ than"
        if any(check.violations for check in sharper)
        else "holds with √2 times its constant as well: the largest bound / ‖W‖ is"
    )
    savings = ", ".join(f"{float(factor):.1f} (γ = {gamma:g})" for factor, gamma in zip(saved, GAMMAS, strict=True))
    return (
        f"The bound held everywhere and {constant} {largest:.3f}. At ρ = {SHOWN_SIMILARITY:g} and ε = {SHOWN_ERROR:g} "
        f"temperatures make the norm needed smaller by a factor of {savings}: they help where both tokens prefer "
        "the second one, γ ≥ 1/2, as they change no sign."
    )


def _pick(values: Tensor, *, gamma: float = SHOWN_GAMMA) -> Tensor:
    """Of ``[ε, ρ, γ]`` one γ: ``[ε, ρ]``."""
    return values[..., GAMMAS.index(gamma)]


def _curves(
    name: str, x: Sequence[float], found: Tensor, selective: Tensor, stated: Tensor, closed: Tensor
) -> list[Curve]:
    return [
        Curve(label=f"bound{name}", x=tuple(x), y=tuple(stated.tolist()), style="dashed"),
        Curve(label=f"least, closed form{name}", x=tuple(x), y=tuple(closed.tolist())),
        Curve(label=f"least found{name}", x=tuple(x), y=tuple(found.tolist()), style="points"),
        Curve(label=f"with temperatures{name}", x=tuple(x), y=tuple(selective.tolist())),
    ]


def _by_error(found: Tensor, selective: Tensor) -> Chart:
    cells = Cells.grid()
    curves = []
    for similarity in (0.0, SHOWN_SIMILARITY):
        column = SIMILARITIES.index(similarity)
        of_column = (_pick(values)[:, column] for values in (found, selective, bound(cells)[0], least(cells)[0]))
        curves += _curves(f", ρ = {similarity:g}", ERRORS, *of_column)
    return Chart(
        name="by-error",
        title="Norm that a map of two tokens needs",
        x_label="error ε of the map",
        y_label="‖W‖, with temperatures max τ ‖W‖",
        curves=tuple(curves),
        log_x=True,
        caption=f"γ = {SHOWN_GAMMA:g}. The norm grows with log(1/ε); temperatures take away the "
        "similarity's factor alone.",
    )


def _by_similarity(found: Tensor, selective: Tensor) -> Chart:
    cells = Cells.grid()
    row = ERRORS.index(SHOWN_ERROR)
    of_row = (_pick(values)[row] for values in (found, selective, bound(cells)[0], least(cells)[0]))
    return Chart(
        name="by-similarity",
        title="Norm that a map of two tokens needs",
        x_label="similarity ρ of the tokens",
        y_label="‖W‖, with temperatures max τ ‖W‖",
        curves=tuple(_curves("", SIMILARITIES, *of_row)),
        log_y=True,
        caption=f"γ = {SHOWN_GAMMA:g}, ε = {SHOWN_ERROR:g}.",
    )


def _table(found: Tensor, selective: Tensor) -> Table:
    cells = Cells.grid()
    stated, closed = bound(cells)[0], least(cells)[0]
    row = ERRORS.index(SHOWN_ERROR)
    return Table(
        title=f"‖W‖ for ε = {SHOWN_ERROR:g}",
        headings=("ρ", "γ", "bound", "least, closed form", "least found", "with temperatures"),
        rows=tuple(
            (
                f"{rho:g}",
                f"{gamma:g}",
                *(f"{float(values[row, i, j]):.3f}" for values in (stated, closed, found, selective)),
            )
            for i, rho in enumerate(SIMILARITIES)
            for j, gamma in enumerate(GAMMAS)
        ),
    )
