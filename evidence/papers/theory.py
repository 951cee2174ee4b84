"""The SSA paper's theory in float64: Lemma 1, Proposition 1 and Proposition 2 (Zhang et al. 2024).

A claim is a table of checks, each a ratio that is never above 1 but for rounding, at random settings in several
dimensions. Of a lower bound on ‖W‖: neither it nor the least ‖W‖ in closed form is above that of random W that meet the
conditions; an explicit W meets them with the least norm; and a certificate shows that every W has at least that.

The two bounds ask the same of one vector. W = x wᵀ with a unit w has ‖Wᵀt‖ = |xᵀt|, and W = x uᵀ/‖u‖² with
u = e2 − e1 has the logits e_iᵀ W u = xᵀe_i. Both are about the shortest x of given products: see :class:`Demand`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import matrix_norm, vector_norm

from evidence.papers.outcome import Finding, Job, Outcome, Table
from exsel.functional import attention
from exsel.intervals import Estimate
from exsel.reference import position_term
from exsel.report.charts import Chart, Curve

EPS = torch.finfo(torch.float64).eps
DIMENSIONS = (2, 4, 16)
#: By what they are of, ``[trials]``; and what draws so many trials of tokens of so many dimensions.
Ratios = Mapping[str, Tensor]
Draw = Callable[[int, int, torch.Generator], Ratios]

# Proposition 2's n, p, and α, the share of a that is wanted; p and α that are shown alone.
_LENGTHS, _POWERS, _SHARES = tuple(4 * 2**power for power in range(15)), (0.25, 0.5, 1.0), (0.5, 0.6, 0.8, 0.95)
_POWER, _SHARE = 0.5, 0.8

#: The forms of τ_n that are fitted, in the papers' words, as functions of two numbers and n: plain attention with the
#: best scale; the proposition's; SSA's positional term, with the scale c of the weights.
FORMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "constant": lambda x, n: x[0].expand_as(n),
    "const + p log n": lambda x, n: x[0] + x[1] * n.log(),
    "c (1 + σ(a) log n)": lambda x, n: x[0] * position_term(n, x[1:]).squeeze(0),
}


def outcome_of(
    job: Job, draw: Draw, conclusion: str, *more: Finding, size: str, charts: tuple[Chart, ...],
    tables: tuple[Table, ...] = (),
) -> Outcome:  # fmt: skip
    """What the checks say, with more numbers; the conclusion is told the first check's largest ratio."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for seed in job.seeds:
        generator = torch.Generator().manual_seed(seed)
        rows = [draw(300 if job.budget == "smoke" else 10_000, dimension, generator) for dimension in DIMENSIONS]
        for name in rows[0]:
            found[name].append(torch.cat([row[name] for row in rows]))
    # What is not a number is a violation.
    violations = {name: [int((~(ratio <= 1)).sum()) for ratio in seeds] for name, seeds in found.items()}
    largest = {name: [float(ratio.max()) for ratio in seeds] for name, seeds in found.items()}
    counts, broken = violations.values(), [name for name, seeds in violations.items() if any(seeds)]
    first = max(next(iter(largest.values())))
    trials = [sum(map(len, ratios)) for ratios in zip(*found.values(), strict=True)]
    return Outcome(
        verdict="not reproduced" if broken else "exact",
        conclusion=f"Above 1: {'; '.join(broken)}." if broken else conclusion.format(largest=first, left=1 - first),
        size=f"unit vectors of {', '.join(map(str, DIMENSIONS))} dimensions; {size}; float64, no accelerator needed",
        findings=(
            of_seeds("violations, all checks", map(sum, zip(*counts, strict=True)), 0, "none", not broken),
            of_seeds("trials, all checks", trials, 0),
            *(of_seeds(f"largest ratio: {name}", largest[name], 6, "at most 1", name not in broken) for name in found),
            *more,
        ),
        charts=charts,
        tables=tables,
    )


