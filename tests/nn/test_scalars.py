"""The mechanisms' scalars keep 32 bits whatever a model is, and whatever is done to its dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import exsel
from exsel import ExclusiveConfig, SelectiveConfig
from exsel.nn import Exclusive, Temperature
from exsel.nn.self_attention import SelfAttention
from exsel.training.mechanism_parameters import scalar_names
from models.small_models import small_model
from upgrading.upgraded_models import IDS, llama

BOTH: dict[str, Any] = {
    "exclusive": ExclusiveConfig(strength="learned"),
    "selective": SelectiveConfig(token="mlp", key=True),
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "upgraded": lambda: llama(*BOTH.values()),
    "own": lambda: small_model(**BOTH),
    "layer": lambda: SelfAttention(32, 4, exclusive="learned", selective=BOTH["selective"]),
}

CASTS: dict[str, tuple[Callable[[nn.Module], Any], torch.dtype]] = {
    "to": (lambda model: model.to(torch.bfloat16), torch.float32),
    "to device and dtype": (lambda model: model.to("cpu", torch.float16), torch.float32),
    "half": (lambda model: model.half(), torch.float32),
    "bfloat16": (lambda model: model.bfloat16(), torch.float32),
    "type": (lambda model: model.type(torch.bfloat16), torch.float32),
    "twice": (lambda model: model.bfloat16().to(torch.float16), torch.float32),
    "double": (lambda model: model.double(), torch.float64),
    "double and down": (lambda model: model.double().bfloat16(), torch.float32),
    "meta": (lambda model: model.to("meta").bfloat16(), torch.float32),
    "assigned": (
        lambda model: model.load_state_dict(
            {
                name: value.bfloat16() if value.is_floating_point() else value
                for name, value in model.state_dict().items()
            },
            assign=True,
        ),
        torch.float32,
    ),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def dtypes(model: nn.Module) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the scalars, and of all other parameters."""
    scalars = scalar_names(model)
    assert scalars
    parameters = dict(model.named_parameters())
    return (
        {parameters[name].dtype for name in scalars},
        {parameter.dtype for name, parameter in parameters.items() if name not in scalars},
    )


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("build", MODELS)
def test_casts(build: str, cast: str) -> None:
    model = MODELS[build]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change, expected = CASTS[cast]
    change(model)
    assert dtypes(model)[0] == {expected}
    assert dtypes(model)[1] <= {torch.bfloat16, torch.float16, torch.float64}
    if cast not in ("meta", "assigned"):
        for name in scalar_names(model):
            assert torch.equal(model.state_dict()[name], before[name].to(expected)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_default_dtype(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        model = SelfAttention(32, 4, exclusive="learned", selective=SelectiveConfig(token="frequency"))
    assert dtypes(model) == ({torch.float64 if dtype == torch.float64 else torch.float32}, {dtype})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_upgrade_of_a_model_in_another_dtype(dtype: torch.dtype) -> None:
    model = exsel.downgrade(llama()).to(dtype)
    exsel.upgrade(model, **BOTH)
    assert dtypes(model) == ({torch.float64 if dtype == torch.float64 else torch.float32}, {dtype})


@pytest.mark.parametrize("build", ["upgraded", "own"])
def test_training_in_bfloat16_moves_the_scalars(build: str) -> None:
    """Steps of 1e-3 are far below bfloat16's of 0.03 near the logit where positions start."""
    model: Any = MODELS[build]().bfloat16().train()
    for module in model.modules():
        if isinstance(module, (Temperature, Exclusive)):
            module.reset_parameters()
    scalars = {name: parameter for name, parameter in model.named_parameters() if name in scalar_names(model)}
    before = {name: parameter.detach().clone() for name, parameter in scalars.items()}
    optimizer = torch.optim.AdamW(scalars.values(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        model(input_ids=IDS.clamp_max(60), labels=IDS.clamp_max(60)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in scalars.items():
        assert 5e-4 < (parameter - before[name]).abs().max() < 4e-3, name


@pytest.mark.parametrize("strength", [0.1, -1.0, 1e-300])
def test_a_fixed_strength_stands_in_the_state_dict(strength: float) -> None:
    module = Exclusive(4, strength)
    state = module.bfloat16().state_dict()
    assert float(bytes(state["fixed_strength"].tolist())) == strength
    Exclusive(4, strength).load_state_dict(state)
    with pytest.raises(RuntimeError, match=f"Exclusive was saved with a strength of '{strength}', and has 0.5 here"):
        Exclusive(4, 0.5).load_state_dict(state)
    with pytest.raises(RuntimeError, match="fixed_strength"):
        Exclusive(4, "learned").load_state_dict(state)
    plain, exclusive = SelfAttention(32, 4, exclusive=None), SelfAttention(32, 4, exclusive=strength)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*exclusive\.fixed_strength"):
        plain.load_state_dict(exclusive.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*exclusive\.fixed_strength"):
        exclusive.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", ["torchao", "bnb4", "bnb8"])
def test_quantised_models(kind: str, tmp_path: Any) -> None:
    """Before the upgrade or when it is loaded: the scalars are float32 and train, and an MLP's W' may be quantised."""
    import transformers

    if kind == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        how = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    else:
        pytest.importorskip("bitsandbytes")
        how = transformers.BitsAndBytesConfig(load_in_4bit=kind == "bnb4", load_in_8bit=kind == "bnb8")
    model = llama(*BOTH.values())
    model.save_pretrained(tmp_path / "upgraded")
    exsel.downgrade(llama()).save_pretrained(tmp_path / "plain")
    loaded = exsel.from_pretrained(tmp_path / "upgraded", quantization_config=how)
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how)
    exsel.upgrade(base.requires_grad_(False), **BOTH)
    expected = model(IDS).logits
    assert (loaded(IDS).logits - expected).norm() < 0.2 * expected.norm()
    base(IDS, labels=IDS).loss.backward()
    parameters = dict(base.named_parameters())
    assert dtypes(loaded)[0] == dtypes(base)[0] == {torch.float32}
    assert all(parameters[name].grad is not None for name in scalar_names(base))


def test_an_mlps_matrix_whose_numbers_are_codes() -> None:
    """As a quantiser leaves it, which takes its input in any dtype."""

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 16, dtype=torch.uint8), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.is_floating_point()
            return x @ self.weight.to(x.dtype).T

    temperature = Temperature(2, 8, token="mlp", position=False, hidden_size=16)
    temperature.feature_proj = Codes()  # type: ignore[assignment]
    x = torch.randn(1, 3, 16, dtype=torch.bfloat16)
    assert torch.equal(temperature(torch.randn(1, 2, 3, 8), hidden_states=x), torch.ones(1, 2, 3))
