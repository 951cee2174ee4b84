"""The SSA paper's denoising task: what is said by tokens of which three in four are noise.

d = K = 8 basis vectors e_k. The last token is x_L = e_q + z_L, every other one e_q + z_i with probability 1/4 and z_i
else, z ~ N(0, σ²I). The loss of an estimate ŷ is ‖e_q − ŷ/‖ŷ‖‖². What the paper leaves open, and what is done here:

* *Plain attention* is softmax(β x_L·x_i) over the tokens, β the best of a grid on sequences of its own. β = 0 is the
  naive mean. *Plain, scale 1/√d* is W = I with the usual scale. *Plain, trained* is the head below without τ_v, whose
  W_q is free.
* *Selective* is plain attention with the paper's value selector 1[max_j x_ij ≥ 1/2] in the place of τ_v, and a β of its
  own.
* *Learned* is a head that is trained: W_q, W_v, W_o and our token-aware τ_v = 1 + tanh(w · GELU(W_v x)), which reads
  the head's own values. Trained at one length for each σ, used at all lengths.
* *Bayes* is the paper's word for the mean over the true signal set, which no estimator is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evidence.papers.comparing import interval, verdict_of
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from exsel.functional import attention, inverse_temperature
from exsel.intervals import Estimate
from exsel.report.charts import Chart, Curve

VOCABULARY = 8
SIGNAL_SHARE = 0.25
THRESHOLD = 0.5
NOISES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
LENGTHS = (8, 16, 32, 64, 128, 256)
#: The length of the sweep over σ, which is trained at, and the σ of the sweep over lengths.
LENGTH = 64
NOISE = 0.2
BETAS = (0.0, *(math.sqrt(2) ** power for power in range(-8, 9)))
# Width of the trained heads' values: four features for each basis vector.
HEAD_DIM = 32
LEARNING_RATE = 0.01
#: Share of the gap from the naive mean to Bayes that is closed: at least the one is near Bayes, at most the other near
#: the naive mean.
NEAR_BAYES, NEAR_NAIVE = 0.9, 0.1

NAIVE, PLAIN, SELECTIVE, BAYES = "naive mean", "plain", "selective", "Bayes"
LEARNED_PLAIN, LEARNED = "plain, trained", "selective, learned τ_v"
UNTRAINED = "plain, scale 1/√d"
ESTIMATORS = (NAIVE, UNTRAINED, PLAIN, LEARNED_PLAIN, LEARNED, SELECTIVE, BAYES)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    steps: int
    batch: int
    tested: int
    noises: tuple[float, ...]
    lengths: tuple[int, ...]


_PLANS: Mapping[Budget, _Plan] = {
    "smoke": _Plan(steps=5, batch=4, tested=200, noises=(NOISE, 0.3), lengths=(8, LENGTH)),
    "cpu": _Plan(steps=400, batch=32, tested=4000, noises=NOISES, lengths=LENGTHS),
    "gpu": _Plan(steps=400, batch=32, tested=4000, noises=NOISES, lengths=LENGTHS),
}


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Sequences of several noise levels: tokens ``[B, N, L, 8]``, e_q ``[B, N, 8]``, who carries it ``[B, N, L]``."""

    tokens: Tensor
    target: Tensor
    is_signal: Tensor


def sample(count: int, length: int, noise: Tensor, generator: torch.Generator) -> Sequences:
    """``count`` sequences for each σ of ``noise`` ``[N]``."""
    index = torch.randint(VOCABULARY, (count, len(noise)), generator=generator)
    target = F.one_hot(index, VOCABULARY).to(noise.dtype)
    is_signal = torch.rand(count, len(noise), length, generator=generator) < SIGNAL_SHARE
    is_signal[..., -1] = True
    z = torch.randn(count, len(noise), length, VOCABULARY, generator=generator)
    tokens = target.unsqueeze(-2) * is_signal.unsqueeze(-1) + noise[:, None, None] * z
    return Sequences(tokens=tokens, target=target, is_signal=is_signal)


