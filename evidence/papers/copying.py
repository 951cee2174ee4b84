"""Two tasks that only attention solves: repeat what was read (induction), and look a value up by its key (recall).

* *Induction*: a block of distinct random tokens, read again and again until the sequence is full. From the second
  reading on, each token can be copied from one block earlier. Blocks have 4 to 16 tokens, so that no fixed distance
  does it.
* *Recall*: pairs of a key and its value, all keys distinct, then all keys again in another order, each with its value,
  which can be copied from where the key was read first.

Both are made up anew in every step. A model is trained on the tokens that can be known, and asked for them on other
sequences; *accuracy* is the share that it names. It is told by distance: how many tokens lie between a token and its
copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import set_seed

from evidence.papers.comparing import interval, verdict_of
from evidence.papers.model_variants import BASELINE, BOTH, EXCLUSIVE, LEARNED_STRENGTH, ModelVariant, exclusive_in
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from exsel.files import read_json, write_json
from exsel.intervals import Estimate
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.report.charts import Chart, Curve
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.variants import CHOOSING_SEED

LENGTH = 32
SHORTEST, LONGEST = 4, 16
PAIRS = 8
VOCABULARY = 32
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
# Of the weights at the start. At the usual 0.02 so small a model needs many times as many steps.
INITIALIZER_RANGE = 0.1
_IGNORED = -100
# Distances are told apart in ranges, each from the one to before the next.
_EDGES = (2, 6, 10, 14, LENGTH)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    depths: tuple[int, ...]
    width: int
    steps: int
    batch: int
    evaluations: int
    tested: int
    rates: tuple[float, ...]


_PLANS: Mapping[Budget, _Plan] = {
    "smoke": _Plan(depths=(2,), width=16, steps=4, batch=4, evaluations=2, tested=64, rates=LEARNING_RATES[:2]),
    "cpu": _Plan(depths=(2, 4), width=64, steps=1000, batch=64, evaluations=20, tested=256, rates=LEARNING_RATES),
    "gpu": _Plan(depths=(2, 4), width=64, steps=4000, batch=64, evaluations=30, tested=1024, rates=LEARNING_RATES),
}


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Sequences of tokens ``[B, T]``, and for each token how far back its copy lies ``[B, T]``; 0: it has none."""

    tokens: Tensor
    distance: Tensor

    @property
    def targets(self) -> Tensor:
        """What is to be named after each token ``[B, T − 1]``: the next one where it is a copy, else −100."""
        return torch.where(self.distance > 0, self.tokens, _IGNORED)[:, 1:]


def draw_induction(count: int, generator: torch.Generator) -> Copies:
    """Blocks of distinct tokens, repeated."""
    block = torch.rand(count, VOCABULARY, generator=generator).argsort(-1)
    period = torch.randint(SHORTEST, LONGEST + 1, (count, 1), generator=generator)
    place = torch.arange(LENGTH).expand(count, -1)
    return Copies(tokens=block.gather(1, place % period), distance=torch.where(place >= period, period, 0))


def draw_recall(count: int, generator: torch.Generator) -> Copies:
    """Pairs of a key (the lower half of the tokens) and a value (the upper half), then the same in another order."""
    half = VOCABULARY // 2
    keys = torch.rand(count, half, generator=generator).argsort(-1)[:, :PAIRS]
    values = torch.randint(half, VOCABULARY, (count, PAIRS), generator=generator)
    order = torch.rand(count, PAIRS, generator=generator).argsort(-1)
    pairs = torch.stack((keys, values), dim=-1)
    asked = pairs.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    distance = torch.zeros(count, 4 * PAIRS, dtype=torch.long)
    distance[:, 2 * PAIRS + 1 :: 2] = 2 * PAIRS + 2 * (torch.arange(PAIRS) - order)
    return Copies(tokens=torch.cat((pairs, asked), dim=1).flatten(1), distance=distance)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What one training came to: accuracy after each evaluation's steps, and at the end by range of distances."""

    steps: Sequence[int]
    accuracy: Sequence[float]
    by_distance: Sequence[float]


