"""torchtitan's grouped attention with both mechanisms, and how it comes into a model.

The mechanisms compute on what this process has of the batch, the sequence and the heads, and communicate nothing. Only
the places of their parameters are declared. torchtitan's backend ``spmd_types`` hands a layer just such tensors;
``partial_dtensor`` hands it ``DTensor`` under tensor parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import spmd_types as spmd
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.config.override import derive
from torchtitan.models.common.attention import AttentionMasksType, GQAttention
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.decoder_sharding import (
    colwise_config,
    dense_activation_placement,
    dense_param_placement,
)
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.module import Module, ModuleDict
from torchtitan.protocols.sharding import ShardingConfig

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig, resolve_layers
from exsel.engines.torchtitan.titan_folders import folder_adapter
from exsel.errors import UpgradeError
from exsel.nn import Exclusive, Temperature
from exsel.nn.mechanism_pass import MechanismPass
from exsel.nn.projections import Geometry
from exsel.nn.temperature import build_temperatures

_INIT = {"weight": partial(nn.init.trunc_normal_, std=0.02)}


def _divided_with_heads(module: nn.Module) -> ShardingConfig:
    """Under tensor parallelism a process has the rows of its heads, and the whole of what all heads share."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    is_shared = {name: not tensor.is_floating_point() or tensor.shape[0] == 1 for name, tensor in own}
    return ShardingConfig(
        state_shardings={name: dense_param_placement(tp=spmd.R if is_shared[name] else spmd.S(0)) for name in is_shared}
    )


class TitanExclusive(Exclusive, Module):
    """:class:`exsel.nn.Exclusive` as torchtitan divides and initialises modules."""

    has_divided_heads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sharding_config = _divided_with_heads(self)

    def _init_self_buffers(self, *, buffer_device: torch.device | None = None) -> None:
        if self.fixed_strength is not None:
            self.fixed_strength = self.as_text().to(self.fixed_strength.device)


class LocalLinear(Linear):
    """A linear layer that returns this process's columns as a plain tensor."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        """Torchtitan's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torchtitan finds by this name how it is divided)
        """``[B, T, E]`` → ``[B, T, columns]``."""
        return _own_part(super().forward(input))


class TitanTemperature(Temperature, Module):
    """:class:`exsel.nn.Temperature` as torchtitan divides and initialises modules."""

    has_divided_heads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sharding_config = _divided_with_heads(self)
        if (linear := self.feature_proj) is not None:
            self.feature_proj = LocalLinear.Config(
                in_features=linear.in_features,
                out_features=linear.out_features,
                param_init=_INIT,
                sharding_config=replace(
                    colwise_config(), in_src_shardings={"input": dense_activation_placement(tp=spmd.R)}
                ),
            ).build()


class MechanismAttention(GQAttention):
    """Grouped attention with temperatures before ``inner_attention``, which stays, and the projection after it."""

    @dataclass(kw_only=True, slots=True)
    class Config(GQAttention.Config):
        """Torchtitan's, and the mechanisms that this layer has."""

        exclusive: ExclusiveConfig | None = None
        selective: SelectiveConfig | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.exclusive = None if config.exclusive is None else TitanExclusive(self.n_heads, config.exclusive.strength)
        geometry = Geometry(self.n_heads, self.n_kv_heads, self.head_dim)
        self.temperatures = ModuleDict(build_temperatures(config.selective, geometry, config.dim, TitanTemperature))

    def parallelize(self, parallel_dims: Any) -> None:
        """As torchtitan does.

        Raises:
            UpgradeError: with the backend ``full_dtensor``.
        """
        if parallel_dims.spmd_backend == "full_dtensor":
            raise UpgradeError("the mechanisms do not run with --parallelism.spmd_backend full_dtensor")
        super().parallelize(parallel_dims)

    # The name x_BLD (batch, length, width) is torchtitan's: it finds by it how the input is divided.
    def forward(
        self,
        x_BLD: Tensor,  # noqa: N803
        attention_masks: AttentionMasksType | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """``[B, T, E]`` → ``[B, T, E]``; ``positions`` ``[B, T]`` count from 0 in each document."""
        query, key, value = self.qkv_linear(x_BLD)
        place = torch.arange(query.shape[1], device=query.device).unsqueeze(0) if positions is None else positions
        mechanisms = MechanismPass(
            self.exclusive,
            self.temperatures,
            {"query": _own_part(query), "key": _own_part(key), "value": _own_part(value)},
            place + 1,
            hidden_states=_own_part(x_BLD),
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self.rope(query, key, positions)
        query, key, value = (_own_part(states).transpose(1, 2) for states in (query, key, value))
        query, key, value, _ = mechanisms.before(query, key, value)
        y = self.inner_attention(
            *(states.transpose(1, 2) for states in (query, key, value)),
            attention_masks=attention_masks,
            scale=self.scaling,
            enable_gqa=self.enable_gqa,
        )
        z = mechanisms.after(_own_part(y)).contiguous()
        if isinstance(y, DTensor):
            z = DTensor.from_local(z, y.device_mesh, y.placements, run_check=False)
        output: Tensor = self.wo(z.flatten(2))
        return output


def _own_part(states: Tensor) -> Tensor:
    """This process's part of a tensor that is divided, as a plain one."""
    return states.to_local() if isinstance(states, DTensor) else states


def with_mechanisms(
    spec: ModelSpec, *, exclusive: ExclusiveArgument = None, selective: SelectiveArgument = None
) -> ModelSpec:
    """A model of torchtitan with the mechanisms in its attention layers.

    Args:
        spec: what a model registry of torchtitan returns, for a model whose layers have its ``GQAttention``.
        exclusive: see :meth:`exsel.ExclusiveConfig.read`.
        selective: see :meth:`exsel.SelectiveConfig.read`.

    Returns:
        A spec whose checkpoints in Hugging Face's format are weights of :class:`exsel.ExselForCausalLM`.

    Raises:
        UpgradeError: another kind of model or of attention layer; ``token="frequency"``, whose feature no layer gets.
    """
    mechanisms = ExclusiveConfig.read(exclusive), SelectiveConfig.read(selective)
    if mechanisms[1] is not None and mechanisms[1].token == "frequency":
        raise UpgradeError("token='frequency' needs each token's frequency, which a model's layers do not get")
    if not isinstance(spec.model, Decoder.Config) or spec.state_dict_adapter is None:
        raise UpgradeError(f"{spec.name} is no language model that exsel can put its mechanisms into")
    num_layers = len(spec.model.layers)
    layers = []
    for index, layer in enumerate(spec.model.layers):
        if type(layer.attention) is not GQAttention.Config:
            kind = type(layer.attention).__qualname__.removesuffix(".Config")
            raise UpgradeError(f"layer {index} of {spec.name} has {kind}, and not torchtitan's GQAttention")
        own = [
            None if one is None or index not in resolve_layers(one.layers, num_layers) else one for one in mechanisms
        ]
        attention = derive(layer.attention, MechanismAttention.Config, exclusive=own[0], selective=own[1])
        layers.append(replace(layer, attention=attention))
    return replace(
        spec, model=replace(spec.model, layers=layers), state_dict_adapter=folder_adapter(spec.state_dict_adapter)
    )
