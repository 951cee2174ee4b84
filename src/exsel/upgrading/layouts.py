"""Where attention classes keep their queries, keys and values: one table for every architecture.

A class that calls an attention function (transformers' interface, or PyTorch's) needs no row but the names of its
projections, and these only for temperatures. A class that writes its attention out is supported by name alone: nobody
can see from outside what lies between its projections and its mixing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The children of an attention module that matter.

    Args:
        projections: by name, how each is packed: a name in :data:`exsel.nn.packing.PACKINGS`.
        output: only for attention that is written out: the output projection, or ``""`` where the module has none
            and returns what it mixed. ``None``: the module calls an attention function.
    """

    projections: Mapping[str, str]
    output: str | None = None


def _separate(query: str, key: str, value: str, output: str | None = None) -> Layout:
    return Layout({query: "query", key: "key", value: "value"}, output)


#: Tried in this order on a module that calls an attention function: the first whose children it has.
LAYOUTS: tuple[Layout, ...] = (
    _separate("q_proj", "k_proj", "v_proj"),
    _separate("query", "key", "value"),
    _separate("q", "k", "v"),
    _separate("q_lin", "k_lin", "v_lin"),
    _separate("linear_q", "linear_k", "linear_v"),
    _separate("to_q", "to_k", "to_v"),
    _separate("Wq", "Wk", "Wv"),
    _separate("wq", "wk", "wv"),
    Layout({"qkv": "blocks"}),
    Layout({"qkv_proj": "blocks"}),
    Layout({"Wqkv": "blocks"}),
    Layout({"c_attn": "blocks"}),
)

#: By class: what the children's names do not tell.
CLASSES: Mapping[str, Layout] = {
    # Fused projections that interleave the heads.
    "GPTNeoXAttention": Layout({"query_key_value": "heads"}),
    "PersimmonAttention": Layout({"query_key_value": "heads"}),
    # Another path, which reorder_and_upcast_attn switches on, writes the attention out; it is refused below.
    "GPT2Attention": Layout({"c_attn": "blocks"}),
    "DecisionTransformerGPT2Attention": Layout({"c_attn": "blocks"}),
    # The query projection holds an output gate too.
    "Qwen3NextAttention": Layout({"q_proj": "query_gate", "k_proj": "key", "v_proj": "value"}),
    "Qwen3_5Attention": Layout({"q_proj": "query_gate", "k_proj": "key", "v_proj": "value"}),
    "Qwen3_5MoeAttention": Layout({"q_proj": "query_gate", "k_proj": "key", "v_proj": "value"}),
    # Written out: scaled at the projections, projected before the output projection.
    "BloomAttention": Layout({"query_key_value": "heads"}, "dense"),
    "GPTNeoXJapaneseAttention": Layout({"query_key_value": "heads"}, "dense"),
    "GPTJAttention": _separate("q_proj", "k_proj", "v_proj", "out_proj"),
    "CodeGenAttention": Layout({"qkv_proj": "four_parts"}, "out_proj"),
    "GPTNeoSelfAttention": _separate("q_proj", "k_proj", "v_proj", "out_proj"),
    "MptAttention": Layout({"Wqkv": "blocks"}, "out_proj"),
    "XGLMAttention": _separate("q_proj", "k_proj", "v_proj", "out_proj"),
    "RemBertSelfAttention": _separate("query", "key", "value", ""),
    "MegatronBertSelfAttention": _separate("query", "key", "value", ""),
}

#: Children (or attributes) whose presence means another mathematics, and the reason for refusing.
REFUSED_CHILDREN: Mapping[str, str] = {
    "kv_b_proj": "latent attention: what it caches are not the values that it mixes",
    "kv_a_proj_with_mqa": "latent attention: what it caches are not the values that it mixes",
}

#: Attributes that, when true, mean the same.
REFUSED_FLAGS: Mapping[str, str] = {
    "is_kv_shared_layer": "this layer attends with another layer's keys and values: it has none of its own",
    "reorder_and_upcast_attn": "reorder_and_upcast_attn goes around the attention function: switch it off",
}

#: By class, with the reason.
REFUSED_CLASSES: Mapping[str, str] = {
    "DiffLlamaAttention": "differential attention: its output is a difference of two attentions",
}

#: Names of head sizes and of numbers of heads in attention modules.
HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head", "d_head")
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads")
