"""The SSA paper's Proposition 2: where log n in the inverse temperature comes from.

n tokens, n_a of them a unit vector a and the others b; the output should be αa + (1−α)b however many there are. With
a query whose score is higher by 1 for a than for b, attention gives a the share 1/(1 + κ_n e^(−τ)), where
κ_n = (n − n_a)/n_a. So τ_n = log κ_n + log(α/(1−α)) is right, and where κ_n = n^p that is const + p log n.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evidence.papers.norm_bounds import EPS, chart, of_seeds, unit_pairs
from evidence.papers.outcome import Job, Outcome, Table
from exsel.functional import attention
from exsel.reference import position_term
from exsel.report.charts import Chart

POWERS = (0.25, 0.5, 1.0)
#: α, the share of a that is wanted.
SHARES = (0.5, 0.6, 0.8, 0.95)
_MIXTURES = tuple(itertools.product(POWERS, SHARES))
# Where the figures look.
SHOWN_POWER, SHOWN_SHARE = 0.5, 0.8
#: The forms that are fitted, in the papers' words, as functions of their numbers and n, and where the fit begins: plain
#: attention with the best scale; the proposition's; SSA's positional term, with the scale c of the weights.
FORMS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, ...]]] = {
    "constant": (lambda x, n: x[0].expand_as(n), (1.0,)),
    "const + p log n": (lambda x, n: x[0] + x[1] * n.log(), (1.0, 0.0)),
    "c (1 + σ(a) log n)": (lambda x, n: x[0] * position_term(n, x[1:]).squeeze(0), (1.0, 0.0)),
}


def mixture_temperature(kappa: Tensor, share: float) -> Tensor:
    """The proposition's τ_n = log κ_n + log(α/(1−α))."""
    return kappa.log() + torch.logit(torch.tensor(share, dtype=kappa.dtype))


def count_of(length: int, power: float) -> int:
    """The whole number n_a ≥ 1 whose κ_n = (n − n_a)/n_a is nearest to n^p."""
    return max(1, round(length / (1 + math.pow(length, power))))


def kappas(lengths: Sequence[int], power: float) -> Tensor:
    """κ_n of the whole numbers nearest to n^p."""
    counts = [(length, count_of(length, power)) for length in lengths]
    return torch.tensor([(length - count) / count for length, count in counts], dtype=torch.float64)


def mix(a: Tensor, b: Tensor, counts: tuple[int, int], tau: Tensor) -> Tensor:
    """Attention's output ``[D]`` over n_a times a and n_b times b, for the query whose score is 1 for a and 0 for b.

    a and b are ``[D]``, ``counts`` is n_a and n_b, and ``tau`` the query's inverse temperature, a number.
    """
    tokens = torch.cat((a.expand(counts[0], -1), b.expand(counts[1], -1))).unsqueeze(0)
    query = torch.linalg.pinv(torch.stack((a, b)))[:, 0].expand(1, 1, -1)
    mixed = attention(query, tokens, tokens, scale=1.0, query_scale=tau.expand(1, 1), backend="reference")
    return mixed.flatten()


def share_of(kappa: Tensor, tau: Tensor) -> Tensor:
    """What attention gives to a: 1/(1 + κ e^(−τ))."""
    return torch.sigmoid(tau - kappa.log())


def fit(form: str, length: Tensor, kappa: Tensor, share: float, steps: int) -> tuple[Tensor, Tensor]:
    """The form's numbers with the least mean of (share of a − α)², by L-BFGS, and the shares they give at each n."""
    function, start = FORMS[form]
    numbers = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [numbers], max_iter=steps, tolerance_grad=1e-15, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (share_of(kappa, function(numbers, length)) - share).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return numbers.detach(), share_of(kappa, function(numbers, length)).detach()


def _distances(lengths: Sequence[int], generator: torch.Generator) -> Tensor:
    """``[trials, 2]``: ‖output − target‖ with the proposition's temperature, and its ratio to what rounding allows."""
    rows = []
    for (power, share), length in itertools.product(_MIXTURES, lengths):
        apart = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
        a, b = unit_pairs(apart, generator)
        count = count_of(length, power)
        tau = mixture_temperature(kappas([length], power)[0], share)
        output = mix(a, b, (count, length - count), tau)
        distance = float(torch.linalg.vector_norm(output - (share * a + (1 - share) * b)))
        # Rounding: a sum of n terms, and scores of a query up to 4 long times τ.
        rows.append((distance, distance / (EPS * (length + 64))))
    return torch.tensor(rows, dtype=torch.float64)


