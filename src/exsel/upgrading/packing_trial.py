"""Find by a trial run how a fused projection is packed, which its name does not say.

A copy of the module runs its original forward pass on a few random tokens, in evaluation mode and without hooks. The
packing is the one by which the projection's values are those that reach the attention function.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exsel.nn.layer_pass import AttentionCall, LayerPass, PassObserver
from exsel.nn.projections import PACKINGS, Geometry, Projections
from exsel.upgrading.rewriting import BEGIN, rewrite

_NUM_TOKENS = 4
#: The attributes in which a module keeps its forward hooks and forward pre-hooks.
_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith(("forward_hooks", "forward_pre_hooks")))


class _Recorder(PassObserver):
    """Keeps copies of what the layer projects and attends with, since the layer may change them in place."""

    def __init__(self) -> None:
        self.packed: list[Tensor] = []
        self.attended_with: list[tuple[Tensor, Tensor, Tensor]] = []

    def projected(
        self, name: str, packed: Tensor, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        self.packed.append(packed.clone())

    def attended(self, call: AttentionCall) -> None:
        self.attended_with.append((call.query.clone(), call.key.clone(), call.value.clone()))


def packing_of(
    module: nn.Module, cls: type, projection: str, hidden_size: int, candidates: Sequence[tuple[str, Geometry]]
) -> str | None:
    """Which of ``candidates``, each with the heads that it implies, is the packing of ``module.<projection>``.

    ``None``: none or several fit, or ``cls.forward`` needs more than hidden states ``[B, T, hidden_size]``.
    """
    sample = next(module.parameters())
    if sample.is_meta or not sample.is_floating_point():
        return None
    recorder = _Recorder()
    methods = {**rewrite(cls, Projections({projection: ""})), BEGIN: lambda self, **call: LayerPass(observer=recorder)}
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(1, _NUM_TOKENS, hidden_size, generator=generator).to(sample.device, sample.dtype)
    devices = [] if sample.device.type == "cpu" else [sample.device]
    device_type = "cuda" if sample.device.type == "cpu" else sample.device.type
    try:
        probe = copy.deepcopy(module).eval()
        probe.__class__ = type(cls.__name__, (cls,), methods)
        for part in probe.modules():
            for name in _HOOKS & vars(part).keys():
                vars(part)[name] = OrderedDict()
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=device_type):
            probe(hidden_states)
    except Exception:  # any error of the user's code: it needs more than hidden states
        return None
    if len(recorder.packed) != 1 or len(recorder.attended_with) != 1:
        return None
    fitting = [name for name, heads in candidates if _fits(name, heads, recorder.packed[0], *recorder.attended_with[0])]
    return fitting[0] if len(fitting) == 1 else None


def _fits(name: str, heads: Geometry, packed: Tensor, query: Tensor, key: Tensor, value: Tensor) -> bool:
    parts = {kind: part.movedim(-2, -3) for kind, part in PACKINGS[name].split(packed, heads).items()}
    if query.ndim == 3:  # heads are folded into the batch, whose size is 1
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    if value.shape != parts["value"].shape or query.shape != parts["query"].shape:
        return False
    # Queries may be normed, rotated or scaled since. They are still more similar to the query part than to the keys.
    return torch.allclose(value, parts["value"]) and _likeness(query, parts["query"]) > _likeness(query, parts["key"])


def _likeness(left: Tensor, right: Tensor) -> float:
    if left.shape != right.shape:
        return -1.0
    return torch.cosine_similarity(left[..., 0, :], right[..., 0, :], dim=-1).mean().item()
