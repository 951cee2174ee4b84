"""What is measured on a trained model: its loss by position, beyond its length and on other texts, samples, answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch

from exsel.data import PackedData
from exsel.data.passkey import fit_documents
from exsel.diagnostics import similarity_bias, temperature_moves
from exsel.errors import ExselError, explained, is_out_of_memory, require
from exsel.evaluation import Evaluation, evaluate_loss, passkey, sample_texts
from exsel.lengths import check_positions, longest_sequence
from exsel.models import ExselForCausalLM
from exsel.training.own_model import OwnModel
from exsel.training.processes import Processes
from exsel.training.run_model import sketch_model
from exsel.training.settings import Settings

# The number of blocks over which the similarity bias and the temperatures are measured.
_SIMILARITY_BLOCKS = 8
# The number of prompts, and at most how many tokens they have and are gone on with.
_SAMPLES, _PROMPT_TOKENS, _NEW_TOKENS = 3, 128, 96


def check_answers(settings: Settings, data: PackedData, processes: int = 1) -> None:
    """Check that a run's model can be asked what the settings say, and load the tasks' documents."""
    if not settings.passkey and not settings.tasks:
        return
    if settings.factory:
        raise ExselError("--passkey and --tasks ask transformers models alone, and --model is a function")
    if processes > 1:
        raise ExselError("--passkey and --tasks are asked by one process: use `exsel eval` on the trained models")
    if settings.passkey:
        with explained("--passkey"):
            sketch = sketch_model(settings, data.description.vocab_size)
            check_positions(sketch, max(settings.passkey))
            fit_documents([("10000", 0.5)], data.tokenizer, min(settings.passkey))
    if settings.tasks:
        require("lm_eval", "eval")
        from exsel.evaluation.tasks import load_tasks

        load_tasks(settings.tasks)


def measure_trained(
    model: Any,
    settings: Settings,
    data: PackedData,
    processes: Processes,
    *,
    validation: Evaluation | None,
) -> dict[str, Any]:
    """The measurements on a trained model, as they stand in a run's result; each process calls this.

    Args:
        model: trained, on its device; uncompiled or compiled by layers.
        settings, data, processes: of the run.
        validation: the last evaluation on the validation blocks; ``None``: there was none in this process.
    """
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    share = processes.share(settings.micro_batch_size)

    def evaluate(blocks: Any, batch_size: int = share) -> Evaluation:
        return evaluate_loss(model, blocks, batch_size=batch_size, device=device, dtype=dtype)

    similarity = None
    blocks = data.validation.select(range(min(_SIMILARITY_BLOCKS, len(data.validation))))
    if isinstance(model, ExselForCausalLM):
        similarity = similarity_bias(model, blocks, batch_size=share, device=device)
    new_tokens = min(_NEW_TOKENS, settings.seq_len // 2)
    samples = sample_texts(
        model,
        data.tokenizer,
        data.validation,
        count=_SAMPLES,
        prompt_tokens=min(_PROMPT_TOKENS, settings.seq_len - new_tokens),
        new_tokens=new_tokens,
        device=device,
        dtype=dtype,
    )
    evaluated = {name: (evaluate(blocks), described) for name, (blocks, described) in data.evaluation_sets.items()}
    longer, reason = None, None
    try:
        longer = _longer(model, settings, data, processes, evaluate, share)
    except ExselError as error:
        reason = str(error)
    return {
        "by_position": _by_position(validation or evaluate(data.validation)),
        "longer": {
            "length": None if longer is None else len(longer.count),
            "by_position": [] if longer is None else _by_position(longer),
            "reason": reason,
        },
        "evaluation_sets": {
            name: {
                "loss": evaluation.loss,
                "bits_per_byte": evaluation.bits_per_byte(described.bytes_per_token),
                "by_position": _by_position(evaluation),
            }
            for name, (evaluation, described) in evaluated.items()
        },
        "similarity": similarity,
        "temperatures": temperature_moves(model, blocks, batch_size=share, device=device, dtype=dtype),
        "samples": [asdict(sample) for sample in samples],
        "answers": _answers(settings, model, data),
    }


def _by_position(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The loss in buckets of positions that double, 0-based, the last one included."""
    return [{"first": first, "last": end - 1, "loss": loss} for first, end, loss in evaluation.by_position()]


def _longer(
    model: Any,
    settings: Settings,
    data: PackedData,
    processes: Processes,
    evaluate: Callable[[Any, int], Evaluation],
    share: int,
) -> Evaluation:
    """The evaluation on blocks as long as the model can take; an ExselError says why there is none."""
    if settings.pack == "isolate":
        raise ExselError("documents are kept apart, and each begins at position 1")
    if not data.longer:
        raise ExselError("there is too little validation text")
    limit = longest_sequence(model)
    if limit is not None and limit <= settings.seq_len:
        raise ExselError(f"the model has positions for {limit} tokens and no more")
    blocks = [{name: ids[:limit] for name, ids in block.items()} for block in data.longer]
    length = len(blocks[0]["input_ids"])
    if isinstance(model, OwnModel):
        ids = torch.from_numpy(blocks[0]["input_ids"]).long().unsqueeze(0)
        # On a GPU, an index beyond a table of positions would end the process.
        with (
            explained("it cannot be called with longer sequences"),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            deepcopy(model).cpu().eval()(ids)
    try:
        evaluation = evaluate(blocks, max(1, share * settings.seq_len // length))
    except (RuntimeError, MemoryError) as error:
        # Several processes would wait for the one that gave up.
        if processes.count > 1 or not is_out_of_memory(error):
            raise
        raise ExselError(f"there is no memory for {length} tokens at a time") from error
    if not math.isfinite(evaluation.loss):
        raise ExselError(f"its loss on {length} tokens is no number")
    return evaluation


def _answers(settings: Settings, model: Any, data: PackedData) -> list[dict[str, Any]]:
    """Keys found in text, and scores of lm-evaluation-harness: the task, what is counted, and its value."""
    found: list[dict[str, Any]] = []
    if settings.passkey:
        result = passkey(model, data.tokenizer, lengths=settings.passkey, batch_size=settings.micro_batch_size)
        found += [
            {"task": "passkey", "measure": f"found, {length:,} tokens", "value": share}
            for length, share in zip(result.lengths, result.by_length, strict=True)
        ]
    if settings.tasks:
        from exsel.evaluation.tasks import evaluate_tasks, load_tasks

        asked = load_tasks(settings.tasks)
        scores = evaluate_tasks(model, data.tokenizer, asked, batch_size=settings.micro_batch_size).scores
        for each in scores:
            # What a score counts, and of how many questions, as in "perplexity, 1,000 questions, less is better".
            measure = each.metric + ("" if each.documents is None else f", {each.documents:,} questions")
            measure += ", less is better" if each.higher_is_better is False else ""
            found.append({"task": each.task, "measure": measure, "value": each.value})
    return found