def of_seeds(what: str, values: Iterable[float], digits: int, expected: str = "", holds: bool | None = None) -> Finding:
    """A finding of one value a seed."""
    return Finding(quantity=what, ours=Estimate.of(*values), expected=expected, holds=holds, digits=digits)


def chart(
    name: str, title: str, axes: tuple[str, str], x: Sequence[float], y: Mapping[str, Tensor], why: str, log: str = "x"
) -> Chart:
    """A chart of values by label, with its caption; the axes named in ``log`` are logarithmic."""
    curves = tuple(
        Curve(label=label, x=tuple(x), y=tuple(each.tolist()), style="dashed" if "bound" in label else "line")
        for label, each in y.items()
    )
    return Chart(
        name=name, title=title, x_label=axes[0], y_label=axes[1], curves=curves, caption=why,
        log_x="x" in log, log_y="y" in log,
    )  # fmt: skip


@dataclass(frozen=True)
class Demand:
    """What a vector's products with unit tokens t1 and t2 must be, with the tokens' distance; all alike in shape.

    ``low`` to ``high`` with t1, and ``least`` or more with t2.
    """

    low: Tensor
    high: Tensor
    least: Tensor
    distance: Tensor

    @property
    def similarity(self) -> Tensor:
        """ρ = t1ᵀt2."""
        return 1 - self.distance.square() / 2

    @property
    def rest(self) -> Tensor:
        """1 − ρ², without the cancellation of a small distance."""
        return self.distance.square() * (1 - self.distance.square() / 4)

    def products(self) -> Tensor:
        """Of the shortest vector, ``[..., 2]``: those of ``least`` · t2, or the nearest to them that is allowed."""
        return torch.stack(((self.similarity * self.least).clamp(self.low, self.high), self.least), dim=-1)

    def length(self, products: Tensor) -> Tensor:
        """√(g² + (f − ρ g)²/(1 − ρ²)), the length of the shortest vector of these products f and g."""
        first, second = products.unbind(-1)
        return (second.square() + (first - self.similarity * second).square() / self.rest).sqrt()

    def certificate(self, tokens: Tensor) -> Tensor:
        """A lower bound of the length of every vector that meets the demand, ``[..., 2, D]`` to ``[...]``.

        With the shortest, y = c1 t1 + c2 t2: ‖x‖ ≥ xᵀy/‖y‖, and xᵀy = c1 xᵀt1 + c2 xᵀt2 is least at ends of what is
        allowed. In Lemma 1 the vectors Wᵀt stand for the numbers xᵀt: ‖W‖ ≥ ‖Wᵀy‖/‖y‖, ‖Wᵀy‖ ≥ c2 L_a − |c1| L_b.
        """
        first, second = self.products().unbind(-1)
        c1 = (first - self.similarity * second) / self.rest
        c2 = second - self.similarity * c1
        # An end that is infinite is not asked for where c1 is 0.
        at_first = torch.where(c1 == 0, 0, c1 * torch.where(c1 > 0, self.low, self.high))
        product = at_first + c2 * torch.where(c2 < 0, math.inf, self.least)
        y = (torch.stack((c1, c2), dim=-1).unsqueeze(-2) @ tokens).squeeze(-2)
        return (product / y.square().sum(-1).sqrt()).clamp_min(0)


def weight_of(products: Tensor, tokens: Tensor, direction: Tensor) -> Tensor:
    """x dᵀ/‖d‖², ``[..., D, D]``, with the shortest x of these products with the tokens."""
    x: Tensor = torch.linalg.pinv(tokens) @ products.unsqueeze(-1)
    return x * (direction / direction.square().sum(-1, keepdim=True)).unsqueeze(-2)


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """``[count]``, in float64."""
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def draw_tokens(distance: Tensor, dimension: int, generator: torch.Generator) -> Tensor:
    """Random pairs of unit vectors so far apart: ``[...]`` to ``[..., 2, dimension]``."""
    raw = torch.randn(*distance.shape, dimension, 2, generator=generator, dtype=torch.float64)
    middle, across = torch.linalg.qr(raw)[0].unbind(-1)
    sine = (distance / 2).unsqueeze(-1)
    middle, across = (1 - sine.square()).sqrt() * middle, sine * across
    return torch.stack((middle + across, middle - across), dim=-2)


