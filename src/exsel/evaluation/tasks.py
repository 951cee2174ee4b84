"""Tasks of lm-evaluation-harness, on a model that is already loaded. Needs the extra ``exsel[eval]``."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub
import torch
from datasets.exceptions import DatasetsError
from lm_eval.api.metrics import mean, mean_stderr, perplexity
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from exsel.data.documents import no_progress_bars
from exsel.errors import ExselError, first_line
from exsel.hub_access import reason_unavailable

#: Named sets of tasks: for each task, the metrics that count.
TASK_SETS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # The eight zero-shot tasks of the XSA paper, with its metrics.
        "exclusive-paper": {
            "arc_easy": ("acc_norm",),
            "boolq": ("acc",),
            "hellaswag": ("acc_norm",),
            "lambada_openai": ("acc",),
            "openbookqa": ("acc_norm",),
            "piqa": ("acc_norm",),
            "social_iqa": ("acc",),
            "winogrande": ("acc",),
        },
        # The seven tasks of the SSA paper, with both metrics where a task has two.
        "selective-paper": {
            "wikitext": ("word_perplexity",),
            "lambada_openai": ("perplexity", "acc"),
            "piqa": ("acc", "acc_norm"),
            "hellaswag": ("acc", "acc_norm"),
            "winogrande": ("acc",),
            "arc_easy": ("acc", "acc_norm"),
            "arc_challenge": ("acc", "acc_norm"),
        },
    }
)
# The seed of the examples that are shown before a question: the harness's own default.
_FEWSHOT_SEED = 1234
# Attributes of the harness's tasks that are refused here, with the reason.
_REFUSED = {
    "UNSAFE_CODE": "runs code that the model writes, which exsel does not do",
    "MULTIMODAL": "shows images or sounds, and these models read text alone",
}


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One number of one task, or of a group of tasks, which has neither documents nor examples (``fewshot``).

    The metric is as the harness calls it, with the filter behind a slash where one was applied to the answers. The
    standard error is that of a mean over documents, and to first order of a perplexity. The version is the task's.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    documents: int | None
    fewshot: int | None
    version: str | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The scores of all tasks."""

    scores: tuple[TaskScore, ...]
    requests: int
    """Continuations whose probability was asked for."""
    truncated: int
    """How many of them are longer than the model's context with their text, whose beginning was cut."""

    def mean(self, task_set: str) -> float | None:
        """The mean over a named set, if each of its tasks has one metric, and all are accuracies; else None."""
        wanted = [(task, metric) for task, metrics in TASK_SETS[task_set].items() for metric in metrics]
        values = [score.value for score in self.scores if (score.task, score.metric) in wanted]
        comparable = len(wanted) == len(TASK_SETS[task_set]) and all(name.startswith("acc") for _, name in wanted)
        return sum(values) / len(values) if comparable and len(values) == len(wanted) else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"scores": [asdict(score) for score in self.scores]}


