"""What stands in for parts of exsel in a folder's own code: plain PyTorch, the bits of exsel without its C++ passes.

:func:`exsel.standalone.bundling.bundle` puts these in the places of the definitions of the same names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exsel.functional import EPS, _expand_strength
from exsel.kernels.passes import forward_formula
from exsel.reference import accumulation_dtype
from exsel.reference import inverse_temperature as inverse_temperature

#: The attention function that is chosen where none is asked for.
IMPLEMENTATION = "sdpa"


def exclude(y: Tensor, own_value: Tensor, *, strength: float | Tensor | None = None, eps: float = EPS) -> Tensor:
    """z = y − α (y·v̂) v̂: y ``[..., H, T, D]``, own_value ``[..., Hkv, T, D]``, α a number, or one a head ``[H]``."""
    alpha = _expand_strength(strength, y)
    return forward_formula(y, own_value, None if alpha is None else alpha.to(accumulation_dtype(y.dtype)), eps)


def scale_heads(x: Tensor, tau: Tensor) -> Tensor:
    """τ ⊙ x in x's dtype: x ``[..., H, T, D]``, τ ``[..., H, T]``."""
    return (x * tau.unsqueeze(-1)).to(x.dtype)


def no_plan(module: nn.Module, name: str) -> dict[str, str]:
    """No plan: these parameters are not divided among processes."""
    return {}


heads_plan = no_plan


def not_here(*args: Any, **kwargs: Any) -> Any:
    """Nothing: exsel has a shorter way here, or writes the model card."""
    return None


is_unseen = not_here
exclude_directly = not_here
scale_directly = not_here
write_card = not_here
