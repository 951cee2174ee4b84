"""Passkey retrieval: a plain model, trained on with each mechanism on documents with a key to be found.

The paper fine-tunes Pythia, with temperatures. Here the plain model is made first, of real text, and is then trained on
as each variant for the same steps of the same documents: three parts with a passkey, one part text, nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import exsel
from evidence.papers.comparing import interval, verdict_of
from evidence.papers.model_variants import BASELINE, BOTH, EXCLUSIVE, LEARNED_STRENGTH, SELECTIVE, ModelVariant
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from exsel.data import PackedData, load_data
from exsel.data.splitting import is_validation, key_of
from exsel.data.standard_library import read_standard_library
from exsel.evaluation.retrieval import PasskeyResult, passkey
from exsel.files import read_json, write_json, write_text
from exsel.intervals import Estimate
from exsel.machine import can_compile
from exsel.report.charts import Chart, Curve
from exsel.training.output_folder import MODEL as MODEL_FOLDER
from exsel.training.run import train_run
from exsel.training.settings import Settings
from exsel.upgrading.loading import quiet_transformers

#: A model that learns what it can in a minute: many small steps find out how to look a key up, few large ones do not.
MODEL: Mapping[str, Any] = {
    "model_type": "exsel",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "initializer_range": 0.04,
}
#: Tokens a sequence: several documents with a passkey fit into it, and one that is cut in two has lost its key.
SEQ_LEN = 512
#: Tokens of the documents that are trained on, their share of all tokens, and the lengths that are asked for.
TRAINED_LENGTHS = (112, 128, 160)
SHARE = 0.75
ASKED_LENGTHS = (112, 128, 160, 192, 256)
LEARNING_RATE = 4e-3
# Found, of all keys: Pythia, fine-tuned.
_PUBLISHED = {BASELINE: 0.569, SELECTIVE: 0.744}
#: What the plain model is trained on as.
VARIANTS = (BASELINE, SELECTIVE, EXCLUSIVE, LEARNED_STRENGTH, BOTH)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The size at one budget: steps of the plain model and of each variant, and keys for each length and depth."""

    base_steps: int
    steps: int
    batch_size: int
    samples: int
    model: Mapping[str, Any]


_PLANS: Mapping[Budget, _Plan] = {
    "smoke": _Plan(base_steps=2, steps=3, batch_size=2, samples=2, model={**MODEL, "hidden_size": 32}),
    "cpu": _Plan(base_steps=1200, steps=5600, batch_size=2, samples=40, model=MODEL),
    # The batch of the CPU, since few large steps do not learn it: the GPU waits for its launches, and the wider model
    # costs no more time.
    "gpu": _Plan(
        base_steps=2000,
        steps=4000,
        batch_size=4,
        samples=100,
        model={**MODEL, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8},
    ),
}


def write_corpus(path: Path, size: int) -> None:
    """Files of the standard library that train where it trains, up to ``size`` bytes, in the order of their hashes."""
    documents = [(key_of(name), text) for name, text in read_standard_library().items()]
    lines: list[str] = []
    for key, text in sorted(documents):
        if not is_validation(key) and size > 0:
            lines.append(json.dumps({"text": text}) + "\n")
            size -= len(text.encode())
    write_text(path, "".join(lines))


def passkey_data(text: Sequence[str], folder: Path, tokens: int) -> tuple[str, ...]:
    """The ``--data`` of ``tokens`` tokens, one in four of text and the rest in documents with a passkey.

    Args:
        text: files; empty: standard-library source, written to ``folder``.
        folder: exists.
        tokens: that are read; more is made, since some of it validates.
    """
    made = max(round(1.2 * tokens), 200_000)
    if not text:
        corpus = folder / "corpus.jsonl"
        write_corpus(corpus, round((1 - SHARE) * made))
        text = (str(corpus),)
    each = SHARE * made / len(TRAINED_LENGTHS)
    return (*text, *(f"passkey:length={length},count={round(each / length)}" for length in TRAINED_LENGTHS))


def run_passkey(job: Job) -> Outcome:
    """The share of passkeys found after training on as plain attention, and with each mechanism."""
    plan = _PLANS[job.budget]
    job.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[PasskeyResult]] = {variant.name: [] for variant in VARIANTS}
    specs = passkey_data(job.data, job.folder, plan.steps * plan.batch_size * SEQ_LEN)
    text: PackedData | None = None
    keys: PackedData | None = None
    for seed in job.seeds:
        settings = _base_settings(job, plan, seed)
        text = text or _load(settings)
        base = _train(job, settings, text, "base")
        for variant in VARIANTS:
            settings = _settings(
                job, plan, variant, seed, steps=plan.steps, model=base, source=base, data=specs, pack="isolate"
            )
            keys = keys or _load(settings)
            results[variant.name].append(_ask(_train(job, settings, keys, variant.name), job, plan.samples))
    return passkey_outcome(results, size=_size(job, plan))


def _base_settings(job: Job, plan: _Plan, seed: int) -> Settings:
    config = job.folder / "passkey-config.json"
    write_json(config, plan.model)
    return _settings(job, plan, BASELINE, seed, steps=plan.base_steps, model=str(config), data=job.data)


def _load(settings: Settings) -> PackedData:
    return load_data(
        settings.data,
        tokenizer=settings.tokenizer,
        seq_len=settings.seq_len,
        pack=settings.pack,
        validation_blocks=settings.evaluation_blocks,
    )