def spikiness_bound(spiky: Tensor, flat: Tensor, distance: Tensor) -> Tensor:
    """Lemma 1's (L_a − L_b)/‖a − b‖."""
    return (spiky - flat) / distance


def check_lemma_1(trials: int, dimension: int, generator: torch.Generator) -> Ratios:
    """Random W and the L_a and L_b that they have; an explicit W for L_a = 1 and random L_b; W with temperatures."""
    distance = 10 ** uniform(-3, 0.3, trials, generator)
    tokens = draw_tokens(distance, dimension, generator)  # b and a
    random = torch.randn(trials, dimension, dimension, generator=generator, dtype=torch.float64)
    wanted = vector_norm(tokens @ random, dim=-1)
    flat, spiky = wanted.unbind(-1)
    norm, own = matrix_norm(random, ord=2), Demand(-flat, flat, spiky, distance)

    level = uniform(0, 1, trials, generator)
    demand = Demand(-level, level, torch.ones_like(level), distance)
    least = demand.length(demand.products())
    built = weight_of(demand.products(), tokens, tokens[:, 0])
    at_b, at_a = vector_norm(tokens @ built, dim=-1).unbind(-1)

    # With temperatures W = max(L_a, L_b) I is enough.
    largest = wanted.amax(-1, keepdim=True)
    tau, scaled = wanted / largest, largest.unsqueeze(-1) * torch.eye(dimension, dtype=torch.float64)
    error = vector_norm(tau.unsqueeze(-1) * tokens @ scaled, dim=-1) - wanted
    # Rounding of a sum of D products, and of differences of numbers up to ‖W‖.
    rounding = 8 * dimension * EPS / demand.rest.sqrt()
    some = 1 + rounding
    return {
        "bound / least ‖W‖": spikiness_bound(demand.least, level, distance) / (least * some),
        "bound / ‖W‖ of random W": spikiness_bound(spiky, flat, distance)
        / (norm * (1 + 4 * dimension * EPS / distance)),
        "least ‖W‖ / ‖W‖ of random W": own.length(own.products()) / (norm * some),
        "least ‖W‖ / proven lower bound of every ‖W‖": least / (demand.certificate(tokens) * some),
        "‖W‖ of the explicit W / least ‖W‖": matrix_norm(built, ord=2) / (least * some),
        "L_a / ‖Wᵀa‖, explicit W": demand.least / (at_a + rounding * least),
        "‖Wᵀb‖ / L_b, explicit W": at_b / (level + rounding * least),
        "‖τW‖ / max(L_a, L_b), with temperatures": matrix_norm(scaled, ord=2) / (largest.squeeze(-1) * (1 + 4 * EPS)),
        "error of ‖τWᵀa‖ and ‖τWᵀb‖ / rounding": (error.abs() / (4 * dimension * EPS * largest)).amax(-1),
    }


