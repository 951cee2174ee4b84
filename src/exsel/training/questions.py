"""What a run's trained model answers: keys to be found in text, and the questions of lm-evaluation-harness."""

from __future__ import annotations

from typing import Any

from exsel.data import PackedData
from exsel.data.passkey import fit_documents
from exsel.errors import ExselError, explained, require
from exsel.evaluation import passkey
from exsel.lengths import check_positions
from exsel.training.run_model import sketch_model
from exsel.training.settings import Settings


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


def ask_trained(settings: Settings, model: Any, data: PackedData) -> list[dict[str, Any]]:
    """The scores of a run's trained model: the task, what is counted, and its value."""
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