def _train(job: Job, settings: Settings, data: PackedData, what: str) -> str:
    """Train, or find trained; the model's folder."""
    folder = job.folder / f"passkey-{what}-{job.budget}-seed{settings.seed}"
    name = f"passkey, {'plain model' if what == 'base' else what}, seed {settings.seed}"
    train_run(settings, data, folder, name=name, progress=job.progress, resume=True)
    return str(folder / MODEL_FOLDER)


def _settings(
    job: Job, plan: _Plan, variant: ModelVariant, seed: int, *, steps: int, model: str, **changes: Any
) -> Settings:
    source = changes.get("source")
    return Settings(
        variant=variant,
        seed=seed,
        learning_rate=LEARNING_RATE,
        model=model,
        tokenizer=source or "bytes",
        tokens=steps * plan.batch_size * SEQ_LEN,
        seq_len=SEQ_LEN,
        batch_size=plan.batch_size,
        warmup_steps=steps // 20,
        token_learning_rate=variant.token_learning_rate or 1e-3,
        save_every=500,
        device=job.device,
        dtype="bfloat16" if job.device == "cuda" else "float32",
        compile=can_compile() and job.budget != "smoke",
        **changes,
    )


def _ask(folder: str, job: Job, samples: int) -> PasskeyResult:
    """The keys that a trained model finds; what was asked before is found again."""
    from transformers import AutoTokenizer

    kept = Path(folder).parent / "passkeys.json"
    if not kept.exists():
        with quiet_transformers():
            model = exsel.from_pretrained(folder).to(job.device)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        write_json(kept, asdict(passkey(model, tokenizer, lengths=ASKED_LENGTHS, samples=samples, batch_size=40)))
    found = read_json(kept)
    places = {name: tuple(found[name]) for name in ("lengths", "depths")}
    return PasskeyResult(**{**found, **places, "correct": tuple(map(tuple, found["correct"]))})


def passkey_outcome(results: Mapping[str, Sequence[PasskeyResult]], *, size: str) -> Outcome:
    """What the keys found by each variant, a result a seed, say: the verdict is on selective attention, as the paper's.

    Args:
        results: by the names of :data:`VARIANTS`, with the same lengths and seeds.
        size: what was looked at.
    """
    shares = {variant: Estimate.of(*(result.mean for result in results[variant.name])) for variant in VARIANTS}
    gains = {variant: share.less(shares[BASELINE]) for variant, share in shares.items() if variant is not BASELINE}
    words = {1: "finds more keys than plain attention", 0: "is not told from it", -1: "finds fewer keys"}
    said = (f"{variant.label} {words[gain.sign()]} ({shares[variant].mean:.1%})" for variant, gain in gains.items())
    conclusion = f"Trained on as plain attention, {shares[BASELINE].mean:.1%} of all keys are found; {'; '.join(said)}."
    published = _PUBLISHED[SELECTIVE] - _PUBLISHED[BASELINE]
    findings = [
        Finding(
            quantity=f"gain of {variant.label} over the baseline, share of passkeys found",
            ours=gain,
            published=published if variant is SELECTIVE else None,
            expected="more keys" if variant is SELECTIVE else "not fewer keys",
            holds=gain.holds(1) if variant is SELECTIVE else None if gain.sign() == 0 else gain.sign() > 0,
            digits=3,
        )
        for variant, gain in gains.items()
    ]
    findings += [
        Finding(
            quantity=f"share of passkeys found, {variant.label}",
            ours=share,
            published=_PUBLISHED.get(variant),
            digits=3,
        )
        for variant, share in shares.items()
    ]
    return Outcome(
        verdict=verdict_of([findings[0].holds]),
        conclusion=conclusion,
        size=size,
        findings=tuple(findings),
        charts=(_chart(results),),
        tables=(_table(results),),
    )


def by_length(found: Sequence[PasskeyResult]) -> list[Estimate]:
    """The share of keys found at each length, over the seeds."""
    return [Estimate.of(*shares) for shares in zip(*(one.by_length for one in found), strict=True)]


def _table(results: Mapping[str, Sequence[PasskeyResult]]) -> Table:
    lengths = results[BASELINE.name][0].lengths
    return Table(
        title="Share of passkeys found by length, with 95% intervals over the seeds",
        headings=("trained on as", *(f"{length} tokens" for length in lengths)),
        rows=tuple(
            (variant.label, *(interval(share, 3) for share in by_length(results[variant.name]))) for variant in VARIANTS
        ),
    )


def _chart(results: Mapping[str, Sequence[PasskeyResult]]) -> Chart:
    curves = [
        Curve.of(variant.label, results[variant.name][0].lengths, by_length(results[variant.name]))
        for variant in VARIANTS
    ]
    longest = max(TRAINED_LENGTHS)
    return Chart(
        name="found",
        title="Passkeys found by length",
        x_label="tokens of the document",
        y_label="share of keys found",
        curves=tuple(curves),
        caption=f"Documents of {', '.join(map(str, TRAINED_LENGTHS))} tokens were trained on; beyond {longest} the "
        "model has seen none so long.",
    )


def _size(job: Job, plan: _Plan) -> str:
    tokens = plan.batch_size * SEQ_LEN
    model = plan.model
    text = ", ".join(job.data) if job.data else "standard-library source"
    return (
        f"{model['num_hidden_layers']} layers of width {model['hidden_size']}; {plan.base_steps:,} steps of {tokens:,} "
        f"bytes of {text}, then {plan.steps:,} steps with passkeys; {plan.samples} keys for each of "
        f"{len(ASKED_LENGTHS)} lengths and 5 depths, a seed"
    )
