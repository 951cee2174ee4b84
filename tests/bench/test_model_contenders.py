"""The models behind ``block`` and ``step``."""

from __future__ import annotations

import pytest
import torch

from exsel.bench.cases import SHAPES, Case
from exsel.bench.measuring import CpuClock, measure
from exsel.bench.model_contenders import VARIANTS, SharedWeights, block_contenders, build, step_contenders

CPU = torch.device("cpu")


@pytest.mark.parametrize("mechanisms", ["exclusive", "exclusive+selective"])
def test_the_plain_forms_make_the_same_model(mechanisms: str) -> None:
    ids = torch.randint(3, 259, (2, 24))
    ours, plain = (build(name, "tiny", CPU, layers=2) for name in (mechanisms, f"naive {mechanisms}"))
    with torch.no_grad():
        logits = ours(input_ids=ids).logits
        torch.testing.assert_close(plain(input_ids=ids).logits, logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(build("baseline", "tiny", CPU, layers=2)(input_ids=ids).logits, logits, atol=1e-2)


def test_eager_blocks_are_measured(said: list[str]) -> None:
    case = Case(shape=SHAPES["tiny"], tokens=16, batch=2, device=CPU, dtype=torch.float32)
    chosen = [contender for contender in block_contenders(case) if contender.group == "eager"]
    rows = measure(chosen, clock=CpuClock(least=0), device=CPU, rounds=1, say=said.append)
    assert [row["contender"] for row in rows] == list(VARIANTS)
    assert all(set(row["passes"]) == {"forward", "backward", "both"} for row in rows)
    assert {row["floor"] for row in rows} == {"baseline"}


def test_a_step_trains_and_shares_the_weights() -> None:
    case = Case(shape=SHAPES["tiny"], tokens=32, batch=2, device=CPU, dtype=torch.float32)
    chosen = {contender.name: contender for contender in step_contenders(case) if contender.group == "eager"}
    works = [chosen[name].prepare() for name in ("baseline", "exclusive+selective")]
    losses = [float(works[index % 2].forward()) for index in range(8)]
    assert (works[0].name, works[0].gradient) == ("step", None)
    # What one learnt the other knows: random bytes at first cost ln 259.
    assert losses[-1] < losses[1]


def test_shared_weights_are_the_very_same_and_stay_tied() -> None:
    weights = SharedWeights()
    first, second = build("baseline", "tiny", CPU, layers=1), build("exclusive+selective", "tiny", CPU, layers=1)
    for model in (first, second):
        weights.share(model)
    shared = dict(first.named_parameters())
    own = {name: parameter for name, parameter in second.named_parameters() if name not in shared}
    assert all(dict(second.named_parameters())[name] is parameter for name, parameter in shared.items())
    assert all("temperatures" in name for name in own)
    assert len(own) == 4
    assert second.lm_head.weight is first.model.embed_tokens.weight
