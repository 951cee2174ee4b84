"""What is done to a model as a whole: compiled, checkpointed, cast, copied, pickled, traced, hooked."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import exsel
from exsel import ExclusiveConfig
from upgrading.architectures import IDS, assert_near, inputs, outputs, plain, upgrade, upgraded

pytestmark = pytest.mark.first

LEARNED = ExclusiveConfig(strength="learned")
#: q, k and v apart; fused; written out; without a mask.
LAYOUTS = ("llama", "gpt2", "gptj", "bert")
NO_CACHE = {name: {} if name in ("bert", "vit") else {"use_cache": False} for name in (*LAYOUTS, "vit", "gemma3", "t5")}


def step(model: Any, name: str, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The output of a forward pass, and what a backward pass gives each parameter."""
    output = model(**inputs(name), **options)[0]
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)
    return output.detach(), [torch.zeros(1) if gradient is None else gradient for gradient in gradients]


def assert_same_step(got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    assert_near(got[0], expected[0])
    largest = max(gradient.abs().max() for gradient in expected[1])
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert (ours - theirs).abs().max() <= 3e-6 * largest


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS[2:])]
)
def test_a_compiled_training_step(name: str) -> None:
    torch.compiler.reset()
    model = upgraded(name, layers=1, exclusive=LEARNED)
    expected = step(model, name, **NO_CACHE[name])
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_same_step(step(compiled, name, **NO_CACHE[name]), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # by torch.compile
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_that_are_compiled_one_by_one_share_a_graph(name: str) -> None:
    """As exsel train compiles them. A graph a layer would take minutes, and PyTorch stops after eight."""
    torch.compiler.reset()
    model = upgraded(name, layers=3, exclusive=LEARNED)
    expected = step(model, name, **NO_CACHE[name])
    counter = CompileCounter()
    for layer in model.model.layers if name == "llama" else model.transformer.h:
        layer.compile(backend=counter)
    assert_same_step(step(model, name, **NO_CACHE[name]), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_lengths_do_not_compile_it_again(name: str) -> None:
    def compilations(model: Any) -> int:
        torch.compiler.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        for length in (5, 7, 9, 8, 6):
            with torch.no_grad():
                logits = compiled(input_ids=IDS[:, :length], use_cache=False).logits
                assert_near(logits, model(input_ids=IDS[:, :length], use_cache=False).logits)
        return counter.frame_count

    assert compilations(upgraded(name, layers=1)) == compilations(plain(name, layers=1)) < 5


@pytest.mark.parametrize("whole", [False, True], ids=["a layer", "the model"])
def test_compiled_before_the_upgrade(whole: bool) -> None:
    torch.compiler.reset()
    model = plain("llama", layers=1)
    before, expected = outputs(model, "llama"), outputs(upgraded("llama", layers=1), "llama")
    (model if whole else model.model.layers[0].self_attn).compile(backend="eager")
    assert_near(outputs(model, "llama"), before)
    assert_near(outputs(upgrade(model), "llama"), expected)
    assert_near(outputs(exsel.downgrade(model), "llama"), before)


OUTPUT_PROJECTIONS = {"llama": "layers.0.self_attn.o_proj", "gpt2": "h.0.attn.c_proj", "gptj": "h.0.attn.out_proj"}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # newer than 5.17
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", OUTPUT_PROJECTIONS)
def test_gradient_checkpointing(name: str, use_reentrant: bool) -> None:
    model = upgraded(name, exclusive=LEARNED).train()
    expected = step(model, name, use_cache=False)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    model.base_model.get_submodule(OUTPUT_PROJECTIONS[name]).register_forward_hook(
        lambda module, arguments, output: calls.append(module)
    )
    output = model(**inputs(name), use_cache=False)[0]
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert len(calls) == 2  # again in the backward pass
    gradients = [parameter.grad for parameter in model.parameters()]
    assert_same_step((output.detach(), gradients), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*LAYOUTS, "gemma3"])
def test_low_precision_costs_what_it_costs_the_plain_model(name: str) -> None:
    def errors(make: Callable[[], Any]) -> tuple[float, float]:
        model = make()
        exact = outputs(model, name)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = outputs(model, name)
        cast = outputs(model.bfloat16(), name)
        assert cast.dtype == torch.bfloat16
        return tuple(
            ((got.float() - exact).square().mean() / exact.square().mean()).sqrt().item() for got in (autocast, cast)
        )

    ours, theirs = errors(lambda: upgraded(name, exclusive=LEARNED)), errors(lambda: plain(name))
    for got, budget in zip(ours, theirs, strict=True):
        assert 0 < got <= 2 * (budget + torch.finfo(torch.bfloat16).eps)


def test_autocast_reaches_every_gradient() -> None:
    model = upgraded("llama", exclusive=LEARNED)
    with torch.autocast("cpu", torch.bfloat16):
        _, gradients = step(model, "llama")
    assert all(gradient.dtype == torch.float32 and gradient.any() for gradient in gradients)


def test_cast_there_and_back() -> None:
    model = upgraded("llama", "sdpa")
    expected = outputs(model, "llama")
    assert_near(outputs(model.double(), "llama").float(), expected)
    half = outputs(copy.deepcopy(model).half(), "llama")
    assert half.dtype == torch.float16
    assert_near(half.float(), expected, 0.02)
    assert torch.equal(outputs(model.float(), "llama"), expected)


def test_pickled() -> None:
    model = upgraded("gpt2", exclusive=LEARNED)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(outputs(loaded, "gpt2"), outputs(model, "gpt2"))
    exsel.downgrade(loaded)
    assert torch.equal(outputs(loaded, "gpt2"), outputs(plain("gpt2"), "gpt2"))
    stream.seek(0)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(stream)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # transformers' own
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported(strict: bool) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = upgraded("llama", layers=1)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    module = Logits()
    length = torch.export.Dim("length", min=3, max=60)
    program = torch.export.export(module, (IDS,), dynamic_shapes=({1: length},), strict=strict)
    for ids in (IDS, IDS[:, :5]):
        with torch.no_grad():
            assert_near(program.module()(ids), module(ids))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`.*deprecated")
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_traced(name: str) -> None:
    model = upgraded(name)
    traced = torch.jit.trace(model, example_kwarg_inputs=inputs(name), strict=False, check_trace=False)
    assert_near(next(iter(traced(**inputs(name)).values())), outputs(model, name))


def test_hooks_of_before_still_run() -> None:
    model = plain("llama")
    seen: list[str] = []
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda module, arguments: seen.append("before"))
    layer.register_forward_hook(lambda module, arguments, output: seen.append("after"))
    layer.q_proj.register_forward_hook(lambda module, arguments, output: 2 * output)
    doubled = upgraded("llama")
    doubled.model.layers[0].self_attn.q_proj.weight.data *= 2
    assert_near(outputs(upgrade(model), "llama"), outputs(doubled, "llama"))
    assert seen == ["before", "after"]


@pytest.mark.parametrize("hooked_first", [True, False])
def test_hooks_of_accelerate(hooked_first: bool) -> None:
    """They put a forward pass of their own on each instance, and a removed one leaves the class's there."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Counting(hooks.ModelHook):  # type: ignore[name-defined,misc]
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    hook = Counting()
    model = plain("llama")
    before, expected = outputs(model, "llama"), outputs(upgraded("llama"), "llama")
    if not hooked_first:
        upgrade(model)
    for layer in model.model.layers:
        hooks.add_hook_to_module(layer.self_attn, hook)
    if hooked_first:
        upgrade(model)
    assert torch.equal(outputs(model, "llama"), expected)
    assert torch.equal(outputs(exsel.downgrade(model), "llama"), before)
    assert hook.calls == 4
    hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(outputs(upgrade(model), "llama"), expected)
    assert torch.equal(outputs(exsel.downgrade(model), "llama"), before)
    assert hook.calls == 4


def test_dispatched_by_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.dispatch_model(plain("llama"), {"": "cpu"}, force_hooks=True)
    assert torch.equal(outputs(upgrade(model), "llama"), outputs(upgraded("llama"), "llama"))


def test_offloaded_weights_are_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(plain("llama"), execution_device="cpu")
    with pytest.raises(ValueError, match="accelerate offloads its weights"):
        exsel.upgrade(model, exclusive=True)
    assert torch.equal(outputs(model, "llama"), outputs(plain("llama"), "llama"))


def test_a_forward_pass_of_the_instance_is_refused() -> None:
    model = plain("llama")
    layer = model.model.layers[1].self_attn
    original = layer.forward
    layer.forward = lambda *args, **kwargs: original(*args, **kwargs)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn.*its forward was replaced on the instance"):
        exsel.upgrade(model, exclusive=True)
    del layer.forward
    upgrade(model)
    of_upgraded = layer.forward
    layer.forward = lambda *args, **kwargs: of_upgraded(*args, **kwargs)
    expected = outputs(model, "llama")
    with pytest.raises(ValueError, match="was replaced on the instance: take that back first"):
        exsel.downgrade(model)
    assert torch.equal(outputs(model, "llama"), expected)
