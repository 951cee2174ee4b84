"""Modules whose forward pass is not their class's but the instance's own: what a change of class would not reach.

accelerate's hooks are such, on every module of a model that it has spread over devices. They keep the class's forward
pass beside their own and call it, so that it can be exchanged; anything else is refused.
"""

from __future__ import annotations

import types
from typing import Any

from torch import nn

#: Where accelerate keeps the forward pass that its hook stands in for, and the hook.
_KEPT, _HOOK = "_old_forward", "_hf_hook"


def refusal(module: nn.Module) -> str:
    """Why the class's forward pass is not what ``module`` runs, or not with parameters of its own; else empty."""
    if "forward" not in vars(module):
        return ""
    if not _keeps_its_class(module):
        return "its forward was replaced on the instance: upgrade before whatever replaces it"
    hook = vars(module)[_HOOK]
    if any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,))):
        return "accelerate offloads its weights, and would not load new ones: upgrade before dispatch_model"
    return ""


def rebind(module: nn.Module) -> None:
    """After a change of class: have accelerate's hook, if there is one, call the new class's forward pass."""
    if _KEPT in vars(module):
        vars(module)[_KEPT] = types.MethodType(type(module).forward, module)


def _keeps_its_class(module: nn.Module) -> bool:
    kept: Any = vars(module).get(_KEPT)
    return _HOOK in vars(module) and getattr(kept, "__func__", None) is type(module).forward
