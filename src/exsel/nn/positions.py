"""Each token's place in its own sequence, found from the layer's positions, cache and mask."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exsel.kernels.operators import is_watched
from exsel.nn.band import Band

#: An additive mask adds less than this to the scores of hidden tokens; other biases stay above.
HIDDEN = -9000.0
#: The attribute of a cache that holds how many tokens of each row were padding. Later passes cannot see that.
_PADDING = "_exsel_padding"
#: What was asked last, and found.
_last: tuple[tuple[Any, ...], Callable[[], Any], Callable[[], Any], Tensor] | None = None


class Positions:
    """The places of the tokens of one forward pass of one attention layer.

    Most models that get no positions from their caller count on from the length of the cache, and count padding too.
    For a row of such positions the hidden tokens before each token are subtracted. Other positions, which restart or
    which count from elsewhere (``generate`` does so for padded rows), stay as they are.

    Args:
        given: ``[B or 1, T]``, 0-based; ``None``, or of another shape: there are none.
        mask: ``[B, S]``, or ``[B or 1, …, T or 1, S]``, boolean or added to the scores; or FlexAttention's
            ``BlockMask``, or a :class:`Band`. Anything else: there is none.
        cache: in transformers' protocol, before this pass.
        layer_index: of the layer in the cache.
        has_window: whether tokens see only some of those before them. Then the mask shows padding in the first pass
            only, and the cache keeps its length. Give positions if the rows of the cache change later.
    """

    def __init__(self, given: Tensor | None, mask: Any, cache: Any, layer_index: int, has_window: bool) -> None:
        self.given = given if given is not None and given.ndim == 2 else None
        is_mask = (
            mask.ndim in (2, 4) if isinstance(mask, Tensor) else isinstance(mask, Band) or hasattr(mask, "mask_mod")
        )
        self.mask = mask if is_mask else None
        # That of transformers' continuous batching holds many sequences, and no length: positions come beside it.
        self.cache = cache = cache if hasattr(cache, "get_seq_length") else None
        #: Whether padding is read from the mask's diagonal alone: a padding token is hidden even from itself.
        self.by_diagonal = has_window or not isinstance(mask, Tensor)
        self.past: int | Tensor = 0
        self.is_watched = is_watched()
        if cache is not None and (self.given is None or self.mask is not None or has_window):
            past = cache.get_seq_length(layer_index)
            # A static cache counts on in the same tensor when it is updated.
            is_known = isinstance(past, Tensor) and past.is_cpu and not self.is_watched
            self.past = int(past) if is_known else past.clone() if isinstance(past, Tensor) else past
            if self.by_diagonal and self._is_first_pass():
                setattr(cache, _PADDING, None)

    def of(self, num_tokens: int, batch: int, device: torch.device) -> Tensor:
        """n ``[B or 1, T]``, 1-based, for the pass's tokens; the layers of a model that get the same find it once."""
        global _last
        asked = None if self.is_watched else self._asked(num_tokens, batch, device)
        if asked is not None and _last is not None:
            before, given, mask, found = _last
            if before == asked and given() is self.given and mask() is self.mask:
                return found
        found = self._find(num_tokens, batch, device)
        if asked is not None:
            _last = asked, _reference(self.given), _reference(self.mask), found
        return found

    def _asked(self, num_tokens: int, batch: int, device: torch.device) -> tuple[Any, ...] | None:
        """What :meth:`of` depends on beside its tensors; ``None``: changes of these would not be seen."""
        given, mask = self.given, self.mask
        if not isinstance(self.past, int) or (mask is not None and (self.by_diagonal or not isinstance(mask, Tensor))):
            return None
        versions = []
        for x in (given, mask):
            if isinstance(x, Tensor):
                if x.is_inference():  # changes of it are not counted
                    return None
                versions.append(x._version)
        return num_tokens, batch, self.past, device, *versions

    def _find(self, num_tokens: int, batch: int, device: torch.device) -> Tensor:
        given = self.given if self.given is not None and self.given.shape[1] == num_tokens else None
        if given is None or self.mask is not None:
            place = (torch.arange(num_tokens, device=device) + self.past).unsqueeze(0)
            hidden = None if self.mask is None else self._hidden_before(place, batch)
            if given is None:
                given = place if hidden is None else place - hidden
            elif hidden is not None:
                ahead = given - place
                first = ahead[:, :1]  # 1 in a model that numbers its tokens from 1: PaliGemma
                is_made_up = (ahead == first).all(-1, keepdim=True) & ((first == 0) | (first == 1))
                given = torch.where(is_made_up, given - hidden, given)
        return given.clamp_min(0) + 1

    def _is_first_pass(self) -> bool:
        return isinstance(self.past, int) and self.past == 0

    def _hidden_before(self, place: Tensor, batch: int) -> Tensor | None:
        """How many tokens before each token the mask hides, ``[B or 1, T or 1]``; ``None`` if it is not known."""
        num_tokens = place.shape[1]
        if self.by_diagonal and not self._is_first_pass():
            padding: Tensor | None = getattr(self.cache, _PADDING, None)
            return padding if padding is not None and padding.shape[0] in (1, batch) else None
        if isinstance(self.mask, Band):
            is_padding = self.mask.is_padding
            return self.mask.tokens_before() if is_padding is None else self._padding_before(is_padding)
        if not isinstance(self.mask, Tensor):
            rows, token = torch.arange(batch, device=place.device).unsqueeze(-1), place[0]
            is_seen = self.mask.mask_mod(rows, torch.zeros_like(rows), token, token)  # type: ignore[union-attr]
            # A mask function that ignores the batch index returns no batch dimension.
            return self._padding_before(~is_seen.expand(batch, -1))
        mask = self.mask.bool().unsqueeze(1) if self.mask.ndim == 2 else self.mask[:, 0]
        mask = mask > HIDDEN if mask.is_floating_point() else mask.bool()
        if mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, num_tokens) or mask.shape[2] < num_tokens:
            return None
        mask = mask.expand(-1, num_tokens, -1)
        if self.by_diagonal:
            return self._padding_before(~mask.diagonal(dim1=1, dim2=2))
        # By convention True may mean seen or hidden. Every token sees itself, so its own entry tells which it is.
        column = place.clamp_max(mask.shape[2] - 1).unsqueeze(-1)
        itself = mask.gather(2, column.expand(mask.shape[0], -1, -1)).squeeze(-1)
        is_before = torch.arange(mask.shape[2], device=place.device) < place.unsqueeze(-1)
        said = (mask & is_before).sum(-1, dtype=torch.int32)  # int64 is fifty times slower
        return torch.where(itself, place - said, said)

    def _padding_before(self, is_hidden: Tensor) -> Tensor:
        """How many tokens before each are padding, ``[B, T]``; the cache keeps the number for later passes."""
        padding = is_hidden.cumsum(-1)
        if self.cache is not None:
            setattr(self.cache, _PADDING, padding[:, -1:])
        return padding


def _reference(x: Any) -> Callable[[], Any]:
    """What returns x as long as it exists, without keeping it."""
    return weakref.ref(x) if isinstance(x, Tensor) else lambda: x
