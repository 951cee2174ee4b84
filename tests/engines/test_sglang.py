"""SGLang serves what transformers computes: exsel's own models and upgraded ones, in batches that change."""

# ruff: noqa: E402 (SGLang may be absent)
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # SGLang and what it imports warn
sglang = pytest.importorskip("sglang", reason="it has an environment of its own, which .ci/run makes")

from tests.engines.served import TOKENS, Answer, Wanted, assert_same, prompts, save_all

# A start takes half a minute: each case has what no other has.
SERVED = ("own, both", "own, frequency", "llama, both", "qwen3, some layers")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    return save_all(tmp_path_factory.mktemp("served"), SERVED)


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[Any]:
    """Served with chunks of 32 tokens and 4 sequences at a time, so that prompts are cut and requests wait."""
    engine = sglang.Engine(
        model_path=str(folder),
        device="cpu",
        dtype="float32",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        grammar_backend="none",
        skip_tokenizer_init=True,
        disable_cuda_graph=True,
        disable_overlap_schedule=True,
        mem_fraction_static=0.2,
        max_total_tokens=2048,
        max_running_requests=4,
        chunked_prefill_size=32,
        **options,
    )
    try:
        yield engine
    finally:
        engine.shutdown()


def generate(engine: Any) -> list[Answer]:
    options = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    answers = engine.generate(input_ids=prompts(), sampling_params=options, return_logprob=True)
    return [
        (answer["output_ids"], [logprob for logprob, *_ in answer["meta_info"]["output_token_logprobs"]])
        for answer in answers
    ]


@pytest.mark.parametrize("name", SERVED)
def test_it_serves_what_transformers_computes(name: str, wanted: Wanted) -> None:
    folder, answers = wanted[name]
    with serve(folder) as engine:
        assert_same(generate(engine), answers)
        assert_same(generate(engine), answers)  # from the cache


def test_two_processes_divide_the_heads(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    folder, answers = wanted["llama, both"]
    with serve(folder, tp_size=2) as engine:
        assert_same(generate(engine), answers)


def test_every_architecture_of_exsels_is_served_by_its_own_class() -> None:
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.plugins import load_plugins

    from exsel.engines.sglang.sglang_model import SGLangForCausalLM

    load_plugins()
    for name in ("ExselForCausalLM", "UpgradedLlamaForCausalLM", "UpgradedGPT2LMHeadModel"):
        assert ModelRegistry.resolve_model_cls([name]) == (SGLangForCausalLM, name)