def run_lemma_1(job: Job) -> Outcome:
    """The bound and the least norm against matrices, and what temperatures need."""
    distance = torch.tensor((0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4), dtype=torch.float64)
    shown = {"with temperatures": torch.ones_like(distance)}
    for level in (0.0, 0.5):
        spiky, flat = torch.ones_like(distance), torch.full_like(distance, level)
        demand = Demand(-flat, flat, spiky, distance)
        shown[f"bound, L_b = {level:g}"] = spikiness_bound(spiky, flat, distance)
        shown[f"least, L_b = {level:g}"] = demand.length(demand.products())
    title = "What L_a = 1 beside L_b costs in norm"
    caption = "The nearer the two tokens, the larger the W that tells them apart; temperatures need no more than 1."
    return outcome_of(
        job,
        check_lemma_1,
        "The bound held and is nearly reached (but for {left:.0e} of the least norm) where ‖a − b‖ is small beside "
        "L_a − L_b; elsewhere the least norm is larger. An explicit W has the least norm in closed form, and none has "
        "less. Temperatures made both spikinesses with ‖τW‖ = max(L_a, L_b).",
        size="‖a − b‖ from 0.001 to 2, L_a and L_b of random W, and L_a = 1 with L_b from 0 to 1",
        charts=(chart("norm", title, ("‖a − b‖", "‖W‖"), distance.tolist(), shown, caption, "xy"),),
    )


def map_bound(error: Tensor, gamma: Tensor, distance: Tensor) -> Tensor:
    """Proposition 1's ‖e1 − e2‖⁻¹ (2 − 2ρ²)^(−1/2) (log(1/4ε) − Γ),  Γ = |log((1−γ)/γ)|; negative, it says nothing."""
    gap = -(4 * error).log() - torch.logit(gamma).abs()
    return gap / (distance.square() * (2 - distance.square() / 2).sqrt())


def map_demand(error: Tensor, gamma: Tensor, distance: Tensor) -> Demand:
    """What the logits ℓ_i = e_iᵀ W (e2 − e1) of softmax(E W Eᵀ) within ε of P* = [[1−γ, γ], [0, 1]] must be.

    Row i is (1 − σ(ℓ_i), σ(ℓ_i)). *Within ε*: no entry of the map is further than ε from P*. Every usual norm of
    P − P* is at least that, so the bound is held against the mildest demand.
    """
    low, high = (gamma - error).clamp_min(0), (gamma + error).clamp_max(1)
    return Demand(torch.logit(low), torch.logit(high), torch.log1p(-error) - error.log(), distance)


def with_temperatures(demand: Demand) -> tuple[Tensor, Tensor]:
    """The products xᵀe_i of a W that needs an inverse temperature for each query, and these; the larger is 1.

    Inverse temperatures are not negative: they choose the sizes of the logits τ_i xᵀe_i and not their signs, so xᵀe_i
    must have the sign of ℓ_i and *at least* its size. x = ℓ2 e2 does where ρ has the sign of ℓ1 and |ρ| ℓ2 ≥ |ℓ1|.
    Then max τ ‖W‖ = ℓ2/‖e1 − e2‖, without the factor (1 − ρ²)^(−1/2) that grows as the tokens grow alike. Where ρ > 0
    and γ < 1/2 the signs differ, and a temperature is of little help.
    """
    # Of the allowed ℓ1 the smallest in size is the mildest demand; it is never larger than ℓ2.
    first, along = torch.zeros_like(demand.low).clamp(demand.low, demand.high), demand.similarity * demand.least
    products = torch.where(along * first.sign() >= first.abs(), along, first)
    # A logit of 0 needs no product, and has none where ρ = 0.
    tau = torch.where(first == 0, 0, first / products)
    return torch.stack((products, demand.least), dim=-1), torch.stack((tau, torch.ones_like(tau)), dim=-1)


def shares_of_second(weight: Tensor, tokens: Tensor, tau: Tensor) -> Tensor:
    """What the queries of e1 and e2 give to e2 in softmax(τ ⊙ E W Eᵀ), by :func:`exsel.attention`: ``[..., 2]``."""
    query, key = (tokens @ weight).unsqueeze(-3), tokens.unsqueeze(-3)
    value = torch.tensor([[0.0], [1.0]], dtype=tokens.dtype).expand(*key.shape[:-1], 1)
    return attention(query, key, value, scale=1.0, query_scale=tau.unsqueeze(-2), backend="reference")[..., 0, :, 0]


