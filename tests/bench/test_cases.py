from __future__ import annotations

import pytest
import torch

from exsel.bench.cases import SHAPES, Case, Shape, batch_of, check_memory, parse_shapes
from exsel.bench.session import Plan, jobs
from exsel.errors import ExselError


def test_the_paper_s_shapes_have_its_heads() -> None:
    assert SHAPES["0.7b"] == Shape("0.7b", 6, 6, 256)
    assert SHAPES["1.4b"] == Shape("1.4b", 24, 24, 128)
    assert SHAPES["2.7b"] == Shape("2.7b", 24, 24, 128)
    assert SHAPES["llama"] == Shape("llama", 32, 8, 128)
    assert SHAPES["124m"] == Shape("124m", 12, 12, 64)


def test_shapes_by_name_and_by_number() -> None:
    assert parse_shapes("llama, 6x2x16") == (SHAPES["llama"], Shape("6x2x16", 6, 2, 16))


@pytest.mark.parametrize("text", ["9b", "", "4x2", "4x3x16", "0x0x16", "4x2x0", "4x0x16", "-4x2x16"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(ExselError, match="--shapes"):
        parse_shapes(text)


def test_the_tokens_of_a_case_are_constant_while_they_can_be() -> None:
    assert [batch_of(tokens, 4096) for tokens in (256, 4096, 8192)] == [16, 1, 1]


def test_tensors_are_as_a_projection_writes_them() -> None:
    case = Case(shape=Shape("", 4, 2, 16), tokens=8, batch=3, device=torch.device("cpu"), dtype=torch.bfloat16)
    x = case.heads(2)
    assert (tuple(x.shape), x.dtype) == ((3, 2, 8, 16), torch.bfloat16)
    assert x.transpose(1, 2).is_contiguous()
    assert case.heads(4, tokens=1).shape == (3, 4, 1, 16)


def test_what_does_not_fit_is_refused_before_it_is_tried() -> None:
    case = Case(shape=SHAPES["1.4b"], tokens=10**9, batch=1, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ExselError, match="GiB of memory"):
        check_memory([case])


def test_the_cases_of_a_plan() -> None:
    plan = Plan(
        subjects=("attention", "decode"), device="cpu", dtype="float32", shapes=(SHAPES["tiny"],), seq_lens=(64,)
    )
    planned = [(job.subject, job.case.tokens, job.case.batch) for job in jobs(plan)]
    assert planned == [("attention", 64, 64), ("decode", 64, 1), ("decode", 64, 8)]


def test_a_block_comes_with_a_training_step() -> None:
    plan = Plan(subjects=("block",), device="cpu", dtype="float32", shapes=(SHAPES["124m"],), seq_lens=(64,))
    assert [(job.subject, job.case.shape.name) for job in jobs(plan)] == [("block", "124m"), ("step", "tiny")]


@pytest.mark.parametrize(("size", "tokens", "batch"), [("tiny", 512, 8), ("25m", 1024, 4), ("0.7b", 2048, 2)])
def test_a_step_has_as_many_tokens_in_sequences_of_the_sizes_context(
    size: str, tokens: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exsel.bench.session.check_bytes", lambda *_: None)  # nothing is run here
    plan = Plan(subjects=("block",), device="cpu", dtype="float32", shapes=(SHAPES["tiny"],), model=size)
    case = jobs(plan)[-1].case
    assert (case.tokens, case.batch) == (tokens, batch)


@pytest.mark.parametrize("shape", ["llama", "4x2x16"])
def test_a_block_needs_a_size(shape: str) -> None:
    plan = Plan(subjects=("block",), device="cpu", dtype="float32", shapes=parse_shapes(shape))
    with pytest.raises(ExselError, match="tiny, 25m, 124m"):
        jobs(plan)


def test_an_unknown_model_is_refused() -> None:
    plan = Plan(subjects=("block",), device="cpu", dtype="float32", model="7b")
    with pytest.raises(ExselError, match="--model 7b"):
        jobs(plan)