def run_proposition_2(job: Job) -> Outcome:
    """The temperature of no loss, its growth, and what fixed and growing temperatures fitted to all n lose."""
    is_smoke = job.budget == "smoke"
    lengths = (4, 16, 64, 256) if is_smoke else tuple(4 * 2**power for power in range(15))
    length = torch.tensor(lengths, dtype=torch.float64)
    distances = [_distances(lengths, torch.Generator().manual_seed(seed)) for seed in job.seeds]
    largest = [float(each[:, 0].max()) for each in distances]
    is_target = all(bool((each[:, 1] <= 1).all()) for each in distances)
    fits, growth = {}, 0.0
    for power, share in _MIXTURES:
        error = mixture_temperature(length**power, share) - (math.log(share / (1 - share)) + power * length.log())
        growth = max(growth, float(error.abs().max()))
        for form in FORMS:
            fits[form, power, share] = fit(form, length, kappas(lengths, power), share, steps=20 if is_smoke else 200)
    losses = {place: float((given - place[-1]).square().mean()) for place, (_, given) in fits.items()}
    shown = {form: fits[form, SHOWN_POWER, SHOWN_SHARE][1] for form in FORMS}
    fixed, growing, selective = lost = [losses[form, SHOWN_POWER, SHOWN_SHARE] for form in FORMS]
    p = float(fits["const + p log n", SHOWN_POWER, SHOWN_SHARE][0][1])
    # Logarithms up to log n, each rounded once or twice.
    is_growth = growth <= 4 * EPS * float(length.log().max())
    rounding, title = "0 to rounding", "Mean squared error of a's share, each form fitted to all n"
    rows = [
        (f"{power:g}", f"{share:g}", *(f"{losses[form, power, share]:.1e}" for form in FORMS))
        for power, share in _MIXTURES
    ]
    return Outcome(
        verdict="exact" if is_growth and is_target else "not reproduced",
        conclusion=(
            f"τ_n = log κ_n + log(α/(1−α)) gave the target to rounding at every n up to {lengths[-1]:,}. With "
            f"κ_n = n^{SHOWN_POWER:g} a constant temperature, at its best, loses {fixed:.1e}, const + p log n "
            f"{growing:.1e} (fitted p = {p:.3f}) and SSA's c (1 + σ(a) log n) "
            f"{selective:.1e}; that form reaches only p < log(α/(1−α))."
            if is_growth and is_target
            else "The temperature of the proposition did not give the target: see the findings."
        ),
        size=(
            f"n from {lengths[0]} to {lengths[-1]:,}, whole counts nearest to κ_n = n^p, "
            f"p = {', '.join(f'{power:g}' for power in POWERS)}, α = {', '.join(f'{share:g}' for share in SHARES)}; "
            "float64, no accelerator needed"
        ),
        findings=(
            of_seeds("largest ‖output − target‖ with the proposition's temperature", largest, 15, rounding, is_target),
            of_seeds("trials", map(len, distances), 0),
            of_seeds("largest |τ_n − (p log n + const)| with κ_n = n^p", [growth], 15, rounding, is_growth),
            *(
                of_seeds(f"mean squared error of a's share, {form}, fitted, p = {SHOWN_POWER:g}", [loss], 7)
                for form, loss in zip(FORMS, lost, strict=True)
            ),
            of_seeds(f"fitted p where κ_n is nearest to n^{SHOWN_POWER:g}", [p], 3, f"near {SHOWN_POWER:g}"),
        ),
        charts=_charts(lengths, shown),
        tables=(Table(title=title, headings=("p", "α", *FORMS), rows=tuple(rows)),),
    )


def _charts(lengths: Sequence[int], given: Mapping[str, Tensor]) -> tuple[Chart, Chart, Chart]:
    temperatures = {}
    for power in POWERS:
        exact = torch.tensor(lengths, dtype=torch.float64) ** power
        temperatures[f"const + p log n, p = {power:g}"] = mixture_temperature(exact, SHOWN_SHARE)
        temperatures[f"of whole counts, p = {power:g}"] = mixture_temperature(kappas(lengths, power), SHOWN_SHARE)
    losses = {form: (share - SHOWN_SHARE).square() for form, share in given.items()}
    shares = {**given, "target": torch.full((len(lengths),), SHOWN_SHARE, dtype=torch.float64)}
    n, fitted, p = "n (tokens)", "temperatures fitted to all n", f"κ_n = n^{SHOWN_POWER:g}"
    straight = f"α = {SHOWN_SHARE:g}. Straight in log n, p steep."
    once = f"{p}: under a constant temperature a's share is right at one n only."
    whole = "What const + p log n loses comes of the whole counts, whose κ_n is not quite n^p."
    return (
        chart("temperature", "Inverse temperature of no loss", (n, "τ_n"), lengths, temperatures, straight, "x"),
        chart("share", f"Share given to a, {fitted}", (n, "share of a"), lengths, shares, once, "x"),
        chart("loss", f"Loss, {fitted}", (n, "(share of a − α)²"), lengths, losses, whole, "xy"),
    )
