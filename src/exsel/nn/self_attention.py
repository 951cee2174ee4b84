"""A self-attention layer with both mechanisms, its rotary embedding and its cache, for models of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig
from exsel.dispatch import Backend
from exsel.errors import ExselError
from exsel.functional import attention
from exsel.nn.exclusive import Exclusive
from exsel.nn.mechanism_pass import MechanismPass
from exsel.nn.projections import Geometry
from exsel.nn.temperature import build_temperatures
from exsel.reference import allowed


class Rotary(nn.Module):
    """Rotary position embedding of even head size D, its wavelengths powers of ``theta``.

    Source: Su et al., "RoFormer", arXiv:2104.09864 (2021); halves rotated as in GPT-NeoX.
    """

    inverse_wavelength: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
        inverse_wavelength = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("inverse_wavelength", inverse_wavelength, persistent=False)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids ``[B, T]``, 0-based → cosines and sines ``[B, T, D]`` in ``dtype``."""
        angles = position_ids.unsqueeze(-1).float() * self.inverse_wavelength.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding: x ``[B, H, T, D]``, cos and sin ``[B, T, D]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


class KVCache:
    """Keys and values of the tokens that a :class:`SelfAttention` layer has seen; one a layer.

    With a sliding window it keeps no more than the window needs.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Append ``[B, Hkv, T, D]``; return all that the new tokens may attend to."""
        self.seen += key.shape[-2]
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), dim=-2), torch.cat((self.value, value), dim=-2)
        first = 0 if window is None else max(0, key.shape[-2] - (window - 1))
        self.key, self.value = key[..., first:, :], value[..., first:, :]
        return key, value


