"""Modules whose forward pass is not their class's but the instance's own: what a change of class would not reach.

accelerate's hooks are such, on every module of a model that it has spread over devices. They keep the class's forward
pass beside their own and call it, so that it can be exchanged; anything else is refused.
"""

from __future__ import annotations

import types
from typing import Any

from torch import nn

#: Where accelerate keeps the forward pass that its hook stands in for, and the hook. A hook that was removed leaves
#: the class's forward pass on the instance.
_KEPT, _HOOK = "_old_forward", "_hf_hook"


def refusal(module: nn.Module) -> str:
    """Why the class's forward pass is not what ``module`` runs, or not with parameters of its own; else empty."""
    own = vars(module)
    runs = own.get(_KEPT) if _HOOK in own else own.get("forward")
    if "forward" in own and not _is_of_class(runs, module):
        return "its forward was replaced on the instance: upgrade before whatever replaces it"
    hooks = [vars(child)[_HOOK] for child in module.modules() if _HOOK in vars(child)]
    if any(getattr(each, "offload", False) for hook in hooks for each in getattr(hook, "hooks", (hook,))):
        return "accelerate offloads its weights, and would not load new ones: upgrade before it does"
    return ""


def rebind(module: nn.Module) -> None:
    """After a change of class: have the instance's own forward pass, if there is one, be the new class's."""
    own = vars(module)
    for name in (_KEPT, "forward"):
        if isinstance(own.get(name), types.MethodType):
            own[name] = types.MethodType(type(module).forward, module)


def _is_of_class(forward: Any, module: nn.Module) -> bool:
    return getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module