def check_proposition_1(trials: int, dimension: int, generator: torch.Generator) -> Ratios:
    """Random ε, γ and ρ; of each a random W within ε, near the least norm or far above; the explicit W."""
    error, gamma = 10 ** uniform(-10, -0.5, trials, generator), uniform(0.001, 0.999, trials, generator)
    distance = (2 - 2 * uniform(-0.999, 0.999, trials, generator)).sqrt()
    tokens = draw_tokens(distance, dimension, generator)  # e1 and e2
    across = tokens[:, 1] - tokens[:, 0]
    demand, bound = map_demand(error, gamma, distance), map_bound(error, gamma, distance)
    least = demand.length(demand.products()) / distance

    # Any logits that are allowed, and any W but for these.
    scale = 10 ** uniform(-4, 0.5, trials, generator)
    share = torch.lerp(demand.low.sigmoid(), demand.high.sigmoid(), uniform(0, 1, trials, generator))
    logits = torch.stack((share.logit(), demand.least * (1 + scale * uniform(0, 1, trials, generator))), dim=-1)
    raw = torch.randn(trials, dimension, dimension, generator=generator, dtype=torch.float64)
    free = (scale * least)[:, None, None] * raw
    random = free + weight_of(logits - (tokens @ free @ across.unsqueeze(-1)).squeeze(-1), tokens, across)

    products, tau = with_temperatures(demand)
    weights = torch.stack((random, *(weight_of(each, tokens, across) for each in (demand.products(), products))))
    taus = torch.stack((torch.ones_like(tau), torch.ones_like(tau), tau))
    norm, built, scaled = norms = matrix_norm(weights, ord=2)
    target = torch.stack((gamma, torch.ones_like(gamma)), dim=-1)
    wrong = (shares_of_second(weights, tokens.expand(3, -1, -1, -1), taus) - target).abs().amax(-1)
    # What is computed of tokens so alike is divided by 1 − ρ². Scores are sums of numbers up to ‖W‖.
    some, of_map = 1 + 16 * EPS / demand.rest, 8 * EPS * (1 + norms)
    return {
        "bound / ‖W‖ of random W": bound / (norm * some),
        "√2 times the bound / least ‖W‖": math.sqrt(2) * bound / (least * some),
        "least ‖W‖ / ‖W‖ of random W": least / (norm * some),
        "least ‖W‖ / proven lower bound of every ‖W‖": least * distance / (demand.certificate(tokens) * some),
        "‖W‖ of the explicit W / least ‖W‖": built / (least * some),
        "max τ ‖W‖ / least ‖W‖, with temperatures": tau.amax(-1) * scaled / (least * some),
        "error of the map / ε, every W": (wrong / (error + of_map)).flatten(),
    }


def map_norms(error: Any, similarity: Any, gamma: Any) -> Mapping[str, Tensor]:
    """What W's norm must be, by what it is, for settings of which one may be many."""
    settings = (torch.as_tensor(each, dtype=torch.float64) for each in (error, gamma, similarity))
    error, gamma, similarity = torch.broadcast_tensors(*settings)
    distance = (2 - 2 * similarity).sqrt()
    demand = map_demand(error, gamma, distance)
    return {
        "bound": map_bound(error, gamma, distance),
        "least": demand.length(demand.products()) / distance,
        "with temperatures": demand.length(with_temperatures(demand)[0]) / distance,
    }


