from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation.test_loss import small_model
from exsel.data import load_tokenizer
from exsel.errors import ExselError

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from exsel.evaluation.tasks import (
    TASK_SETS,
    TaskResult,
    TaskScore,
    _begins_texts,
    evaluate_tasks,
    load_tasks,
)

BYTES = load_tokenizer("bytes")
QUESTIONS = [
    ("The grass is", ["green", "blue", "a key"], 0),
    ("The sky is", ["green", "blue", "a key"], 1),
    ("The sun is", ["yellow", "blue", "again"], 0),
    ("There and back", ["green", "blue", "again"], 2),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def write_tasks(folder: Path) -> Path:
    """Tasks on a local file, of each kind that the papers' tasks have."""
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": [_metric("acc", "mean"), _metric("acc_norm", "mean")],
        },
        "last_word": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}}",
            "doc_to_target": " {{choices[answer]}}",
            "metric_list": [_metric("perplexity", "perplexity"), _metric("acc", "mean")],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{choices[answer]}}",
            "metric_list": [_metric("bits_per_byte", "bits_per_byte")],
        },
        "writing": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [_metric("exact_match", "mean")],
        },
    }
    for name, values in kinds.items():
        write_task(folder, f"local_{name}", **values)
    return folder


def _metric(name: str, aggregation: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": aggregation == "mean"}


def write_task(folder: Path, name: str, **values: Any) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps({**task, **values}))  # JSON is YAML


def scores(result: TaskResult) -> dict[tuple[str, str], TaskScore]:
    return {(score.task, score.metric): score for score in result.scores}


def log_probability(model: torch.nn.Module, context: str, continuation: str) -> float:
    """By hand, in float64; a context that is empty is the end-of-text token."""
    start = BYTES(context, add_special_tokens=False)["input_ids"] or [BYTES.eos_token_id]
    ids = start + BYTES(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(len(start), len(ids))))


@pytest.mark.parametrize("kind", ["exsel", "gpt2"])
def test_equals_log_probabilities_by_hand(folder: Path, kind: str) -> None:
    torch.manual_seed(3)
    model: Any = small_model()
    if kind == "gpt2":
        config = GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
        model = GPT2LMHeadModel(config)
    model.train()
    tasks = load_tasks(["local_choices", "local_last_word", "local_rolling"], task_path=folder)
    result = evaluate_tasks(model, BYTES, tasks, batch_size=3)
    assert model.training
    model.eval()
    found = scores(result)
    right, right_norm, lasts, rolling, size = 0, 0, [], 0.0, 0
    for question, choices, answer in QUESTIONS:
        values = [log_probability(model, question, f" {choice}") for choice in choices]
        right += values.index(max(values)) == answer
        norms = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
        right_norm += norms.index(max(norms)) == answer
        lasts.append(values[answer])
        text = f"{question} {choices[answer]}"
        rolling += log_probability(model, "", text)
        size += len(text)
    assert found["local_choices", "acc"].value == right / 4
    assert found["local_choices", "acc_norm"].value == right_norm / 4
    share = right / 4
    assert found["local_choices", "acc"].stderr == pytest.approx(math.sqrt(share * (1 - share) / 3))
    perplexity = math.exp(-sum(lasts) / 4)
    spread = math.sqrt(sum((value - sum(lasts) / 4) ** 2 for value in lasts) / 3 / 4)
    assert found["local_last_word", "perplexity"].value == pytest.approx(perplexity, rel=1e-4)
    assert found["local_last_word", "perplexity"].stderr == pytest.approx(perplexity * spread, rel=1e-4)
    assert found["local_rolling", "bits_per_byte"].value == pytest.approx(-rolling / size / math.log(2), rel=1e-5)
    assert found["local_rolling", "bits_per_byte"].stderr is None
    assert (result.requests, result.truncated) == (12 + 4 + 4, 0)
    assert {score.documents for score in result.scores} == {4}
    json.dumps(result.to_dict(), allow_nan=False)


