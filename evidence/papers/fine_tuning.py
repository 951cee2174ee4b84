"""A pretrained model that is trained on: the mechanisms beside what else as few parameters can do.

Mostly few parameters are trained: a mechanism's, the norms' weights or a LoRA, while the model's other weights stay. So
the question is not whether more training helps, but what as many parameters do elsewhere. Every way has its own
learning rate, chosen with an order of the text that no result is made with. Runs of a seed see the same batches.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

import exsel
from evidence.papers.comparing import Contrast, Result, Trained, conclude, finding, gain, interval, verdict_of
from evidence.papers.model_variants import ModelVariant
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.data import PackedData, collate, load_data
from exsel.diagnostics import temperature_moves
from exsel.evaluation.loss import evaluate_loss
from exsel.evaluation.retrieval import passkey
from exsel.files import read_json, write_json
from exsel.float32_products import fast_products
from exsel.intervals import Estimate
from exsel.nn import Exclusive
from exsel.report.charts import Chart, Curve
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.training_step import training_step
from exsel.upgrading.loading import quiet_transformers
from exsel.variants import CHOOSING_SEED

_WARMUP_SHARE = 0.1

#: What a way trains with its own learning rate, and the rates that are tried.
Own = Literal["nothing", "mechanisms", "norms", "lora", "all"]
RATES: Mapping[Own, tuple[float, ...]] = {
    "nothing": (0.0,),
    "mechanisms": (1e-3, 3e-3, 1e-2, 3e-2),
    "norms": (1e-3, 3e-3, 1e-2),
    "lora": (1e-3, 3e-3, 1e-2),
    "all": (1e-5, 3e-5, 1e-4),
}


@dataclass(frozen=True, kw_only=True)
class Tuning(ModelVariant):
    """One way to train a pretrained model on.

    Args:
        own: what it trains with its own learning rate.
        beside: another way whose parameters it trains as well, at the rate that was best for that way alone.
    """

    own: Own
    beside: Tuning | None = None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The size at one budget.

    Args:
        model: gives the folder of the pretrained model; saves one into the folder that it is given if it must.
        steps, choosing_steps: of a training that counts, and of one that chooses a learning rate.
        batch_size, seq_len: of a step.
        blocks: that are validated on, of twice ``seq_len`` tokens.
        passkey_lengths: of the documents in which keys are asked for.
        passkey_samples: keys for each length and depth.
    """

    model: Callable[[Path], Path]
    steps: int
    choosing_steps: int
    batch_size: int
    seq_len: int
    blocks: int
    passkey_lengths: tuple[int, ...]
    passkey_samples: int


def _small_model(folder: Path) -> Path:
    """A model made of chance, that has what the real one has: a decoder of Llama's kind with tied embeddings."""
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=512, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    with quiet_transformers():
        model.save_pretrained(folder / "small-model")
    return folder / "small-model"


def _real_model(_: Path) -> Path:
    return exsel.pull("smollm2")


PLANS: Mapping[Budget, _Plan] = {
    "smoke": _Plan(
        model=_small_model,
        steps=3,
        choosing_steps=2,
        batch_size=2,
        seq_len=16,
        blocks=2,
        passkey_lengths=(112,),
        passkey_samples=1,
    ),
    "cpu": _Plan(
        model=_real_model,
        steps=40,
        choosing_steps=15,
        batch_size=2,
        seq_len=256,
        blocks=16,
        passkey_lengths=(256, 512, 1024, 2048),
        passkey_samples=4,
    ),
    "gpu": _Plan(
        model=_real_model,
        steps=1200,
        choosing_steps=300,
        batch_size=4,
        seq_len=1024,
        blocks=64,
        passkey_lengths=(256, 512, 1024, 2048, 4096),
        passkey_samples=20,
    ),
}


def _tuning(
    name: str,
    label: str,
    own: Own = "mechanisms",
    *,
    exclusive: Any = None,
    beside: Tuning | None = None,
    **selective: Any,
) -> Tuning:
    config = SelectiveConfig(**selective) if selective else None
    return Tuning(
        name=name, label=label, own=own, exclusive=ExclusiveConfig.read(exclusive), selective=config, beside=beside
    )