def run_proposition_1(job: Job) -> Outcome:
    """The bound and the least norm against matrices, and what temperatures need."""
    errors, rhos, gammas = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8), (-0.9, -0.5, 0, 0.5, 0.9, 0.99), (0.05, 0.2, 0.5, 0.8)
    error, rho, gamma = 1e-4, 0.99, 0.8
    saved = {}
    for each in rhos:
        norms = map_norms(error, each, gammas)
        saved[each] = [f"{factor:.1f}" for factor in (norms["least"] / norms["with temperatures"]).tolist()]
    savings = ", ".join(f"{factor} (γ = {each:g})" for factor, each in zip(saved[rho], gammas, strict=True))
    headings = ("ρ", *(f"γ = {each:g}" for each in gammas))
    rows = tuple((f"{each:g}", *factors) for each, factors in saved.items())
    title, norm, similarity = "Norm that a map of two tokens needs", "‖W‖, or max τ ‖W‖", "similarity ρ of the tokens"
    near = f"ε = {error:g}, γ = {gamma:g}. As the tokens grow alike the norm grows, less with temperatures."
    small = f"ρ = {rho:g}, γ = {gamma:g}. All grow with log(1/ε), the norm with temperatures least."
    return outcome_of(
        job,
        check_proposition_1,
        "The bound held, and holds with √2 times its constant as well: the largest bound / ‖W‖ is {largest:.3f}. An "
        f"explicit W has the least norm in closed form, and none has less. At ρ = {rho:g} and ε = {error:g} "
        f"temperatures make the norm needed smaller by a factor of {savings}: they help where both tokens prefer the "
        "second one, γ ≥ 1/2, as they change no sign.",
        size="ε from 1e-10 to 0.3, ρ from −0.999 to 0.999, γ from 0.001 to 0.999; to ε: no entry of the map is further "
        "from P* than ε",
        charts=(
            chart("by-error", title, ("error ε of the map", norm), errors, map_norms(errors, rho, gamma), small),
            chart("by-similarity", title, (similarity, norm), rhos, map_norms(error, rhos, gamma), near, "y"),
        ),
        tables=(Table(title=f"Norm without / with temperatures, ε = {error:g}", headings=headings, rows=rows),),
    )


def mixture_temperature(kappa: Tensor, share: float) -> Tensor:
    """Proposition 2's τ_n = log κ_n + log(α/(1−α)), with κ_n = (n − n_a)/n_a, which gives αa + (1−α)b.

    n_a of n tokens are a unit vector a, the others b. Under a query whose score is higher by 1 for a than for b, a gets
    the share 1/(1 + κ_n e^(−τ)). Where κ_n = n^p, τ_n is const + p log n.
    """
    return kappa.log() + torch.logit(torch.tensor(share, dtype=kappa.dtype))