@dataclass(frozen=True, kw_only=True)
class LoadedTasks:
    """Tasks with their documents, ready to run."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    metrics: Mapping[str, frozenset[str]]
    """Which metrics count, for the tasks of a named set; all of them for others."""


def load_tasks(names: Sequence[str], *, task_path: Path | None = None) -> LoadedTasks:
    """Find tasks and load their documents.

    Args:
        names: of tasks, groups and tags of the harness, and of `TASK_SETS`.
        task_path: a folder of further task definitions (YAML), which take precedence over the harness's own. They can
            call Python code beside them.
    """
    if task_path is not None and not task_path.is_dir():
        raise ExselError(f"--task-path {task_path}: no such folder")
    wanted = list(dict.fromkeys(task for name in names for task in TASK_SETS.get(name, [name])))
    if not wanted or "" in wanted:
        raise ExselError("--tasks names nothing to evaluate: give names of tasks, separated by commas")
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    with _quiet():
        manager = _manager(wanted, task_path)
        for name in wanted:
            found = _load(manager, name)
            tasks |= found["tasks"]
            groups |= found.get("groups", {})
    for name, task in tasks.items():
        for mark, what in _REFUSED.items():
            if getattr(task, mark, False):
                raise ExselError(f"--tasks {name}: the task {what}")
    sets = [TASK_SETS[name] for name in names if name in TASK_SETS]
    metrics = {
        task: frozenset(metric for own in sets for metric in own.get(task, ()))
        for task in tasks
        if task not in names and any(task in own for own in sets)
    }
    return LoadedTasks(tasks=tasks, groups=groups, metrics=metrics)


def _manager(wanted: Sequence[str], task_path: Path | None) -> Any:
    """An index of tasks that contains all of ``wanted``."""
    if task_path is not None:
        own = TaskManager(include_path=str(task_path), include_defaults=False)
        # Reading the harness's own tasks takes seconds. Only groups may refer to them.
        if set(wanted) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=None if task_path is None else str(task_path))
    for name in wanted:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, [*TASK_SETS, *manager.all_tasks], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists those that there are"
            beside = "" if task_path is None else f" (nor in {task_path}: {', '.join(own.all_tasks) or 'none there'})"
            raise ExselError(f"--tasks: no task is called {name!r}{beside}; {hint}")
    return manager


def _load(manager: Any, name: str) -> Any:
    entry = manager.task_index[name]
    source = str((entry.cfg or {}).get("dataset_path", ""))
    on_hub = "/" in source and not Path(source).exists()
    reason = reason_unavailable(source, "dataset") if on_hub else None
    # If the hub cannot be reached, its library should use its cache at once.
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        with no_progress_bars():
            return manager.load([name])
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, DatasetsError) as error:
        remedy = f"mend {entry.yaml_path} or the files that it names"
        if on_hub or not source or entry.yaml_path is None:
            remedy = "connect to the Hugging Face hub (once: the data set is kept), or define the task on local files "
            remedy += "and name their folder with --task-path"
        what = f"its data set {source}" if source else "its data"
        raise ExselError(f"--tasks {name}: {what} cannot be loaded: {reason or first_line(error)}\n{remedy}") from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the harness's warnings, which are about its own command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluate_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: LoadedTasks,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> TaskResult:
    """Ask a transformers language model the questions of tasks, uncompiled, in evaluation mode.

    The harness shows its progress on standard error. Its bootstrap estimates of standard errors, which start a process
    for each core, are replaced by closed forms.

    Args:
        model: on the device that computes.
        tokenizer: the model's own. A token that it adds before every text is kept; one that it adds after is not.
        tasks: from `load_tasks`.
        num_fewshot: examples before each question (by default the task's own number; where a task fixes it at none, it
            stays none).
        limit: documents of each task (default: all).
        batch_size: continuations at a time.

    Raises:
        ExselError: an answer that is longer than the model's context, or a model that gives no numbers.
    """
    for task in tasks.tasks.values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    was_training = model.training
    loaded = {"tasks": dict(tasks.tasks), "groups": dict(tasks.groups), "group_map": {}}
    try:
        with _quiet(), torch.compiler.set_stance("force_eager"):
            asked = _CheckedModel(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size,
                add_bos_token=None if _begins_texts(tokenizer) else False,
            )
            results = evaluate(asked, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    except OverflowError as error:
        raise ExselError("a perplexity is too large for a number: the model knows nothing of these tasks") from error
    finally:
        model.train(was_training)
    return TaskResult(scores=tuple(_scores(results, tasks)), requests=asked.num_requests, truncated=asked.num_truncated)


class _CheckedModel(HFLM):
    """The harness's model, which also counts the requests that do not fit into the context."""

    num_requests = 0
    num_truncated = 0

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> Any:
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ExselError(
                    f"an answer of {len(continuation)} tokens is longer than the model's context of {self.max_length}: "
                    f"choose other tasks or a model with a longer context"
                )
            self.num_truncated += len(context) + len(continuation) > self.max_length + 1
        self.num_requests += len(requests)
        answers = super()._loglikelihood_tokens(requests, **options)
        if any(math.isnan(log_probability) for log_probability, _ in answers):
            raise ExselError("the model gives probabilities that are no numbers: its weights are of no use")
        return answers


def _begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds special tokens, all before the text: a model with such tokens expects them."""
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False)
    with_special: list[int] = tokenizer.encode("a")
    return len(with_special) > len(plain) and with_special[-len(plain) :] == plain


def _scores(results: Mapping[str, Any], tasks: LoadedTasks) -> Iterator[TaskScore]:
    values_of = {**results["results"], **results.get("groups", {})}
    for name in [*tasks.tasks, *(group for group in tasks.groups if group in values_of)]:
        task, wanted = tasks.tasks.get(name), tasks.metrics.get(name)
        version = results["versions"].get(name)
        for key, value in values_of[name].items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or (wanted is not None and metric not in wanted):
                continue
            yield TaskScore(
                task=name,
                metric=metric if chosen == "none" else f"{metric}/{chosen}",
                value=float(value),
                stderr=None if task is None else _stderr(task, results["samples"][name], metric, chosen, float(value)),
                higher_is_better=results["higher_is_better"].get(name, {}).get(metric),
                documents=None if task is None else results["n-samples"][name]["effective"],
                fewshot=None if task is None else results["n-shot"][name],
                version=None if version is None else str(version),
            )


def _stderr(task: Any, samples: Sequence[Mapping[str, Any]], metric: str, chosen: str, value: float) -> float | None:
    """The standard error of a mean, or of the perplexity exp(−mean) to first order."""
    values = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample]
    aggregate = task.aggregation().get(metric)
    if len(values) < 2 or aggregate not in (mean, perplexity):
        return None
    stderr = float(mean_stderr(values))
    return stderr if aggregate is mean else value * stderr