def loss_of(estimate: Tensor, target: Tensor) -> Tensor:
    """‖y − ŷ/‖ŷ‖‖², ``[..., 8]`` to ``[...]``; 1 where ŷ = 0, which has no direction."""
    return (target - F.normalize(estimate, dim=-1)).square().sum(-1)


def value_selector(tokens: Tensor) -> Tensor:
    """The paper's value selector 1[max_j x_ij ≥ 1/2]."""
    return (tokens.amax(-1) >= THRESHOLD).to(tokens.dtype)


def attend_last(tokens: Tensor, beta: float, value_scale: Tensor | None = None) -> Tensor:
    """The last token's attention over all, softmax(β x_L·x_i), of the tokens times ``value_scale``."""
    query = tokens[..., -1:, :]
    output = attention(query, tokens, tokens, scale=beta, value_scale=value_scale, backend="reference")
    return output.squeeze(-2)


def best_beta(sequences: Sequences, value_scale: Tensor | None = None) -> float:
    """Of :data:`BETAS` that of the least loss on these sequences."""
    beta: float = min(
        BETAS,
        key=lambda beta: float(loss_of(attend_last(sequences.tokens, beta, value_scale), sequences.target).mean()),
    )
    return beta


class Heads(nn.Module):
    """One trained head for each noise level: y = W_o Σ softmax(x_Lᵀ W_q x_i) τ_v W_v x_i.

    Args:
        count: of heads, N.
        is_selective: whether τ_v = 1 + tanh(w · GELU(W_v x)) is learned; else it is 1.
        generator: of the start: W_q = I, w = 0, and W_o undoes W_v.
    """

    def __init__(self, count: int, *, is_selective: bool, generator: torch.Generator) -> None:
        super().__init__()
        value = torch.randn(count, HEAD_DIM, VOCABULARY, generator=generator) / math.sqrt(VOCABULARY)
        self.q_proj = nn.Parameter(torch.eye(VOCABULARY).repeat(count, 1, 1))
        self.v_proj = nn.Parameter(value)
        self.o_proj = nn.Parameter(torch.linalg.pinv(value))
        self.weight = nn.Parameter(torch.zeros(count, HEAD_DIM), requires_grad=is_selective)

    def forward(self, tokens: Tensor, which: slice = slice(None)) -> Tensor:
        """Estimates ``[B, N, 8]`` of tokens ``[B, N, L, 8]`` by N of the heads, all or those of ``which``."""
        query = tokens[..., -1:, :] @ self.q_proj[which]
        value = tokens @ self.v_proj[which].mT
        tau = None
        if self.weight.requires_grad:
            tau = inverse_temperature(value, self.weight[which])
        mixed = attention(query, tokens, value, scale=1.0, value_scale=tau, backend="reference")
        output: Tensor = mixed @ self.o_proj[which].mT
        return output.squeeze(-2)