def whole_counts(n: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """The whole number n_a ≥ 1 whose κ_n is nearest to n^p, and that κ_n."""
    count = (n / (1 + n**power)).round().clamp_min(1)
    return count, (n - count) / count


def mix(pair: Tensor, counts: tuple[int, int], tau: Tensor) -> Tensor:
    """Attention's output ``[D]`` over n_a times a and n − n_a times b, for a query whose score is 1 for a and 0 for b.

    ``pair`` is a and b, ``[2, D]``, and ``tau`` the query's inverse temperature, a number.
    """
    tokens = pair.repeat_interleave(torch.tensor(counts), dim=0).unsqueeze(0)
    query = torch.linalg.pinv(pair)[:, 0].expand(1, 1, -1)
    return attention(query, tokens, tokens, scale=1.0, query_scale=tau.expand(1, 1), backend="reference").flatten()


def fit(form: str, length: Tensor, kappa: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The form's two numbers with the least mean of (share of a − α)², and the shares they give at each n."""
    from scipy.optimize import least_squares  # takes a second

    def given(numbers: Any) -> Tensor:
        return torch.sigmoid(FORMS[form](torch.from_numpy(numbers), length) - kappa.log())

    numbers = least_squares(lambda numbers: (given(numbers) - share).numpy(), (1.0, 0.0), gtol=1e-12).x
    return torch.from_numpy(numbers), given(numbers)


def check_proposition_2(_trials: int, dimension: int, generator: torch.Generator) -> Ratios:
    """Random tokens at each n, p and α; how their temperature grows."""
    apart, growth = [], []
    for power, share, length in itertools.product(_POWERS, _SHARES, _LENGTHS):
        n = torch.tensor(length, dtype=torch.float64)
        count, kappa = whole_counts(n, power)
        a, b = pair = draw_tokens(uniform(0.5, 1.5, 1, generator), dimension, generator)[0]
        output = mix(pair, (int(count), length - int(count)), mixture_temperature(kappa, share))
        # A sum of n terms, and scores of a query up to 4 long times τ.
        apart.append(vector_norm(output - (share * a + (1 - share) * b)) / (EPS * (length + 64)))
        growing = math.log(share / (1 - share)) + power * n.log()
        growth.append((mixture_temperature(n**power, share) - growing).abs() / (4 * EPS * math.log(_LENGTHS[-1])))
    return {
        "‖output − target‖ / rounding": torch.stack(apart),
        "|τ_n − (p log n + const)| / rounding, κ_n = n^p": torch.stack(growth),
    }


def run_proposition_2(job: Job) -> Outcome:
    """The temperature of no loss, its growth, and what fixed and growing temperatures fitted to all n lose."""
    n, mixtures = torch.tensor(_LENGTHS, dtype=torch.float64), tuple(itertools.product(_POWERS, _SHARES))
    kappas = {power: whole_counts(n, power)[1] for power in _POWERS}
    fits = {(form, *place): fit(form, n, kappas[place[0]], place[1]) for form in FORMS for place in mixtures}
    losses = {place: float((given - place[-1]).square().mean()) for place, (_, given) in fits.items()}
    fixed, growing, selective = lost = [losses[form, _POWER, _SHARE] for form in FORMS]
    p = float(fits["const + p log n", _POWER, _SHARE][0][1])
    temperatures = {f"κ_n ≈ n^{power:g}": mixture_temperature(kappa, _SHARE) for power, kappa in kappas.items()}
    shares = {form: fits[form, _POWER, _SHARE][1] for form in FORMS}
    rows = [(f"{p:g}", f"{share:g}", *(f"{losses[form, p, share]:.1e}" for form in FORMS)) for p, share in mixtures]
    loss, tokens = "mean squared error of a's share", "n (tokens)"
    title = f"Share given to a (α = {_SHARE:g}), temperatures fitted to all n"
    straight = f"α = {_SHARE:g}. Straight in log n, p steep, but at small n, where whole counts are further from n^p."
    once = (
        f"κ_n ≈ n^{_POWER:g}: under a constant temperature a's share is right at one n only. What const + p log n "
        "loses comes of the whole counts, whose κ_n is not quite n^p."
    )
    return outcome_of(
        job,
        check_proposition_2,
        f"τ_n = log κ_n + log(α/(1−α)) gave the target to rounding at every n up to {_LENGTHS[-1]:,}. With κ_n = "
        f"n^{_POWER:g} a constant temperature, at its best, loses {fixed:.1e}, const + p log n {growing:.1e} (fitted "
        f"p = {p:.3f}) and SSA's c (1 + σ(a) log n) {selective:.1e}; that form reaches only p < log(α/(1−α)).",
        *(of_seeds(f"{loss}, {form}, fitted, p = {_POWER:g}", [one], 7) for form, one in zip(FORMS, lost, strict=True)),
        of_seeds(f"fitted p where κ_n is nearest to n^{_POWER:g}", [p], 3, f"near {_POWER:g}"),
        size=f"n from {_LENGTHS[0]} to {_LENGTHS[-1]:,}, whole counts nearest to κ_n = n^p, "
        f"p = {', '.join(map(str, _POWERS))}, α = {', '.join(map(str, _SHARES))}",
        charts=(
            chart("temperature", "Inverse temperature of no loss", (tokens, "τ_n"), _LENGTHS, temperatures, straight),
            chart("share", title, (tokens, "share of a"), _LENGTHS, shares, once),
        ),
        tables=(Table(title=f"{loss.capitalize()}", headings=("p", "α", *FORMS), rows=tuple(rows)),),
    )