UNTOUCHED = _tuning("untouched", "the model as it is", "nothing")
NORMS = _tuning("norms", "the norms' weights", "norms")
LORA = _tuning("lora", "a LoRA of rank 1 on the values", "lora")
CONSTANT = _tuning("constant", "a constant a head", token="constant", position=False, value_position=False)
SELECTIVE = _tuning("selective", "selective", token="shared")
SELECTIVE_BESIDE_NORMS = _tuning("norms-selective", "selective beside the norms", beside=NORMS, token="shared")
CONSTANT_BESIDE_NORMS = _tuning(
    "norms-constant",
    "a constant a head beside the norms",
    beside=NORMS,
    token="constant",
    position=False,
    value_position=False,
)

TOKEN = _tuning("token", "token term alone", position=False, value_position=False)
POSITION = _tuning("position", "position term alone", token="none")
AUTHORS = _tuning(
    "authors",
    "position term of the authors' code",
    token="none",
    value=False,
    position_form="double_exponential",
    position_per_head=False,
)
LINEAR = _tuning("linear", "f linear in the layer's input", token="linear")
KEYS = _tuning("keys", "selective, keys too", key=True)

LEARNED = _tuning("learned", "exclusive, strength learned from 0", exclusive="learned")
LEARNED_BESIDE_NORMS = _tuning(
    "norms-learned", "exclusive, learned, beside the norms", exclusive="learned", beside=NORMS
)
EXCLUSIVE_BESIDE_NORMS = _tuning(
    "norms-exclusive", "exclusive beside the norms", "nothing", exclusive=True, beside=NORMS
)

