"""The temperatures' modules: the paper's terms, how they start, and that every parameter counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from exsel import SelectiveConfig
from exsel.config import PositionForm, TokenTerm
from exsel.nn import Temperature
from exsel.nn.projections import Geometry
from exsel.nn.temperature import build_temperatures

HEADS, HEAD_DIM, HIDDEN, TOKENS = 3, 8, 12, 5
TERMS: list[TokenTerm] = ["shared", "mlp", "linear", "frequency", "constant", "none"]


def inputs() -> dict[str, Tensor]:
    return {
        "projection": torch.randn(2, HEADS, TOKENS, HEAD_DIM),
        "position": torch.tensor([[1, 2, 3, 4, 5], [1, 1, 2, 1, 1000]]),
        "hidden_states": torch.randn(2, TOKENS, HIDDEN),
        "token_frequency": torch.randn(2, TOKENS),
    }


def build(token: TokenTerm, **options: Any) -> Temperature:
    return Temperature(HEADS, HEAD_DIM, token=token, hidden_size=HIDDEN, **options)


def moved(temperature: Temperature) -> Temperature:
    """With parameters away from where they start."""
    with torch.no_grad():
        for parameter in temperature.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return temperature


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("position_per_head", [False, True])
@pytest.mark.parametrize("form", ["sigmoid", "double_exponential"])
@pytest.mark.parametrize("token", TERMS)
def test_closed_form(
    token: TokenTerm, form: PositionForm, position: bool, per_head: bool, position_per_head: bool
) -> None:
    options: dict[str, Any] = {"per_head": per_head, "position_per_head": position_per_head, "position_form": form}
    temperature = moved(build(token, position=position, **options)).double()
    given = {name: x if name == "position" else x.double() for name, x in inputs().items()}
    w, expected = temperature.weight, torch.ones(2, HEADS, TOKENS, dtype=torch.float64)
    if w is not None:
        assert w.shape[0] == (HEADS if per_head else 1)
        w = w.expand(HEADS, -1)
    if token == "shared":
        assert w is not None
        expected = expected + torch.tanh(torch.einsum("bhtd,hd->bht", F.gelu(given["projection"]), w))
    elif token == "mlp":
        assert w is not None
        assert temperature.feature_proj is not None
        rows = temperature.feature_proj.weight.view(HEADS, HEAD_DIM // 2, HIDDEN)
        features = torch.einsum("bte,hfe->bhtf", given["hidden_states"], rows)
        expected = expected + torch.tanh(torch.einsum("bhtf,hf->bht", F.gelu(features), w))
    elif token == "linear":
        assert w is not None
        expected = expected + torch.tanh(torch.einsum("bte,he->bht", given["hidden_states"], w))
    elif token == "frequency":
        assert w is not None
        expected = expected + torch.tanh(w * given["token_frequency"][:, None])
    elif token == "constant":
        assert w is not None
        expected = expected + torch.tanh(w)
    if position:
        a = temperature.position_logit
        assert a is not None
        assert a.shape[0] == (HEADS if position_per_head else 1)
        coefficient = 1 / (1 + torch.exp(-a)) if form == "sigmoid" else torch.exp(-torch.exp(a))
        expected = expected + coefficient[:, None] * given["position"].double().log()[:, None]
    tau = temperature(**given)
    torch.testing.assert_close(tau, expected, rtol=1e-13, atol=1e-13)
    parameters, along = list(temperature.parameters()), torch.randn_like(expected)
    if not parameters:
        return
    found, wanted = (torch.autograd.grad((x * along).sum(), parameters) for x in (tau, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("token", TERMS)
def test_autocast_and_low_precision_leave_it_in_float32(token: TokenTerm) -> None:
    temperature, given = moved(build(token)), inputs()
    exact = temperature(**given)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = temperature(**given)
    assert inside.dtype == torch.float32
    # W' is a layer of the model, and is computed as the others are.
    assert (inside - exact).abs().max() <= (0.02 if token == "mlp" else 1e-6)


def test_parameters_are_those_of_the_form() -> None:
    def shapes(token: TokenTerm, **options: bool) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in build(token, **options).named_parameters()}

    assert shapes("shared") == {"weight": (HEADS, HEAD_DIM), "position_logit": (HEADS,)}
    assert shapes("shared", per_head=False, position=False) == {"weight": (1, HEAD_DIM)}
    assert shapes("mlp", position=False) == {
        "weight": (HEADS, HEAD_DIM // 2),
        "feature_proj.weight": (HEADS * HEAD_DIM // 2, HIDDEN),
    }
    assert shapes("linear") == {"weight": (HEADS, HIDDEN), "position_logit": (HEADS,)}
    assert shapes("constant", position=False) == {"weight": (HEADS, 1)}
    assert shapes("constant", position=False, per_head=False) == {"weight": (1, 1)}
    assert shapes("frequency", position_per_head=False) == {"weight": (HEADS, 1), "position_logit": (1,)}
    assert shapes("none") == {"position_logit": (HEADS,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token", TERMS)
def test_starts_as_one_without_position(token: TokenTerm, dtype: torch.dtype) -> None:
    given = {name: x if name == "position" else x.to(dtype) for name, x in inputs().items()}
    tau = build(token, position=False).to(dtype)(**given)
    assert torch.equal(tau, torch.ones(2, HEADS, TOKENS)), "exactly"


@pytest.mark.parametrize("position_init", [6e-4, 0.1])
@pytest.mark.parametrize("form", ["sigmoid", "double_exponential"])
@pytest.mark.parametrize("token", TERMS)
def test_starts_within_the_bound_with_position(token: TokenTerm, form: PositionForm, position_init: float) -> None:
    given = inputs()
    tau = build(token, position_form=form, position_init=position_init)(**given)
    bound = position_init * given["position"].double().log()[:, None]
    excess = tau.double() - 1
    assert (excess.abs() <= bound * (1 + 1e-4) + 1.2e-7).all()
    torch.testing.assert_close(excess, bound.expand_as(excess), rtol=1e-3, atol=2e-7)
    assert torch.equal(tau[..., 0], torch.ones(2, HEADS)), "log 1 = 0"


@pytest.mark.parametrize(("logit", "position_init"), [(2.0, 6.18e-4), (1.5, 1.131e-2)])
def test_starts_where_the_authors_code_starts(logit: float, position_init: float) -> None:
    built = build("none", position_form="double_exponential", position_init=position_init)
    assert built.initial_position_logit == pytest.approx(logit, abs=1e-3)


@pytest.mark.parametrize("token", TERMS)
def test_every_parameter_receives_a_gradient_and_counts(token: TokenTerm) -> None:
    temperature, given = build(token), inputs()
    if token == "mlp":  # W' has one once w ≠ 0
        assert temperature.weight is not None
        with torch.no_grad():
            temperature.weight.fill_(0.1)
    before = temperature(**given)
    before.square().sum().backward()
    for name, parameter in temperature.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        with torch.no_grad():
            parameter.add_(0.3)
            after = temperature(**given)
            parameter.sub_(0.3)
        assert (after - before).abs().max() > 1e-3, name


def test_reset_parameters_starts_again() -> None:
    temperature = moved(build("shared", position_init=0.25))
    temperature.reset_parameters()
    assert temperature.weight is not None
    assert temperature.position_logit is not None
    assert not temperature.weight.any()
    torch.testing.assert_close(torch.sigmoid(temperature.position_logit), torch.full((HEADS,), 0.25))


def test_position_of_one_sequence_serves_the_batch() -> None:
    temperature, given = moved(build("shared")), inputs()
    one = temperature(given["projection"], torch.arange(1, 6))
    torch.testing.assert_close(one, temperature(given["projection"], torch.arange(1, 6).expand(2, -1)))


def test_bfloat16_keeps_the_position() -> None:
    """6e-4 log n is less than bfloat16 can tell from 1."""
    tau = build("none").to(torch.bfloat16)(torch.zeros(1, HEADS, 2, HEAD_DIM).bfloat16(), torch.tensor([1, 3]))
    assert math.isclose(tau[0, 0, 1].item() - 1, 6e-4 * math.log(3), rel_tol=2e-2)


@pytest.mark.parametrize(
    ("token", "missing", "message"),
    [
        ("shared", "position", "positional term needs position"),
        ("none", "position", "positional term needs position"),
        ("mlp", "hidden_states", "token='mlp' needs hidden_states"),
        ("linear", "hidden_states", "token='linear' needs hidden_states"),
        ("frequency", "token_frequency", "token='frequency' needs token_frequency"),
    ],
)
def test_missing_input(token: TokenTerm, missing: str, message: str) -> None:
    given = inputs()
    del given[missing]
    with pytest.raises(ValueError, match=message):
        build(token)(**given)


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match=r"token must be one of shared, mlp, .*; got 'length'"):
        Temperature(HEADS, HEAD_DIM, token="length")  # type: ignore[arg-type]
    for token in ("mlp", "linear"):
        with pytest.raises(ValueError, match=f"token='{token}' reads the layer's input: pass its width as hidden_size"):
            Temperature(HEADS, HEAD_DIM, token=token)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position_form must be one of sigmoid, double_exponential; got 'log'"):
        Temperature(HEADS, HEAD_DIM, position_form="log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"position_init is c\(a\) and must lie in \(0, 1\), got 1"):
        Temperature(HEADS, HEAD_DIM, position_init=1)


class TestBuild:
    def build(self, **options: Any) -> dict[str, Temperature]:
        return dict(build_temperatures(SelectiveConfig(**options), Geometry(6, 2, HEAD_DIM), HIDDEN).items())  # type: ignore[arg-type]

    def test_which(self) -> None:
        assert self.build().keys() == {"query", "value"}
        assert self.build(key=True, value=False).keys() == {"query", "key"}
        assert self.build(query=False).keys() == {"value"}

    def test_heads_are_those_of_what_is_scaled(self) -> None:
        built = self.build(key=True)
        assert {name: temperature.num_heads for name, temperature in built.items()} == {
            "query": 6,
            "key": 2,
            "value": 2,
        }

    def test_position_by_what_is_scaled(self) -> None:
        built = self.build(key=True, value_position=False)
        assert [built[name].position_logit is not None for name in ("query", "key", "value")] == [True, True, False]
        built = self.build(key=True, position=False)
        assert [built[name].position_logit is not None for name in ("query", "key", "value")] == [False, False, True]

    def test_options_arrive(self) -> None:
        (temperature,) = self.build(
            value=False,
            token="frequency",
            per_head=False,
            position_form="double_exponential",
            position_per_head=False,
            position_init=math.exp(-1),
        ).values()
        assert temperature.weight is not None
        assert temperature.weight.shape == (1, 1)
        assert temperature.position_logit is not None
        assert temperature.position_logit.tolist() == [0.0]
