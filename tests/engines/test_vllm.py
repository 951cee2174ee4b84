"""vLLM serves what transformers computes: exsel's own models and upgraded ones, in batches that change all the time."""

# ruff: noqa: E402 (vLLM may be absent)
from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # vLLM and what it imports warn
pytest.importorskip("vllm", reason="it has an environment of its own, which .ci/run makes")

# In this process, with the memory of a small machine, and nothing looked for in the network.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from tests.engines.served import CASES, TOKENS, Answer, Wanted, assert_same, prompts, save_all


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[Any]:
    """Served with chunks of 32 tokens and 4 sequences at a time, so that prompts are cut and requests wait."""
    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 4, "max_num_batched_tokens": 32, **options}
    llm = LLM(str(folder), skip_tokenizer_init=True, max_model_len=128, enable_prefix_caching=True, **options)
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def generate(llm: Any) -> list[Answer]:
    options = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts()], options, use_tqdm=False)
    made = []
    for answer in answers:
        (output,) = answer.outputs
        logs = [log[token].logprob for log, token in zip(output.logprobs, output.token_ids, strict=True)]
        made.append((list(output.token_ids), logs))
    return made


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """Made before vLLM changes the models' classes for itself."""
    return save_all(tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize("name", CASES)
def test_it_serves_what_transformers_computes(name: str, wanted: Wanted) -> None:
    folder, answers = wanted[name]
    with serve(folder) as llm:
        assert_same(generate(llm), answers)
        assert_same(generate(llm), answers)  # from the cache


def test_two_processes_divide_the_heads(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder, answers = wanted["llama, both"]
    with serve(folder, tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        assert_same(generate(llm), answers)


def test_compiled_as_vllm_does_by_default(wanted: Wanted) -> None:
    folder, answers = wanted["own, both"]
    with serve(folder, enforce_eager=False) as llm:
        assert_same(generate(llm), answers)


def test_projections_are_one_product_and_temperatures_stay_in_float32(wanted: Wanted) -> None:
    with serve(wanted["llama, both"][0], dtype="bfloat16") as llm:
        model = llm.llm_engine.model_executor.driver_worker.get_model()
        projections = [name for name, _ in model.named_modules() if name.endswith("_proj") and "self_attn" in name]
        dtypes = {name: value.dtype for name, value in model.named_parameters() if "exsel" in name}
        generate(llm)
    assert sorted(name.rpartition(".")[2] for name in projections) == ["o_proj"] * 2 + ["qkv_proj"] * 2
    assert len(dtypes) == 2 * 7
    assert set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("name", ["own, both", "llama, both"])
def test_vllm_without_the_plugin_refuses(name: str, wanted: Wanted) -> None:
    """Its own way to run models of transformers, and an environment that turns plugins off."""
    folder = wanted[name][0]
    with pytest.raises((ValueError, RuntimeError)), serve(folder, model_impl="transformers"):
        pass
    program = f"from vllm.config import ModelConfig; ModelConfig(model={str(folder)!r}, skip_tokenizer_init=True)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "VLLM_PLUGINS": ""}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "has model type `exsel" in done.stderr


def test_weights_of_another_strength_are_refused(wanted: Wanted, tmp_path: Path) -> None:
    folder = shutil.copytree(wanted["own, linear"][0], tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    config["exclusive"]["strength"] = 0.25
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"0\.5"), serve(folder):
        pass
