"""vLLM's way to run models of transformers, with the layers that have the mechanisms.

vLLM builds the model as transformers does, so that its attention layers are exsel's: they scale queries and values,
call vLLM's attention function, whose cache keeps the scaled values, and project its output. The values that this
function is given are exactly the current tokens' own, whatever is cached, however a prompt is cut into chunks, and
whichever sequences share a batch. Positions come from vLLM too, so that each token counts in its own sequence.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm import __version__ as vllm_version

from exsel.engines.serving import allocate
from exsel.models.modeling import ExselAttention
from exsel.nn.exclusive import check_strengths
from exsel.upgrading.upgraded_class import Upgraded
from exsel.version import __version__

try:
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
    from vllm.model_executor.models.transformers import TransformersForCausalLM
    from vllm.model_executor.models.transformers.fuser import get_fuser
    from vllm.model_executor.models.transformers.fusers import AttentionFuser, QKVFuser
    from vllm.model_executor.models.transformers.fusers.base import local_output_sizes
    from vllm.model_executor.models.transformers.fx_utils import compile_forward, recover_forward
    from vllm.model_executor.models.utils import WeightsMapper
except ImportError as error:
    raise ImportError(
        f"exsel {__version__} serves with vLLM 0.32, and this is {vllm_version}: pip install 'exsel[vllm]'"
    ) from error


class VllmForCausalLM(TransformersForCausalLM):
    """A model of exsel's own or an upgraded one.

    Raises:
        ValueError: vLLM would compute a layer by code of its own, or has more processes than key/value heads.
    """

    def recursive_replace(self) -> None:
        """Put vLLM's layers in the place of PyTorch's, and find the layers that attend."""
        layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, (ExselAttention, Upgraded))
        }
        for name, layer in layers.items():
            if isinstance(layer, Upgraded):
                self._merge_projections(f"model.{name}", layer)
        super().recursive_replace()
        for name, layer in layers.items():
            if self.model.get_submodule(name) is not layer or (
                isinstance(layer, Upgraded) and "forward" in vars(layer)
            ):
                raise ValueError(
                    f"vLLM computes {name} by code of its own, without its mechanisms: serve it with another version"
                )
            index: Any = layer.layer_idx
            if index not in self.attention_fusers:
                prefix, dispatch = f"model.{name}", _dispatch(layer)
                self.attention_fusers[index] = prefix, dispatch
                dispatch.fuse(layer, prefix, self.vllm_config)

    def _merge_projections(self, prefix: str, layer: Upgraded) -> None:
        """Compute queries, keys and values in one product, where vLLM does so in the plain layer."""
        cls: Any = type(layer)
        layer.__class__ = cls.exsel_original  # vLLM reads this class's forward
        fuser = get_fuser(layer, QKVFuser)
        layer.__class__ = cls
        if fuser is None or not fuser.validate(layer, self.vllm_config):
            return
        merged = _with_merged_projections(cls, fuser.merged_name, tuple(name for name, _ in fuser.shards))
        if merged is None:
            return
        fuser.update_attrs(layer, prefix, self.vllm_config)
        layer.__class__ = merged
        self.hf_to_vllm_mapper |= WeightsMapper(orig_to_new_stacked=fuser.orig_to_new_stacked(prefix))
        for holder in (self, self.quant_config):
            if holder is not None:
                holder.packed_modules_mapping.update(fuser.packed_modules_mapping)

    def init_parameters(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Allocate the weights: the mechanisms' in float32, each process those of its heads."""
        load = sharded_weight_loader(0)
        allocate(module, get_tensor_model_parallel_world_size(), self.device_config.device, load)
        super().init_parameters(module, dtype)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load what the folder holds, also what exsel keeps in buffers.

        Raises:
            LoadError: the weights are of another strength than the configuration says.
        """
        buffers = {f"model.{name}": buffer for name, buffer in self.model.named_buffers()}

        def others() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                own = self.hf_to_vllm_mapper.map_name(name)
                if own in buffers:
                    buffers[own].copy_(tensor)
                else:
                    yield name, tensor

        loaded: set[str] = super().load_weights(others())
        check_strengths(self.model, self.config.name_or_path)
        return loaded


@functools.cache
def _with_merged_projections(cls: type[Upgraded], merged: str, names: tuple[str, ...]) -> type[Upgraded] | None:
    """A subclass that takes the results of the projections ``names`` from one, ``merged``, called before them.

    ``None``: it is not clear from the source that nothing changes their input in between.
    """
    definition, forward = recover_forward(cls)
    calls: dict[str, ast.Call] = {}
    places = []
    for place, statement in enumerate(definition.body):
        for node in ast.walk(statement):
            match node:
                case ast.Call(ast.Attribute(_, "project"), [ast.Constant(str(name)), _, ast.Name()], []) if (
                    name in names and isinstance(statement, ast.Assign)
                ):
                    calls[name] = node
                    places.append(place)
    inputs = {ast.unparse(call.args[2]) for call in calls.values()}
    if len(places) != len(names) or set(calls) != set(names) or len(inputs) != 1:
        return None
    results = ", ".join(f"_{name}" for name in names)
    source = f"{results} = self.{merged}({inputs.pop()}).split({local_output_sizes(merged)}, -1)"
    definition.body.insert(min(places), ast.parse(source).body[0])
    for name, call in calls.items():
        assert isinstance(call.func, ast.Attribute)
        call.func.attr = "read"
        call.args = [call.args[0], call.args[2], ast.Name(f"_{name}", ast.Load())]
    computes: Any = compile_forward(definition, forward)
    return type(cls.__name__, (cls,), {"forward": computes, "exsel_forward": computes})


def _dispatch(layer: Upgraded) -> AttentionFuser:
    """How an upgraded layer calls its attention function, which vLLM reads of the function's own calls alone.

    Raises:
        ValueError: it does not call one.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(type(layer).exsel_forward)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "attend":
            said = {keyword.arg: keyword.value for keyword in node.keywords}
            return AttentionFuser(type(layer).__name__, said.get("scaling"), said.get("s_aux"))
    raise ValueError(
        f"{type(layer).__name__} writes out its attention, which vLLM cannot serve: serve it with transformers"
    )
