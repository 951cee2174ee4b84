"""What two processes check about upgraded models; :mod:`test_distributed` starts them.

Each check compares with the same model in one process.
"""

from __future__ import annotations

import contextlib
import json
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import exsel
from exsel import ExclusiveConfig, SelectiveConfig
from exsel.nn import Exclusive, Temperature
from exsel.training.mechanism_parameters import scalar_names
from models.small_models import small_model
from upgrading.upgraded_models import LEARNED, gpt2, llama, upgraded

IDS = torch.randint(59, (4, 12), generator=torch.Generator().manual_seed(3))
SHARED = SelectiveConfig(key=True, per_head=False, position_per_head=False)
LINEAR = SelectiveConfig(token="linear", key=True, position_form="double_exponential")
MIXED = SelectiveConfig(token="mlp", position_per_head=False)


def step(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logits of a training step, gradients in the parameters."""
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    return output.loss.detach(), output.logits.detach()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_gradients(model: nn.Module, expected: nn.Module) -> None:
    gradients = {name: parameter.grad for name, parameter in expected.named_parameters()}
    found = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.any(), name
        error = (whole(found[name]) - gradient).abs().max()
        assert error <= 1e-8 * gradient.abs().max(), f"{name}: {error}"


def own_part(ids: Tensor) -> Tensor:
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def data_parallel(build: Callable[[], Any]) -> None:
    expected, model = build().double().train(), DistributedDataParallel(build().double().train())
    step(expected, IDS)
    step(model, own_part(IDS))
    assert_same_gradients(model, expected)


def sharded(build: Callable[[], Any], reentrant: bool | None = None) -> None:
    expected, model = build().double().train(), build().double().train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    loss, _ = step(expected, IDS)
    own_loss, _ = step(model, own_part(IDS))
    dist.all_reduce(own_loss)
    torch.testing.assert_close(own_loss / dist.get_world_size(), loss)
    assert_same_gradients(model, expected)


def in_bfloat16(build: Callable[[], Any], how: str) -> None:
    """A step of 1e-3, in which every scalar moves: it is float32, as its gradient is.

    FSDP2 takes parameters of one dtype in a group. A model in float32 that it casts itself has that, and so has one in
    bfloat16 of which the scalars alone are trained; one that is trained in bfloat16 has its scalars sharded apart.
    """
    model = build().train()
    scalars = scalar_names(model)
    policy = MixedPrecisionPolicy()
    if how == "fsdp mixed precision":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    else:
        model = model.bfloat16()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in scalars or "frozen" not in how)
    if how == "ddp":
        model = DistributedDataParallel(model)
    else:
        for module in model.modules():
            if how == "fsdp apart" and isinstance(module, (Exclusive, Temperature)):
                fully_shard(module)
                if isinstance(module, Exclusive):
                    register_fsdp_forward_method(module, "alpha")
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: whole(parameter.detach()).clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    step(model, own_part(IDS))
    gradients = {name: parameter.grad for name, parameter in trained.items()}
    optimizer.step()
    moved = {name: (whole(parameter.detach()) - before[name]).abs().max() for name, parameter in trained.items()}
    found = {name for name in trained if name.removeprefix("module.") in scalars}
    assert len(found) == len(scalars)
    for name in found:
        gradient = gradients[name]
        assert gradient is not None, name
        assert gradient.dtype == trained[name].dtype == torch.float32, name
        assert 5e-4 < moved[name] < 2e-3, name


def checkpointed_data_parallel(reentrant: bool) -> None:
    expected, model = llama().double().train(), llama().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    # DDP does not find the parameters of reentrant checkpoints unless its graph never changes.
    model = DistributedDataParallel(model, static_graph=True)
    step(expected, IDS)
    step(model, own_part(IDS))
    assert_same_gradients(model, expected)


def tensor_parallel(folder: Path, model: Any) -> None:
    """The plan that came with the model's class, and what the mechanisms added to it."""
    model = model.double()
    if dist.get_rank() == 0:
        model.save_pretrained(folder)
    dist.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # later versions say tp_plan in a DistributedConfig
        divided = exsel.from_pretrained(folder, tp_plan="auto")
        by_auto_class = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    assert type(divided) is type(by_auto_class) is type(model)
    parameters = dict(divided.named_parameters())
    assert isinstance(parameters["model.layers.0.self_attn.q_proj.weight"], DTensor)
    for name, parameter in parameters.items():
        if any(part in name for part in ("temperatures", "strength_logit")):
            assert isinstance(parameter, DTensor), name
            assert parameter.shape == dict(model.named_parameters())[name].shape, name
            is_shared = parameter.shape[0] == 1
            assert parameter.to_local().shape[0] == parameter.shape[0] // (1 if is_shared else 2), name
    model.train()
    divided.train()
    loss, logits = step(model, IDS)
    own_loss, own_logits = step(divided, IDS)
    torch.testing.assert_close(own_loss, loss)
    torch.testing.assert_close(own_logits, logits, rtol=1e-9, atol=1e-9)
    assert_same_gradients(divided, model)
    divided.eval()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(divided(IDS).logits, model(IDS).logits, rtol=1e-9, atol=1e-9)
        assert torch.equal(
            divided.generate(IDS, max_new_tokens=3, do_sample=False),
            model.generate(IDS, max_new_tokens=3, do_sample=False),
        )
    divided.save_pretrained(folder / "again")
    dist.barrier()
    again = exsel.from_pretrained(folder / "again")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def qwen3() -> Any:
    """Norms on queries and keys, after which the temperatures come."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=62,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return upgraded(Qwen3ForCausalLM(config), LEARNED, SelectiveConfig(key=True))


def checks(folder: Path) -> dict[str, Callable[[], None]]:
    both = {"exclusive": LEARNED, "selective": SelectiveConfig(token="mlp", key=True)}
    return {
        "ddp llama": lambda: data_parallel(llama),
        "ddp gpt2": lambda: data_parallel(gpt2),
        "ddp llama checkpointed, reentrant": lambda: checkpointed_data_parallel(True),
        "ddp llama checkpointed": lambda: checkpointed_data_parallel(False),
        "fsdp llama": lambda: sharded(llama),
        "fsdp gpt2": lambda: sharded(gpt2),
        "fsdp llama checkpointed, reentrant": lambda: sharded(llama, True),
        "fsdp llama checkpointed": lambda: sharded(llama, False),
        "fsdp llama shared": lambda: sharded(lambda: llama(True, SHARED)),
        "bfloat16 ddp": lambda: in_bfloat16(llama, "ddp"),
        "bfloat16 fsdp mixed precision": lambda: in_bfloat16(llama, "fsdp mixed precision"),
        "bfloat16 fsdp frozen": lambda: in_bfloat16(llama, "fsdp frozen"),
        "bfloat16 fsdp apart": lambda: in_bfloat16(llama, "fsdp apart"),
        "bfloat16 fsdp apart, exsel": lambda: in_bfloat16(
            lambda: small_model(exclusive=LEARNED, selective=SelectiveConfig(key=True)), "fsdp apart"
        ),
        "tp llama": lambda: tensor_parallel(folder / "a", llama()),
        "tp llama mlp": lambda: tensor_parallel(folder / "b", llama(LEARNED, SelectiveConfig(token="mlp", key=True))),
        "tp llama linear": lambda: tensor_parallel(folder / "j", llama(LEARNED, LINEAR)),
        "tp llama shared": lambda: tensor_parallel(folder / "c", llama(True, SHARED)),
        "tp llama mixed": lambda: tensor_parallel(folder / "d", llama(ExclusiveConfig(layers=(0,)), MIXED)),
        "tp llama exclusive": lambda: tensor_parallel(folder / "e", llama(LEARNED, None)),
        "tp qwen3": lambda: tensor_parallel(folder / "f", qwen3()),
        "tp exsel": lambda: tensor_parallel(folder / "g", small_model(vocab_size=62, **both)),
        "tp exsel gqa": lambda: tensor_parallel(
            folder / "h",
            small_model(
                vocab_size=62,
                **both,
                num_key_value_heads=2,
                qk_norm=True,
                norm="rmsnorm",
                mlp="swiglu",
                tie_word_embeddings=False,
            ),
        ),
        "tp exsel shared": lambda: tensor_parallel(
            folder / "i", small_model(vocab_size=62, exclusive=LEARNED, selective=SHARED)
        ),
    }


def main(place: str) -> None:
    """Do all checks. Rank 0 leaves ``results.json`` in a folder: by check, an empty text or what went wrong."""
    folder = Path(place)
    dist.init_process_group("gloo")
    results = {}
    for name, check in checks(folder).items():
        try:
            check()
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        results[name] = "\n".join(filter(None, failures))
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    dist.barrier()
    with contextlib.suppress(AssertionError):
        dist.destroy_process_group()
