"""Modules: the two mechanisms and a self-attention layer made of them."""

from exsel.nn.exclusive import Exclusive
from exsel.nn.self_attention import KVCache, SelfAttention
from exsel.nn.temperature import Temperature

__all__ = ["Exclusive", "KVCache", "SelfAttention", "Temperature"]