ALL = _tuning("all", "all weights", "all")
SELECTIVE_BESIDE_ALL = _tuning("all-selective", "selective beside all weights", beside=ALL, token="shared")
LEARNED_BESIDE_ALL = _tuning("all-learned", "exclusive, learned, beside all weights", exclusive="learned", beside=ALL)
EXCLUSIVE_BESIDE_ALL = _tuning("all-exclusive", "exclusive beside all weights", "nothing", exclusive=True, beside=ALL)
BOTH_BESIDE_ALL = _tuning(
    "all-both", "exclusive and selective beside all weights", exclusive=True, beside=ALL, token="shared"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one experiment compares.

    Args:
        contrasts: of losses, that which says most first: the verdict is its own.
        asks_for_keys: whether every way is also asked for passkeys.
    """

    contrasts: tuple[Contrast, ...]
    asks_for_keys: bool = False

    @property
    def ways(self) -> tuple[Tuning, ...]:
        """All that is trained, each after the one that it is trained beside."""
        named = [way for contrast in self.contrasts for _, way in contrast.terms if isinstance(way, Tuning)]
        known = {way.name: way for way in (UNTOUCHED, *(way.beside for way in named if way.beside), *named)}
        return tuple(sorted(known.values(), key=lambda way: way.beside is not None))


NEW_PARAMETERS = Question(
    contrasts=(
        gain(SELECTIVE_BESIDE_NORMS, NORMS),
        gain(SELECTIVE, NORMS),
        gain(SELECTIVE, CONSTANT),
        *(gain(way, UNTOUCHED) for way in (CONSTANT, SELECTIVE, NORMS)),
    )
)
CONTROLS = Question(
    contrasts=(
        gain(SELECTIVE_BESIDE_NORMS, CONSTANT_BESIDE_NORMS),
        gain(CONSTANT_BESIDE_NORMS, NORMS),
        gain(SELECTIVE, LORA),
        gain(LORA, UNTOUCHED),
    )
)
TERMS = Question(contrasts=tuple(gain(way, SELECTIVE) for way in (TOKEN, POSITION, AUTHORS, LINEAR, KEYS)))
EXCLUSION = Question(
    contrasts=(gain(LEARNED, UNTOUCHED), *(gain(way, NORMS) for way in (LEARNED_BESIDE_NORMS, EXCLUSIVE_BESIDE_NORMS))),
    asks_for_keys=True,
)
ALL_WEIGHTS = Question(
    contrasts=tuple(
        gain(way, ALL) for way in (SELECTIVE_BESIDE_ALL, LEARNED_BESIDE_ALL, EXCLUSIVE_BESIDE_ALL, BOTH_BESIDE_ALL)
    ),
    asks_for_keys=True,
)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trainings of an experiment share; blocks that validate are twice as long as those that train."""

    job: Job
    question: Question
    plan: _Plan
    model: PreTrainedModel = field(repr=False)
    train: PackedData = field(repr=False)
    validation: PackedData = field(repr=False)

    @classmethod
    def of(cls, job: Job, question: Question) -> Setup:
        """Fetch the model, and load the text."""
        plan = PLANS[job.budget]
        job.folder.mkdir(parents=True, exist_ok=True)
        folder = plan.model(job.folder)
        tokenizer = str(folder) if (folder / "tokenizer.json").exists() else "bytes"
        train, validation = (
            load_data(job.data, tokenizer=tokenizer, seq_len=seq_len, validation_blocks=plan.blocks)
            for seq_len in (plan.seq_len, 2 * plan.seq_len)
        )
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(job.device)
        return cls(job=job, question=question, plan=plan, model=model, train=train, validation=validation)

    def size(self) -> str:
        """What is looked at, in words."""
        config, plan, text = self.model.config, self.plan, self.train.description.name
        return (
            f"{Path(config.name_or_path).name}: {config.num_hidden_layers} layers of width {config.hidden_size}; "
            f"{plan.steps} steps of {plan.batch_size} × {plan.seq_len} tokens of {text}, validated on {plan.blocks} "
            f"blocks of {2 * plan.seq_len}; each way at the best of its learning rates after {plan.choosing_steps} "
            "steps, on an order of the text of their own"
        )


def run_fine_tuning(job: Job) -> Outcome:
    """What a real model gains by few new parameters, selective attention's and others."""
    return _run(job, NEW_PARAMETERS)


def run_fine_tuning_controls(job: Job) -> Outcome:
    """What other controls of few parameters gain."""
    return _run(job, CONTROLS)


def run_fine_tuning_terms(job: Job) -> Outcome:
    """Which of selective attention's terms the gain comes from."""
    return _run(job, TERMS)


def run_fine_tuning_exclusive(job: Job) -> Outcome:
    """What exclusive attention does to a real model, and to the passkeys that it finds."""
    return _run(job, EXCLUSION)


def run_fine_tuning_all(job: Job) -> Outcome:
    """What remains of the mechanisms where all weights are trained."""
    return _run(job, ALL_WEIGHTS)


def _run(job: Job, question: Question) -> Outcome:
    setup = Setup.of(job, question)
    rates: dict[str, float] = {}
    results: dict[str, list[Result]] = {way.name: [] for way in question.ways}
    with fast_products(job.device):
        for way in question.ways:
            rates[way.name] = best_rate(setup, way, rates)
        for seed in job.seeds:
            for way in question.ways:
                results[way.name].append(tune(setup, way, rates, seed=seed, steps=setup.plan.steps))
    return fine_tuning_outcome(question, results, rates, size=setup.size())


def best_rate(setup: Setup, way: Tuning, rates: Mapping[str, float]) -> float:
    """The learning rate of what is a way's own.

    Args:
        setup: with the model and the text.
        way: to be trained.
        rates: the best of other ways, by name.
    """
    if len(RATES[way.own]) == 1:
        return RATES[way.own][0]
    tried = {
        rate: tune(setup, way, {**rates, way.name: rate}, seed=CHOOSING_SEED, steps=setup.plan.choosing_steps)
        for rate in RATES[way.own]
    }
    return min(tried, key=lambda rate: float(tried[rate]["loss"]))


def tune(setup: Setup, way: Tuning, rates: Mapping[str, float], *, seed: int, steps: int) -> Result:
    """Train one way, or find it trained.

    Returns:
        ``loss`` in nats, ``by_position`` and ``validation_curve`` of it; how many ``parameters`` were trained, with
        which ``training_losses``; how far the mechanisms ``moved``; and where the question asks for them ``passkeys``
        by length and ``passkeys_by_depth``.
    """
    job, plan = setup.job, setup.plan
    if way is UNTOUCHED:
        steps = seed = 0
    name = f"{way.name}-rate{rates[way.name]:g}-steps{steps}-seed{seed}"
    kept = job.folder / f"fine-tuning-{job.budget}-{name}.json"
    result: dict[str, Any] = read_json(kept) if kept.exists() else {}
    asks_for_keys = setup.question.asks_for_keys and seed != CHOOSING_SEED
    if result and (not asks_for_keys or "passkeys_by_depth" in result):
        return result
    job.progress.note(f"{way.label}, rate {rates[way.name]:g}, {steps} steps, seed {seed}")
    set_seed(seed)
    model = copy.deepcopy(setup.model)
    groups = prepare(model, way, rates)
    losses = _train(setup, model, groups, seed=seed, steps=steps)
    evaluation = evaluate_loss(model, setup.validation.validation, batch_size=2, device=torch.device(job.device))
    result = {
        "parameters": sum(value.numel() for group in groups for value in group["params"]),
        "training_losses": losses,
        "loss": evaluation.loss,
        "by_position": evaluation.by_position(),
        "validation_curve": [{"tokens": steps * plan.batch_size * plan.seq_len, "loss": evaluation.loss}],
        "moved": _moves(setup, model),
    }
    if asks_for_keys:
        tokenizer = setup.validation.tokenizer
        keys = passkey(model, tokenizer, lengths=plan.passkey_lengths, samples=plan.passkey_samples, batch_size=4)
        result["passkeys"] = list(zip(keys.lengths, keys.by_length, strict=True))
        result["passkeys_by_depth"] = list(zip(keys.depths, keys.by_depth, strict=True))
    if own := mechanism_parameters(model):
        save_file({key: value.detach().cpu() for key, value in own.items()}, kept.with_suffix(".safetensors"))
    write_json(kept, result)
    return result


@torch.no_grad()
def _moves(setup: Setup, model: PreTrainedModel) -> dict[str, float]:
    """The root mean squares of τ / τ_start − 1, on some text, and of learned strengths α, which start at 0."""
    blocks = setup.validation.validation.select(range(2))
    moves = temperature_moves(model, blocks, batch_size=2, device=torch.device(setup.job.device))
    learned = [module for module in model.modules() if isinstance(module, Exclusive) and module.strength == "learned"]
    found = {"τ": [move["moved"] for move in moves]}
    found["α"] = [float(torch.as_tensor(module.alpha()).square().mean().sqrt()) for module in learned]
    return {name: statistics.fmean(value**2 for value in values) ** 0.5 for name, values in found.items() if values}


def _train(
    setup: Setup, model: PreTrainedModel, groups: Sequence[dict[str, Any]], *, seed: int, steps: int
) -> list[float]:
    """Take the steps, each group at its own rate; the loss of each step."""
    if not groups or not steps:
        return []
    plan, blocks = setup.plan, setup.train.train
    optimizer = make_optimizer(groups)
    warmup = max(1, round(_WARMUP_SHARE * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed)).tolist()
    model.train()
    losses = []
    for step in range(steps):
        rows = [order[(step * plan.batch_size + index) % len(order)] for index in range(plan.batch_size)]
        batch = collate([blocks[row] for row in rows])
        loss = model(**{key: value.to(setup.job.device) for key, value in batch.items()}, use_cache=False).loss
        losses.append(training_step(loss, model, optimizer).item())
        schedule.step()
    return losses


def make_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """What takes the steps of every way."""
    return torch.optim.Adam(list(groups), betas=(0.9, 0.95))


def prepare(model: PreTrainedModel, way: Tuning, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Put in what a way needs, and say what is trained at which rate; everything else stays as it is."""
    groups: list[dict[str, Any]] = []
    old = dict(model.named_parameters())
    if any(way.mechanisms.values()):
        exsel.upgrade(model, **way.mechanisms)
    for each in (way.beside, way):
        if each is not None and each.own != "nothing":
            own = _PARAMETERS[each.own](model, old)
            groups.append({"params": list(own.values()), "lr": rates[each.name]})
    trained = {id(value) for group in groups for value in group["params"]}
    for value in model.parameters():
        value.requires_grad_(id(value) in trained)
    return groups


Parameters = Mapping[str, nn.Parameter]


def _mechanisms(model: PreTrainedModel, old: Parameters) -> Parameters:
    return mechanism_parameters(model)


def _norms(model: PreTrainedModel, old: Parameters) -> Parameters:
    return {name: value for name, value in old.items() if "norm" in name}


def _all(model: PreTrainedModel, old: Parameters) -> Parameters:
    return old


def _lora(model: PreTrainedModel, old: Parameters) -> Parameters:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=["v_proj"]), model)
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


#: The parameters that a way trains, of the model with its mechanisms, and of what the model had before.
_PARAMETERS: Mapping[Own, Callable[[PreTrainedModel, Parameters], Parameters]] = {
    "mechanisms": _mechanisms,
    "norms": _norms,
    "all": _all,
    "lora": _lora,
}


def fine_tuning_outcome(
    question: Question, results: Mapping[str, Sequence[Result]], rates: Mapping[str, float], *, size: str
) -> Outcome:
    """What the losses say.

    Args:
        question: what was compared.
        results: of each way by name, a seed each.
        rates: the learning rate of each.
        size: what was looked at.
    """
    trained = Trained(results)
    estimates = [trained.estimate(contrast) for contrast in question.contrasts]
    conclusion = conclude(question.contrasts, estimates)
    findings = list(map(finding, question.contrasts, estimates))
    charts = [_gain_chart(question, results)]
    if question.asks_for_keys:
        findings += [_gain_of_keys(contrast, results) for contrast in question.contrasts]
        found = (f"{way.label} {_keys_found(results[way.name]).mean:.0%}" for way in question.ways)
        conclusion += f" Passkeys found: {', '.join(found)}."
        charts += _passkey_charts(question, results)
    return Outcome(
        verdict=verdict_of([estimates[0].holds(1)]),
        conclusion=conclusion,
        size=size,
        findings=tuple(findings),
        charts=tuple(charts),
        tables=(_table(question, results, rates),),
    )


def _keys_found(results: Sequence[Result]) -> Estimate:
    """The share of passkeys that a way finds, over all lengths."""
    return Estimate.of(*(statistics.fmean(share for _, share in result["passkeys"]) for result in results))


def _gain_of_keys(contrast: Contrast, results: Mapping[str, Sequence[Result]]) -> Finding:
    """How many more passkeys the way finds whose loss a :func:`gain` compares."""
    (_, base), (_, way) = contrast.terms
    more = _keys_found(results[way.name]).less(_keys_found(results[base.name]))
    return Finding(
        quantity=contrast.quantity.removesuffix("nats") + "share of passkeys found",
        ours=more,
        expected="not below 0",
        holds=None if more.sign() == 0 else more.sign() > 0,
        digits=3,
    )


def _gain_chart(question: Question, results: Mapping[str, Sequence[Result]]) -> Chart:
    base = results[UNTOUCHED.name][0]["by_position"]
    curves = []
    for way in question.ways[1:]:
        by_place = zip(*([at[2] for at in result["by_position"]] for result in results[way.name]), strict=True)
        gains = [
            Estimate.of(*(plain[2] - loss for loss in losses)) for plain, losses in zip(base, by_place, strict=True)
        ]
        curves.append(Curve.of(way.label, [first for first, _, _ in base], gains))
    return Chart(
        name="gain-by-position",
        title="Gain by position",
        x_label="tokens before",
        y_label="gain over the model as it is, nats a token",
        curves=tuple(curves),
        log_x=True,
        caption="Each point is for the positions from there to the next; the last one lies beyond the length that was "
        "trained on. Above 0 is better.",
    )


def _passkey_charts(question: Question, results: Mapping[str, Sequence[Result]]) -> list[Chart]:
    """By length over all depths, and by depth over all lengths."""

    def curve(way: Tuning, name: str) -> Curve:
        places, shares = zip(*(zip(*result[name], strict=True) for result in results[way.name]), strict=True)
        return Curve.of(way.label, places[0], [Estimate.of(*at) for at in zip(*shares, strict=True)])

    by_length, by_depth = (
        tuple(curve(way, name) for way in question.ways) for name in ("passkeys", "passkeys_by_depth")
    )
    share = "share of keys found"
    return [
        Chart(
            name="passkeys",
            title="Passkeys found by length",
            x_label="tokens of the document",
            y_label=share,
            curves=by_length,
            log_x=True,
        ),
        Chart(
            name="passkeys-by-depth",
            title="Passkeys found by depth",
            x_label="depth of the key, from 0 (first) to 1 (right before the question)",
            y_label=share,
            curves=by_depth,
        ),
    ]


def _table(question: Question, results: Mapping[str, Sequence[Result]], rates: Mapping[str, float]) -> Table:
    rows = []
    for way in question.ways:
        loss = Estimate.of(*(result["loss"] for result in results[way.name]))
        rate, tried = rates[way.name], RATES[way.own]
        at_an_end = " (an end of what was tried)" if rate in (tried[0], tried[-1]) else ""
        rows.append(
            (
                way.label,
                f"{results[way.name][0]['parameters']:,}",
                f"{rate:g}{at_an_end}" if rate else "",
                interval(loss, 4),
                ", ".join(
                    f"{name} by {statistics.fmean(result['moved'][name] for result in results[way.name]):.3f}"
                    for name in results[way.name][0]["moved"]
                ),
                *([interval(_keys_found(results[way.name]), 3)] if question.asks_for_keys else []),
            )
        )
    asked = ("passkeys found",) if question.asks_for_keys else ()
    headings = ("trained", "parameters", "learning rate", "validation loss, nats", "moved", *asked)
    return Table(title="All ways, with 95% intervals over the seeds", headings=headings, rows=tuple(rows))