def test_limit_and_examples(folder: Path) -> None:
    model = small_model()
    tasks = load_tasks(["local_choices"], task_path=folder)
    score = evaluate_tasks(model, BYTES, tasks, limit=2, num_fewshot=1).scores[0]
    assert (score.documents, score.fewshot) == (2, 1)


def test_it_writes(folder: Path) -> None:
    result = evaluate_tasks(small_model(), BYTES, load_tasks(["local_writing"], task_path=folder))
    assert [score.metric for score in result.scores] == ["exact_match"]
    assert 0 <= result.scores[0].value <= 1


def test_what_does_not_fit_is_counted_or_refused(folder: Path) -> None:
    config = GPT2Config(vocab_size=259, n_positions=17, n_embd=16, n_layer=1, n_head=2)
    result = evaluate_tasks(GPT2LMHeadModel(config), BYTES, load_tasks(["local_choices"], task_path=folder))
    cut = sum(len(f"{question} {choice}") > 18 for question, choices, _ in QUESTIONS for choice in choices)
    assert 0 < cut < 12
    assert result.truncated == cut
    config.n_positions = 5
    with pytest.raises(ExselError, match="an answer of 6 tokens is longer than the model's context of 5"):
        evaluate_tasks(GPT2LMHeadModel(config), BYTES, load_tasks(["local_choices"], task_path=folder))


def test_a_model_that_predicts_no_number(folder: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ExselError, match="its weights are of no use"):
        evaluate_tasks(model, BYTES, load_tasks(["local_choices"], task_path=folder))


def test_a_token_behind_the_text_is_left_out(bpe_file: Path) -> None:
    assert BYTES.encode("a")[-1] == BYTES.eos_token_id  # which would end each question
    assert not _begins_texts(BYTES)
    assert not _begins_texts(load_tokenizer(str(bpe_file)))

    class Beginning:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1, 5] if add_special_tokens else [5]

    assert _begins_texts(Beginning())  # type: ignore[arg-type]