def learn(
    job: Job,
    draw: Callable[[int, torch.Generator], Copies],
    variant: ModelVariant,
    *,
    depth: int,
    learning_rate: float,
    seed: int,
) -> Learned:
    """Train one model, or find it trained."""
    task = draw.__name__.removeprefix("draw_")
    name = f"{task}-{job.budget}-{variant.name}-layers{depth}-rate{learning_rate:g}-seed{seed}"
    kept = job.folder / f"{name}.json"
    if not kept.exists():
        job.progress.note(f"{task}, {depth} layers, {variant.label}, learning rate {learning_rate:g}, seed {seed}")
        learned = train(draw, variant, _PLANS[job.budget], depth=depth, learning_rate=learning_rate, seed=seed)
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, asdict(learned))
    return Learned(**read_json(kept))


def train(
    draw: Callable[[int, torch.Generator], Copies],
    variant: ModelVariant,
    plan: _Plan,
    *,
    depth: int,
    learning_rate: float,
    seed: int,
) -> Learned:
    """Train one model; sequences and the weights that variants share are the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden_size": plan.width, "intermediate_size": 4 * plan.width, "num_hidden_layers": depth}
    model = _model(variant, seed, vocab_size=VOCABULARY, num_attention_heads=4, max_position_embeddings=LENGTH, **sizes)
    own = mechanism_parameters(model)
    shared = [value for name, value in model.named_parameters() if name not in own]
    own_rate = variant.token_learning_rate or 1e-3
    groups = [{"params": shared, "lr": learning_rate}, {"params": list(own.values()), "lr": own_rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, plan.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (plan.steps - step) / (plan.steps - warmup))
    )
    tested = draw(plan.tested, torch.Generator().manual_seed(seed + 1))
    marks = [round(plan.steps * (index + 1) / plan.evaluations) for index in range(plan.evaluations)]
    accuracy = []
    for step in range(1, plan.steps + 1):
        copies = draw(plan.batch, generator)
        logits = model(input_ids=copies.tokens, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), copies.targets.flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in marks:
            accuracy.append(_accuracy(model, tested)[0])
    return Learned(steps=tuple(marks), accuracy=tuple(accuracy), by_distance=_accuracy(model, tested)[1])


def _model(variant: ModelVariant, seed: int, **sizes: int) -> ExselForCausalLM:
    set_seed(seed)
    mechanisms = {"exclusive": variant.exclusive, "selective": variant.selective}
    return ExselForCausalLM(ExselConfig(**sizes, **mechanisms, initializer_range=INITIALIZER_RANGE))


@torch.no_grad()
def _accuracy(model: ExselForCausalLM, copies: Copies) -> tuple[float, tuple[float, ...]]:
    """The share of copies that the model names: of all, and by range of distances."""
    named = model(input_ids=copies.tokens, use_cache=False).logits[:, :-1].argmax(-1)
    is_right, distance = (named == copies.targets).double(), copies.distance[:, 1:]
    shares = [is_right[(low <= distance) & (distance < high)].mean() for low, high in _ranges()]
    return float(is_right[distance > 0].mean()), tuple(float(share) for share in shares)


def _ranges() -> list[tuple[int, int]]:
    """Ranges of distances: from the one, to before the other."""
    return list(pairwise(_EDGES))


#: By depth and variant, what each seed came to.
Results = Mapping[tuple[int, str], Sequence[Learned]]


def run_induction(job: Job) -> Outcome:
    """How fast and how well the variants learn to repeat."""
    return _run(job, draw_induction, f"blocks of {SHORTEST} to {LONGEST} distinct tokens, repeated to {LENGTH}")


def run_recall(job: Job) -> Outcome:
    """How fast and how well the variants learn to look a value up."""
    return _run(job, draw_recall, f"{PAIRS} pairs of a key and a value, then all keys asked in another order")


def _variants(depth: int) -> tuple[ModelVariant, ...]:
    last = exclusive_in(f"last:{depth // 2}", "exclusive in the last half")
    return (BASELINE, EXCLUSIVE, LEARNED_STRENGTH, last, BOTH)


def _run(job: Job, draw: Callable[[int, torch.Generator], Copies], task: str) -> Outcome:
    plan = _PLANS[job.budget]
    results: dict[tuple[int, str], list[Learned]] = {}
    for depth in plan.depths:
        tried = {
            rate: learn(job, draw, BASELINE, depth=depth, learning_rate=rate, seed=CHOOSING_SEED) for rate in plan.rates
        }
        best = max(tried, key=lambda rate: course(tried[rate]))
        for seed in job.seeds:
            for variant in _variants(depth):
                one = learn(job, draw, variant, depth=depth, learning_rate=best, seed=seed)
                results.setdefault((depth, variant.label), []).append(one)
    size = (
        f"{' and '.join(map(str, plan.depths))} layers of width {plan.width}, {plan.steps:,} steps of {plan.batch} "
        f"sequences: {task}; the learning rate is the plain model's best of {len(plan.rates)}, on a seed of its own"
    )
    return copying_outcome(results, size=size)


def course(learned: Learned) -> float:
    """The mean accuracy over a training: it is higher the sooner a task is learned, and the better."""
    return sum(learned.accuracy) / len(learned.accuracy)


def at_the_end(learned: Learned) -> float:
    """The accuracy after the last step."""
    return learned.accuracy[-1]


#: What is compared, in words.
QUANTITIES: Mapping[str, Callable[[Learned], float]] = {
    "accuracy at the end": at_the_end,
    "accuracy over the course": course,
}


def copying_outcome(results: Results, *, size: str) -> Outcome:
    """What the accuracies say: is a variant worse at copying than the plain model?

    Args:
        results: of each depth for the same variants, the plain model among them; the same seeds for all.
        size: what was looked at.
    """
    findings: list[Finding] = []
    said = []
    for depth, label in results:
        if label == BASELINE.label:
            continue
        base = results[depth, BASELINE.label]
        for quantity, value in QUANTITIES.items():
            difference = Estimate.of(
                *(value(own) - value(plain) for own, plain in zip(results[depth, label], base, strict=True))
            )
            if difference.sign():
                how = "better" if difference.sign() > 0 else "worse"
                said.append(f"{label}, {depth} layers: {how} ({quantity} {difference.mean:+.3f})")
            findings.append(
                Finding(
                    quantity=f"{label} less plain, {depth} layers, {quantity}",
                    ours=difference,
                    expected="not below 0",
                    holds=None if difference.sign() == 0 else difference.sign() > 0,
                    digits=3,
                )
            )
    seeds = len(next(iter(results.values())))
    depths = dict.fromkeys(depth for depth, _ in results)
    conclusion = "; ".join(said) if said else f"No variant is told apart from the plain model by {seeds} seeds"
    return Outcome(
        verdict=verdict_of([each.holds for each in findings]),
        conclusion=f"{conclusion[0].upper()}{conclusion[1:]}.",
        size=size,
        findings=tuple(findings),
        charts=tuple(chart for depth in depths for chart in _charts(results, depth)),
        tables=(_table(results),),
    )


def _charts(results: Results, depth: int) -> tuple[Chart, Chart]:
    own = {label: runs for (each, label), runs in results.items() if each == depth}

    def curves(places: Sequence[float], values: Callable[[Learned], Sequence[float]]) -> tuple[Curve, ...]:
        """One a variant: what each seed has at each place."""
        return tuple(
            Curve.of(label, places, [Estimate.of(*at) for at in zip(*map(values, runs), strict=True)])
            for label, runs in own.items()
        )

    steps = next(iter(own.values()))[0].steps
    learning = Chart(
        name=f"learning-{depth}",
        title=f"Accuracy through training, {depth} layers",
        x_label="steps",
        y_label="share of copies named",
        curves=curves(steps, lambda learned: learned.accuracy),
        caption="The mean over the seeds and its 95% interval.",
    )
    by_distance = Chart(
        name=f"distance-{depth}",
        title=f"Accuracy by distance, {depth} layers",
        x_label="tokens between a token and its copy",
        y_label="share of copies named",
        curves=curves([(low + high - 1) / 2 for low, high in _ranges()], lambda learned: learned.by_distance),
        caption="At the end of the training; a point for each range of distances.",
    )
    return learning, by_distance


def _table(results: Results) -> Table:
    return Table(
        title="Accuracy",
        headings=("Layers", "Variant", "At the end", "Over the course"),
        rows=tuple(
            (
                str(depth),
                label,
                interval(Estimate.of(*(run.accuracy[-1] for run in runs)), 3),
                interval(Estimate.of(*map(course, runs)), 3),
            )
            for (depth, label), runs in results.items()
        ),
    )
