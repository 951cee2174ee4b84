"""Modules: the two mechanisms and a self-attention layer made of them."""

from exsel.nn.exclusive import Exclusive
from exsel.nn.kv_cache import KVCache
from exsel.nn.self_attention import SelfAttention
from exsel.nn.temperature import Temperature

__all__ = ["Exclusive", "KVCache", "SelfAttention", "Temperature"]