class TestSets:
    def test_a_set_asks_for_its_metrics_alone(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = {"tiny-paper": {"local_choices": ("acc_norm",), "local_last_word": ("acc",)}}
        monkeypatch.setattr("exsel.evaluation.tasks.TASK_SETS", own)
        model = small_model()
        result = evaluate_tasks(model, BYTES, load_tasks(["tiny-paper"], task_path=folder))
        assert list(scores(result)) == [("local_choices", "acc_norm"), ("local_last_word", "acc")]
        assert result.mean("tiny-paper") == pytest.approx(sum(score.value for score in result.scores) / 2)
        # Named beside the set, a task shows all its metrics, and the mean is still of the set's.
        both = evaluate_tasks(model, BYTES, load_tasks(["tiny-paper", "local_choices"], task_path=folder))
        assert list(scores(both))[:2] == [("local_choices", "acc"), ("local_choices", "acc_norm")]
        assert both.mean("tiny-paper") == result.mean("tiny-paper")

    def test_the_papers_tasks_are_the_harnesss(self) -> None:
        """Read from the definitions, since the index of all tasks takes seconds."""
        from lm_eval import tasks as harness
        from lm_eval.tasks._yaml_loader import load_yaml

        root = Path(harness.__file__).parent
        files = {
            "arc_easy": "arc/arc_easy",
            "arc_challenge": "arc/arc_challenge",
            "boolq": "super_glue/boolq/default",
            "hellaswag": "hellaswag/hellaswag",
            "lambada_openai": "lambada/lambada_openai",
            "openbookqa": "openbookqa/openbookqa",
            "piqa": "piqa/piqa",
            "social_iqa": "siqa/siqa",
            "winogrande": "winogrande/default",
            "wikitext": "wikitext/wikitext",
        }
        assert set(files) == {task for tasks in TASK_SETS.values() for task in tasks}
        for task, path in files.items():
            config = load_yaml(root / f"{path}.yaml", resolve_func=False, recursive=True)
            assert config["task"] == task
            known = {metric["metric"] for metric in config["metric_list"]}
            assert all(set(own.get(task, ())) <= known for own in TASK_SETS.values())

    def test_the_mean_is_of_accuracies(self) -> None:
        def result(name: str) -> TaskResult:
            found = [(task, metric) for task, metrics in TASK_SETS[name].items() for metric in metrics]
            return TaskResult(
                scores=tuple(
                    TaskScore(
                        task=task,
                        metric=metric,
                        value=index / 10,
                        stderr=None,
                        higher_is_better=True,
                        documents=1,
                        fewshot=0,
                        version=None,
                    )
                    for index, (task, metric) in enumerate(found)
                ),
                requests=1,
                truncated=0,
            )

        assert result("exclusive-paper").mean("exclusive-paper") == pytest.approx(0.35)
        assert result("selective-paper").mean("selective-paper") is None


class TestMistakes:
    def test_near_matches_before_anything_is_loaded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Without the harness's own tasks, whose index takes seconds to read.
        def own_alone(include_path: str | None, include_defaults: bool = True) -> TaskManager:
            return TaskManager(include_path=include_path, include_defaults=False)

        monkeypatch.setattr("exsel.evaluation.tasks.TaskManager", own_alone)
        monkeypatch.setattr("exsel.evaluation.tasks._load", pytest.fail)
        with pytest.raises(ExselError, match="no task is called 'local_choises'") as caught:
            load_tasks(["local_rolling", "local_choises"], task_path=folder)
        assert "did you mean local_choices" in str(caught.value)
        assert "local_choices, local_last_word, local_rolling, local_writing" in str(caught.value)
        with pytest.raises(ExselError, match="did you mean exclusive-paper"):
            load_tasks(["exclusive_paper"])

    @pytest.mark.slow
    def test_near_matches_in_the_whole_harness(self) -> None:
        with pytest.raises(ExselError, match="no task is called 'helaswag'; did you mean hellaswag"):
            load_tasks(["helaswag"])

    def test_a_task_of_the_hub_without_a_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        write_task(tmp_path, "hub_task", dataset_path="owner/name", dataset_kwargs={}, output_type="loglikelihood")
        with pytest.raises(ExselError) as caught:
            load_tasks(["hub_task"], task_path=tmp_path)
        first, second = str(caught.value).splitlines()
        assert first.startswith("--tasks hub_task: its data set owner/name cannot be loaded: OfflineModeIsEnabled")
        assert "connect to the Hugging Face hub" in second
        assert "--task-path" in second

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        write_task(tmp_path, "no_file", output_type="loglikelihood")
        with pytest.raises(ExselError, match=re.escape(f"mend {tmp_path / 'no_file.yaml'}")):
            load_tasks(["no_file"], task_path=tmp_path)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExselError, match=r"--task-path .*: no such folder"):
            load_tasks(["x"], task_path=tmp_path / "absent")

    @pytest.mark.parametrize("names", [[], [""], ["local_choices", ""]])
    def test_nothing(self, folder: Path, names: list[str]) -> None:
        with pytest.raises(ExselError, match="names nothing to evaluate"):
            load_tasks(names, task_path=folder)

    @pytest.mark.parametrize(("mark", "message"), [("UNSAFE_CODE", "runs code"), ("MULTIMODAL", "images or sounds")])
    def test_what_is_not_for_these_models(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, mark: str, message: str
    ) -> None:
        from lm_eval.api.task import ConfigurableTask

        monkeypatch.setattr(ConfigurableTask, mark, True, raising=False)
        with pytest.raises(ExselError, match=f"--tasks local_writing: the task .*{message}"):
            load_tasks(["local_writing"], task_path=folder)


def test_the_harness_is_imported_for_tasks_alone() -> None:
    import subprocess

    script = "import exsel.evaluation, exsel.cli.eval, sys; assert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