def train_heads(noise: Tensor, *, is_selective: bool, steps: int, batch: int, seed: int) -> Heads:
    """A head for each σ of ``noise``, all at once, each on sequences of its own that are never seen twice.

    Args:
        noise: ``[N]``.
        is_selective: whether τ_v is learned.
        steps: of Adam, the learning rate going to 0.
        batch: sequences of :data:`LENGTH` tokens a step, for each head.
        seed: of the sequences and the start: the same with and without τ_v.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(len(noise), is_selective=is_selective, generator=generator)
    optimizer = torch.optim.Adam([each for each in heads.parameters() if each.requires_grad], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        sequences = sample(batch, LENGTH, noise, generator)
        loss = loss_of(heads(sequences.tokens), sequences.target).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads


@torch.no_grad()
def losses(
    heads: Mapping[str, Heads], index: int, noise: float, length: int, count: int, seed: int
) -> dict[str, float]:
    """Each estimator's mean loss on the same sequences.

    Args:
        heads: the trained ones by name.
        index: of this σ among theirs.
        noise: σ.
        length: L.
        count: sequences to test; half as many choose each β.
        seed: of the sequences.
    """
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.tensor([noise])
    choosing, tested = (sample(size, length, sigma, generator) for size in (count // 2, count))
    tokens, target = tested.tokens, tested.target
    beta = best_beta(choosing)
    selective_beta = best_beta(choosing, value_selector(choosing.tokens))
    signal = tested.is_signal.unsqueeze(-1)
    estimates = {
        NAIVE: tokens.mean(-2),
        UNTRAINED: attend_last(tokens, 1 / math.sqrt(VOCABULARY)),
        PLAIN: attend_last(tokens, beta),
        SELECTIVE: attend_last(tokens, selective_beta, value_selector(tokens)),
        BAYES: (tokens * signal).sum(-2),
    }
    for name, each in heads.items():
        estimates[name] = each(tokens, slice(index, index + 1))
    return {name: float(loss_of(estimates[name], target).mean()) for name in ESTIMATORS}


#: By σ and length, each estimator's loss of every seed.
Results = Mapping[tuple[float, int], Mapping[str, Estimate]]


def closed_share(results: Results, name: str, noise: float, length: int) -> Estimate:
    """Of the gap from the naive mean's loss to Bayes': 0 for the one, 1 for the other."""
    cell = results[noise, length]
    return Estimate.of(
        *(
            (naive - own) / (naive - bayes)
            for naive, own, bayes in zip(cell[NAIVE].values, cell[name].values, cell[BAYES].values, strict=True)
        )
    )


def run_denoising(job: Job) -> Outcome:
    """The estimators' losses over σ and over lengths."""
    plan = _PLANS[job.budget]
    cells = [(noise, LENGTH) for noise in plan.noises]
    cells += [(NOISE, length) for length in plan.lengths if length != LENGTH]
    by_seed = []
    for seed in job.seeds:
        job.progress.note(f"denoising, seed {seed}: {plan.steps} steps for each of {len(plan.noises)} noise levels")
        heads = {
            name: train_heads(
                torch.tensor(plan.noises), is_selective=name == LEARNED, steps=plan.steps, batch=plan.batch, seed=seed
            )
            for name in (LEARNED_PLAIN, LEARNED)
        }
        by_seed.append(
            {
                # Sequences that no head was trained on.
                (noise, length): losses(heads, plan.noises.index(noise), noise, length, plan.tested, seed + 1_000_000)
                for noise, length in cells
            }
        )
    results = {
        cell: {name: Estimate.of(*(each[cell][name] for each in by_seed)) for name in ESTIMATORS} for cell in cells
    }
    return denoising_outcome(
        results,
        size=(
            f"8 basis vectors, σ from {plan.noises[0]:g} to {plan.noises[-1]:g} at L = {LENGTH}, L from "
            f"{min(plan.lengths)} to {max(plan.lengths)} at σ = {NOISE:g}; {plan.tested:,} sequences each; trained "
            f"heads of width {HEAD_DIM}, {plan.steps:,} steps of {plan.batch} sequences for each σ; no "
            "accelerator needed"
        ),
    )


def margin(results: Results, noise: float, length: int) -> Estimate:
    """Plain attention's loss less the selector's."""
    cell = results[noise, length]
    return Estimate.of(*(plain - own for plain, own in zip(cell[PLAIN].values, cell[SELECTIVE].values, strict=True)))