class SelfAttention(nn.Module):
    """Multi-head self-attention, exclusive and selective where asked.

        q, k, v = x W_q, x W_k, x W_v      z = exclude(softmax(τ_q q kᵀ / √D) τ_v v, v)      output = z W_o

    Args:
        dim: E, width of the input and output.
        num_heads: H.
        num_kv_heads: Hkv, a divisor of H; ``None``: H.
        head_dim: D; ``None``: E / H.
        bias: biases of the four projections.
        rope_theta: base of the rotary embedding's wavelengths; ``None``: no rotary embedding.
        qk_norm: RMSNorm over each head's query and key, before the rotary embedding.
        sliding_window: how many tokens each token sees, itself among them; ``None``: all.
        is_causal: tokens see no later ones.
        dropout: of the attention weights, in training.
        exclusive: ``True``, a strength α, ``"learned"`` or an :class:`exsel.ExclusiveConfig`; ``None`` or ``False``:
            plain outputs. See :meth:`exsel.ExclusiveConfig.read`.
        selective: ``True`` or an :class:`exsel.SelectiveConfig`; ``None`` or ``False``: no temperatures.
        backend: see :func:`exsel.attention`.

    Raises:
        ValueError: heads that do not divide, or a window of less than one token.
        ExselError: a mechanism that cannot be, or one with ``layers``: this is a single layer.
        TypeError: an ``exclusive`` or ``selective`` of another type.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        rope_theta: float | None = 10000.0,
        qk_norm: bool = False,
        sliding_window: int | None = None,
        is_causal: bool = True,
        dropout: float = 0.0,
        exclusive: ExclusiveArgument = True,
        selective: SelectiveArgument = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        exclusive_config, selective_config = ExclusiveConfig.read(exclusive), SelectiveConfig.read(selective)
        for config in (exclusive_config, selective_config):
            if config is not None and config.layers != "all":
                raise ExselError(
                    f"layers={config.layers!r} chooses among a model's layers, and this is one: leave it out"
                )
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads={num_heads} must be a multiple of num_kv_heads={num_kv_heads}")
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}, or pass head_dim")
            head_dim = dim // num_heads
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 (the token itself), got {sliding_window}")
        self.head_dim = head_dim
        self.sliding_window = sliding_window
        self.is_causal = is_causal
        self.dropout = dropout
        self.backend: Backend = backend
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=bias)
        self.q_norm = nn.RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.rotary = None if rope_theta is None else Rotary(head_dim, rope_theta)
        self.exclusive = None if exclusive_config is None else Exclusive(num_heads, exclusive_config.strength)
        geometry = Geometry(num_heads, num_kv_heads, head_dim)
        self.temperatures = build_temperatures(selective_config, geometry, dim)

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        token_frequency: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: ``[B, T, E]``.
            attn_mask: boolean, True where a token may attend, broadcasting to ``[B, H, T, S]`` with S all tokens
                seen so far; on top of causality and the window.
            position_ids: ``[B, T]``, 0-based within each token's own sequence; ``None``: counted on from the
                cache, or from where ``cu_seqlens`` begins a sequence. Pass them for left padding.
            cache: read and extended in place.
            token_frequency: φ ``[B, T]`` for ``token="frequency"``.
            cu_seqlens: integers ``[N + 1]``, from 0 to T: where each of N packed sequences begins and the last one
                ends, see :func:`exsel.attention`. B is 1 then; not together with a cache.

        Returns:
            ``[B, T, E]``.

        Raises:
            TypeError: an ``attn_mask`` that is not boolean.
            ValueError: ``cu_seqlens`` with a cache or a batch, or that are no such integers.
        """
        if cache is not None and cu_seqlens is not None:
            raise ValueError("cu_seqlens packs whole sequences, and a cache goes on with one: pass one of the two")
        past = 0 if cache is None else cache.seen
        if position_ids is None:
            place = torch.arange(past, past + x.shape[1], device=x.device)
            # attention() refuses cu_seqlens of another shape.
            if cu_seqlens is not None and cu_seqlens.ndim == 1 and len(cu_seqlens):
                begun = torch.searchsorted(cu_seqlens.long(), place, right=True) - 1
                place = place - cu_seqlens[begun.clamp_min(0)].long()
            position_ids = place.expand(x.shape[0], -1)
        projections = {"query": self.q_proj, "key": self.k_proj, "value": self.v_proj}
        features = {kind: project(x).unflatten(-1, (-1, self.head_dim)) for kind, project in projections.items()}
        mechanisms = MechanismPass(
            self.exclusive,
            self.temperatures,
            features,
            position_ids + 1,
            hidden_states=x,
            token_frequency=token_frequency,
        )
        query, key, value = (states.transpose(1, 2) for states in features.values())
        query, key = mechanisms.scale_query(self.q_norm(query)), self.k_norm(key)
        if self.rotary is not None:
            cos, sin = self.rotary(position_ids, x.dtype)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = mechanisms.update(cache, key, value, self.sliding_window)
        mask = self._mask(past, query.shape[-2], key.shape[-2], attn_mask, x.device)
        z = mechanisms.attend(
            _attention,
            self,
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.is_causal and mask is None,
            sliding_window=self.sliding_window if mask is None else None,
            cu_seqlens=cu_seqlens,
            enable_gqa=True,
            backend=self.backend,
        )
        output: Tensor = self.o_proj(z.transpose(1, 2).flatten(2))
        return output

    def _mask(
        self, past: int, num_queries: int, num_keys: int, attn_mask: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """True where a token may attend, ``[T, S]`` or wider; None where causality and the window say it all."""
        if attn_mask is not None:
            if attn_mask.dtype != torch.bool:
                raise TypeError(f"attn_mask must be boolean (True: may attend), got {attn_mask.dtype}")
            attn_mask = attn_mask[..., -num_keys:]
        if attn_mask is None and (past == 0 or not (self.is_causal or self.sliding_window)):
            return None
        before = num_keys - num_queries
        may = allowed(num_queries, num_keys, self.is_causal, self.sliding_window, None, device, first_query=before)
        return may if attn_mask is None else may & attn_mask


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return attention(query, key, value, **options)


_attention.takes_mechanisms = True  # type: ignore[attr-defined]
