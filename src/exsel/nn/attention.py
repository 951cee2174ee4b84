"""A self-attention layer with both mechanisms, for models of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig
from exsel.dispatch import Backend
from exsel.errors import ExselError, LoadError
from exsel.functional import attention, exclude
from exsel.kernels.scale import scale_heads
from exsel.nn.rotary import Rotary, rotate
from exsel.nn.scalars import Scalars
from exsel.nn.temperature import build_temperatures


class Exclusive(Scalars):
    """Exclusive self-attention's projection as a module: :func:`exsel.exclude` with a fixed or learned strength.

    A fixed strength stands in the state dict too, so that no module without it takes that state dict for its own, and
    none with another strength.

    Args:
        num_heads: H, of the queries.
        strength: α for every head, or ``"learned"``: tanh(γ) a head from γ = 0, where the layer starts as plain
            attention.

    Attributes:
        fixed_strength: the number as text in UTF-8, uint8 ``[24]``: no change of a model's dtype rounds that.

    Raises:
        ExselError: any other strength.

    Source: Zhai, arXiv:2603.09078 (2026). The learned strength is follow-up work.
    """

    __call__: Callable[..., Tensor]
    strength_logit: nn.Parameter | None
    fixed_strength: Tensor | None

    def __init__(self, num_heads: int, strength: float | Literal["learned"] = 1.0) -> None:
        super().__init__()
        self.strength = ExclusiveConfig(strength=strength).strength
        self.register_parameter("strength_logit", self.empty(num_heads) if self.strength == "learned" else None)
        self.register_buffer("fixed_strength", None if self.strength == "learned" else self.as_text())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """γ = 0."""
        if self.strength_logit is not None:
            nn.init.zeros_(self.strength_logit)

    def as_text(self) -> Tensor:
        """What :attr:`fixed_strength` is."""
        return torch.tensor(list(self._text()), dtype=torch.uint8)

    def _text(self) -> bytes:
        return f"{self.strength:<24}".encode()

    def contradiction(self, loaded: Tensor | None = None) -> str:
        """What the strength that was ``loaded`` (``None``: into this module) says against its own; empty: nothing."""
        loaded = self.fixed_strength if loaded is None else loaded
        if loaded is None or loaded.is_meta or (text := _bytes(loaded)) == self._text():
            return ""
        return f"was saved with a strength of {text.decode(errors='replace').strip()!r}, and has {self.strength} here"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Another strength is an error, which the last argument collects."""
        loaded = state_dict.get(f"{prefix}fixed_strength")
        if self.fixed_strength is not None and loaded is not None and (reason := self.contradiction(loaded)):
            args[-1].append(f"{prefix.removesuffix('.') or 'Exclusive'} {reason}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, y: Tensor, own_value: Tensor) -> Tensor:
        """y ``[B, H, T, D]``, own_value ``[B, Hkv, T, D]`` → z ``[B, H, T, D]``."""
        return exclude(y, own_value, strength=self.alpha())

    def alpha(self) -> float | Tensor:
        """α: a number, or tanh(γ) ``[H]``."""
        if self.strength_logit is None:
            assert self.strength != "learned"
            return self.strength
        return torch.tanh(self.of_own_heads(self.strength_logit))

    def extra_repr(self) -> str:
        """The strength."""
        return f"strength={self.strength}"


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.flatten().to(torch.uint8).tolist())


def check_strengths(model: nn.Module, source: Any) -> None:
    """Check that what was loaded from ``source`` has the strengths that the modules of ``model`` were built with.

    Raises:
        LoadError: it has another.
    """
    for name, module in model.named_modules():
        if isinstance(module, Exclusive) and (reason := module.contradiction()):
            raise LoadError(f"{source}: {name} {reason}: its configuration and its weights do not belong together")


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
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), dim=-2), torch.cat((self.value, value), dim=-2)
        self.seen += key.shape[-2] - (0 if self.key is None else self.key.shape[-2])
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
        TypeError: for a mechanism, something else.
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
        self.temperatures = nn.ModuleDict()
        if selective_config is not None:
            self.temperatures.update(
                build_temperatures(
                    selective_config,
                    num_heads=num_heads,
                    num_kv_heads=num_kv_heads,
                    head_dim=head_dim,
                    hidden_size=dim,
                )
            )

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
            # Of another shape they are refused by attention, below.
            if cu_seqlens is not None and cu_seqlens.ndim == 1 and len(cu_seqlens):
                begun = torch.searchsorted(cu_seqlens.long(), place, right=True) - 1
                place = place - cu_seqlens[begun.clamp_min(0)].long()
            position_ids = place.expand(x.shape[0], -1)
        query = self.q_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key = self.k_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        own_value = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        tau = {
            name: temperature(
                {"query": query, "key": key, "value": own_value}[name],
                position_ids + 1,
                hidden_states=x,
                token_frequency=token_frequency,
            )
            for name, temperature in self.temperatures.items()
        }
        query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary is not None:
            cos, sin = self.rotary(position_ids, x.dtype)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if "key" in tau:
            key = scale_heads(key, tau["key"])
        value = own_value
        if cache is not None:
            # Scaled before the cache: what is cached is what later tokens mix.
            if "value" in tau:
                value = scale_heads(own_value, tau.pop("value"))
            key, value = cache.update(key, value, self.sliding_window)
        mask = self._mask(past, query.shape[-2], key.shape[-2], attn_mask, x.device)
        z = attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.is_causal and mask is None,
            sliding_window=self.sliding_window if mask is None else None,
            cu_seqlens=cu_seqlens,
            enable_gqa=True,
            exclusive=self.exclusive is not None,
            strength=None if self.exclusive is None else self.exclusive.alpha(),
            own_value=None if self.exclusive is None else own_value,
            query_scale=tau.get("query"),
            value_scale=tau.get("value"),
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
        query_index = past + torch.arange(num_queries, device=device).unsqueeze(-1)
        key_index = past + num_queries - num_keys + torch.arange(num_keys, device=device)
        distance = query_index - key_index
        allowed = distance >= 0 if self.is_causal else torch.ones_like(distance, dtype=torch.bool)
        if self.sliding_window is not None:
            allowed = allowed & (distance.abs() < self.sliding_window)
        return allowed if attn_mask is None else allowed & attn_mask