def denoising_outcome(results: Results, *, size: str) -> Outcome:
    """What the losses say of the claim: at which σ the selector is near Bayes, and at which plain attention near naive.

    Args:
        results: for some σ at :data:`LENGTH`, :data:`NOISE` among them, and some lengths at that.
        size: what was looked at.
    """
    noises = [noise for noise, length in results if length == LENGTH]
    shares = {
        name: {noise: closed_share(results, name, noise, LENGTH) for noise in noises} for name in ESTIMATORS[1:-1]
    }
    near_bayes = [noise for noise in noises if shares[SELECTIVE][noise].mean >= NEAR_BAYES]
    near_naive = [noise for noise in noises if shares[PLAIN][noise].mean <= NEAR_NAIVE]
    gain = margin(results, NOISE, LENGTH)
    is_near_bayes, is_near_naive = NOISE in near_bayes, NOISE in near_naive
    is_better = gain.holds(1)
    conclusion = (
        f"At σ = {NOISE:g} the value selector closes {shares[SELECTIVE][NOISE].mean:.1%} of the gap from the naive "
        f"mean to Bayes, plain attention at its best scale {shares[PLAIN][NOISE].mean:.1%}, a learned τ_v "
        f"{shares[LEARNED][NOISE].mean:.1%}. The selector is near Bayes (at least {NEAR_BAYES:.0%}) "
        f"{_where(near_bayes)}, plain attention near the naive mean (at most {NEAR_NAIVE:.0%}) {_where(near_naive)}."
    )
    findings = [
        Finding(
            quantity=f"share of the gap naive to Bayes that is closed, {name}, σ = {NOISE:g}",
            ours=shares[name][NOISE],
            expected={SELECTIVE: f"near 1 (at least {NEAR_BAYES:g})", PLAIN: f"near 0 (at most {NEAR_NAIVE:g})"}.get(
                name, ""
            ),
            holds={SELECTIVE: is_near_bayes, PLAIN: is_near_naive}.get(name),
            digits=3,
        )
        for name in shares
    ]
    findings.append(
        Finding(
            quantity=f"loss, plain less selective, σ = {NOISE:g}",
            ours=gain,
            expected="above 0",
            holds=is_better,
            digits=5,
        )
    )
    return Outcome(
        verdict=verdict_of((is_near_bayes, is_near_naive, is_better)),
        conclusion=conclusion,
        size=size,
        findings=tuple(findings),
        charts=(_by_noise(results, noises), _shares(shares), _by_length(results)),
        tables=(_table(shares),),
    )


def _where(noises: list[float]) -> str:
    return f"at σ = {', '.join(f'{noise:g}' for noise in noises)}" if noises else "at no σ"


def _by_noise(results: Results, noises: list[float]) -> Chart:
    return Chart(
        name="by-noise",
        title="Loss of each estimator by noise",
        x_label="σ of the noise",
        y_label="‖y − ŷ/‖ŷ‖‖²",
        curves=tuple(Curve.of(name, noises, [results[noise, LENGTH][name] for noise in noises]) for name in ESTIMATORS),
        log_x=True,
        log_y=True,
        caption=f"Sequences of {LENGTH} tokens.",
    )


def _shares(shares: Mapping[str, Mapping[float, Estimate]]) -> Chart:
    return Chart(
        name="closed",
        title="How near to Bayes",
        x_label="σ of the noise",
        y_label="share of the gap closed",
        curves=tuple(Curve.of(name, list(of_name), list(of_name.values())) for name, of_name in shares.items()),
        log_x=True,
        caption="0 is the naive mean, 1 the mean over the true signal set.",
    )


def _by_length(results: Results) -> Chart:
    lengths = sorted(length for noise, length in results if noise == NOISE)
    return Chart(
        name="by-length",
        title="Loss of each estimator by length",
        x_label="L (tokens)",
        y_label="‖y − ŷ/‖ŷ‖‖²",
        curves=tuple(
            Curve.of(name, lengths, [results[NOISE, length][name] for length in lengths]) for name in ESTIMATORS
        ),
        log_x=True,
        log_y=True,
        caption=f"σ = {NOISE:g}; trained heads have seen {LENGTH} tokens only.",
    )


def _table(shares: Mapping[str, Mapping[float, Estimate]]) -> Table:
    names = tuple(shares)
    return Table(
        title=f"Share of the gap from the naive mean to Bayes that is closed, L = {LENGTH}",
        headings=("σ", *names),
        rows=tuple((f"{noise:g}", *(interval(shares[name][noise], 3) for name in names)) for noise in shares[names[0]]),
    )
