"""torchtitan's checkpoints as folders of :class:`exsel.ExselForCausalLM`, and back."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.rope import ComplexRoPE, RoPE
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import ExselError, LoadError, explained
from exsel.files import read_object
from exsel.models import ExselConfig, ExselForCausalLM

_OURS = re.compile(r"(layers\.\d+\.)(attention|self_attn)(\.(?:exclusive|temperatures)\.)")
#: The rows that a query's or key's temperature reads: their order is that of the rotary embedding.
_ROTATED = re.compile(r"\.temperatures\.(query|key)\.weight$")


def folder_adapter(adapter: type[StateDictAdapter]) -> type[StateDictAdapter]:
    """A model's own adapter to Hugging Face's format, taught the mechanisms' names in ``ExselForCausalLM``."""

    class FolderAdapter(adapter):
        def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
            ours = {name: tensor for name, tensor in state_dict.items() if _OURS.search(name)}
            converted: dict[str, Any] = super().to_hf({k: v for k, v in state_dict.items() if k not in ours})
            for name, tensor in ours.items():
                if not tensor.is_floating_point():
                    continue  # a fixed strength, as text: PyTorch's distributed writer of safetensors has no integers
                name_there = "model." + _OURS.sub(r"\1self_attn\3", name)
                converted[name_there] = self._reordered(name, tensor, (-1, 2))
            return converted

        def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
            ours = {name: tensor for name, tensor in hf_state_dict.items() if _OURS.search(name)}
            converted: dict[str, Any] = super().from_hf({k: v for k, v in hf_state_dict.items() if k not in ours})
            for name, tensor in ours.items():
                name_here = _OURS.sub(r"\1attention\3", name).removeprefix("model.")
                converted[name_here] = self._reordered(name, tensor, (2, -1))
            return converted

        def get_hf_storage_reader(self, path: str, from_quantized: bool = False) -> Any:
            values = read_object(Path(path, "config.json"))
            for name, kind in (("exclusive", ExclusiveConfig), ("selective", SelectiveConfig)):
                found, expected = kind.read(values.get(name)), _mechanism(self.model_config, name)
                if found != expected:
                    raise LoadError(
                        f"{path} has {name}={found}, and the recipe {expected}: save a folder first from an "
                        "ExselForCausalLM that has the recipe's mechanisms"
                    )
            return super().get_hf_storage_reader(path, from_quantized)

        def _reordered(self, name: str, weight: Tensor, pairs: tuple[int, int]) -> Tensor:
            """W ``[H or 1, D]`` in the other order of rotary pairs, if torchtitan's is not transformers'."""
            is_interleaved = isinstance(self.model_config.layers[0].attention.rope, ComplexRoPE.Config)
            selective = _mechanism(self.model_config, "selective")
            if not is_interleaved or not _ROTATED.search(name) or selective.token != "shared":
                return weight
            reordered: Tensor = weight.unflatten(-1, pairs).transpose(-1, -2).flatten(-2)
            return reordered

    return FolderAdapter


def exsel_config(model: Decoder.Config) -> ExselConfig:
    """The configuration of the ``ExselForCausalLM`` that computes what a model of torchtitan does.

    Args:
        model: of the Llama kind: one RMSNorm before attention and one before a gated MLP, no biases.

    Raises:
        ExselError: another architecture.
    """
    layer = model.layers[0]
    attention, mlp = layer.attention, layer.feed_forward
    if mlp is None or any(linear.bias for _, linear, *_ in model.traverse(Linear.Config)):
        raise ExselError("a torchtitan model with experts or biases has no counterpart in ExselForCausalLM")
    return ExselConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.dim,
        intermediate_size=mlp.w1.out_features,
        num_hidden_layers=len(model.layers),
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        max_position_embeddings=attention.rope.max_seq_len,
        norm="rmsnorm",
        norm_eps=layer.attention_norm.eps,
        mlp="swiglu",
        embedding_norm=False,
        qk_norm=attention.qk_norm is not None,
        rope_parameters=_rope_parameters(attention.rope),
        tie_word_embeddings=model.enable_weight_tying,
        exclusive=_mechanism(model, "exclusive"),
        selective=_mechanism(model, "selective"),
    )


def save_folder(spec: ModelSpec, checkpoint: str | PathLike[str], folder: str | PathLike[str]) -> None:
    """Save the model in a checkpoint of torchtitan as a folder of ``ExselForCausalLM``, on the CPU.

    Args:
        spec: the recipe's model, from :func:`exsel.engines.torchtitan.with_mechanisms`.
        checkpoint: a folder ``step-…`` that torchtitan wrote, in its own format or in Hugging Face's.
        folder: for :meth:`exsel.ExselForCausalLM.from_pretrained`.

    Raises:
        ExselError: the checkpoint is damaged, or of another model.
    """
    assert isinstance(spec.model, Decoder.Config)
    assert spec.state_dict_adapter is not None
    to_folder = spec.state_dict_adapter(spec.model, None).to_hf
    with torch.device("meta"):
        states = spec.model.build().state_dict()
    states = {name: torch.empty_like(tensor, device="cpu") for name, tensor in states.items()}
    is_own_format = Path(checkpoint, ".metadata").exists()
    weights = states if is_own_format else to_folder(states)
    reader = FileSystemReader(checkpoint) if is_own_format else HuggingFaceStorageReader(str(checkpoint))
    with explained(f"{checkpoint} is no checkpoint of this model"):
        try:
            load(weights, storage_reader=reader)
        except CheckpointException as error:  # no subclass of Exception
            raise LoadError(str(next(iter(error.failures.values()))[0])) from error
    weights = to_folder(weights) if is_own_format else weights
    model = ExselForCausalLM(exsel_config(spec.model))
    if spec.model.enable_weight_tying:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    strengths = {name: text for name, text in model.state_dict().items() if name.endswith(".fixed_strength")}
    model.load_state_dict(strengths | weights)
    model.save_pretrained(folder)


def _mechanism(model: Decoder.Config, name: str) -> Any:
    """The configuration of a mechanism, which knows its layers; ``None``: the model has none."""
    return next((own for layer in model.layers if (own := getattr(layer.attention, name, None)) is not None), None)


def _rope_parameters(rope: RoPE.Config) -> dict[str, Any]:
    if rope.scaling == "none":
        return {"rope_type": "default", "rope_theta": rope.theta}
    if rope.scaling != "llama":
        raise ExselError(f"a torchtitan model with {rope.scaling} rotary embeddings has no counterpart here")
    return {
        "rope_type": "llama3",
        "rope_theta": rope.theta,
        "factor": rope.scaling_factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }
