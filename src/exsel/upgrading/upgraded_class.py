"""The class of an upgraded attention module, and how it detects that its forward pass was replaced.

Before an upgrade an instance may have its own ``forward``, which a new class does not change. accelerate's hooks keep
the class's ``forward`` on the instance and call it, so it can be exchanged there; any other is refused. After an
upgrade another ``forward`` may bypass the mechanisms. :class:`Upgraded` checks at each call whether it was replaced,
and whether the call reached the mechanisms all the same.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.mechanisms import Mechanisms
from exsel.nn.projections import Projections
from exsel.upgrading import diffusers_processors, multihead
from exsel.upgrading.architectures import switches
from exsel.upgrading.rewriting import CHILD, rewrite
from exsel.upgrading.sources import Read, content, described
from exsel.upgrading.wrapped_methods import Guarded, remember

#: The attributes in which accelerate keeps the ``forward`` that its hook replaces, and the hook. A removed hook leaves
#: the class's ``forward`` on the instance.
_KEPT, _HOOK = "_old_forward", "_hf_hook"
#: The attribute that notes through which replaced ``forward`` the last call reached the mechanisms.
_PASSED = "_exsel_passed"


class Upgraded(Guarded):
    """The base of every upgraded attention module's class, which holds the rewritten methods of the original class."""

    exsel_original: ClassVar[type[nn.Module]]
    exsel_projections: ClassVar[Projections | None]
    exsel_read: ClassVar[Mapping[str, Read]]  # the original methods, by name
    exsel_forward: ClassVar[types.FunctionType]  # the rewritten forward pass

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle cannot find its class by name.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, (self.exsel_original, self.exsel_projections), *reduced[2:]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; a RuntimeError if the call does not go through the mechanisms names what replaced these."""
        own, cls = self.__dict__, type(self)
        if fault := _bypassed(cls, own):
            raise RuntimeError(f"{fault}. Take it back, or exsel.downgrade(model), put it there, and upgrade again")
        forward: Any = cls.forward  # type: ignore[attr-defined]
        if "forward" not in own and forward is cls.exsel_forward:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        own[_PASSED] = None
        result = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if own[_PASSED] is None:
            raise RuntimeError(
                f"the forward pass of this upgraded {type(self).__name__} was replaced by "
                f"{described(own.get('forward', forward))}, which computes without its mechanisms: take it back, or "
                "exsel.downgrade(model)"
            )
        return result

    def _exsel_begin(self, **call: Any) -> Any:
        """Begin a pass: the first statement of the rewritten forward pass."""
        own = self.__dict__
        if _PASSED in own:
            own[_PASSED] = own.get("forward", type(self).forward)  # type: ignore[attr-defined]
        return own["_modules"][CHILD].begin(**call)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module; of an upgraded module, the class before the upgrade."""
    cls: type[nn.Module] = getattr(type(module), "exsel_original", type(module))
    return cls


#: Upgraded classes by original class and projections. An entry is replaced if the original was patched since.
_MADE: dict[tuple[Any, str], Any] = {}


def upgraded_class(cls: Any, projections: Projections | None) -> Any:
    """The subclass of ``cls`` that goes through the mechanisms; a RewritingError if a method cannot be rewritten."""
    key = cls, repr(projections)
    made = _MADE.get(key)
    if made is None or made.forward is not made.exsel_forward or _bypassed(made, {}):
        if issubclass(cls, nn.MultiheadAttention):
            methods = multihead.multihead_methods(cls)
        elif diffusers_processors.has_processor(cls):
            methods = diffusers_processors.processor_methods(cls)
        else:
            methods = rewrite(cls, projections or Projections({}))
        members = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "exsel_original": cls,
            "exsel_projections": projections,
            "exsel_forward": methods["forward"],
            **{name: property(lambda self: True) for name in switches(cls)},
            **methods,
        }
        made = _MADE[key] = type(cls.__name__, (Upgraded, cls), members)
    return made


def _new(cls: Any, projections: Projections | None) -> Any:
    upgraded = upgraded_class(cls, projections)
    return remember(upgraded.__new__(upgraded))


def insert(module: nn.Module, projections: Projections | None, child: nn.Module) -> None:
    """Make the forward pass of ``module`` go through ``child``, which has the ``begin`` of :class:`Mechanisms`."""
    upgraded = upgraded_class(module.__class__, projections)
    module._modules[CHILD] = child
    module.__class__ = upgraded
    remember(module)
    _rebind(module)


def remove(module: nn.Module) -> None:
    """The inverse of :func:`insert`."""
    cls = original_class(module)
    del module._modules[CHILD]
    module.__class__ = cls
    _rebind(module)


def _rebind(module: nn.Module) -> None:
    """After a change of class, replace the instance's own bound ``forward``, if any, by the new class's."""
    own = vars(module)
    own.pop(_PASSED, None)
    for name in (_KEPT, "forward"):
        if isinstance(own.get(name), types.MethodType):
            own[name] = types.MethodType(type(module).forward, module)


def class_refusal(module: nn.Module, names: Iterable[str] = ("forward",)) -> str:
    """Why ``module`` cannot be upgraded: one of ``names`` is replaced on it, or weights are offloaded; else empty."""
    own = vars(module)
    runs = own.get(_KEPT) if _HOOK in own else own.get("forward")
    if "forward" in own and not _is_of_class(runs, module):
        return f"its forward was replaced on the instance by {described(runs)}: upgrade before whatever replaces it"
    for name in names:
        if name != "forward" and name in own:
            return f"its {name} was replaced on the instance by {described(own[name])}: it would not run"
    hooks = [vars(child)[_HOOK] for child in module.modules() if _HOOK in vars(child)]
    if any(getattr(each, "offload", False) for hook in hooks for each in getattr(hook, "hooks", (hook,))):
        return "accelerate offloads its weights, and would not load new ones: upgrade before it does"
    return ""


def _bypassed(cls: type[Upgraded], own: Mapping[str, Any]) -> str:
    """In words, which method was replaced on the original class or in ``own``, the instance's attributes, if any."""
    for name, (attribute, function, code) in cls.exsel_read.items():
        found = getattr(cls.exsel_original, name, None)
        if found is not attribute or function.__code__ is not code:
            by = described(found)
            return f"{cls.__name__}.{name} was replaced by {by} since this layer was upgraded, which would not run"
        if name != "forward" and name in own:
            return f"{name} of this upgraded {cls.__name__} was replaced by {described(own[name])}, which would not run"
    return ""


def check_whole(model: nn.Module) -> None:
    """Check that every module of ``model`` that has mechanisms computes with them, as far as can be seen.

    It raises an UpgradeError if the class or forward pass of one was replaced since the upgrade. A wrapper is accepted
    if it refers to the upgraded forward pass, or if the last call reached the mechanisms through it.
    """
    for name, module in model.named_modules():
        if isinstance(module, Upgraded):
            if (
                fault := _bypassed(type(module), vars(module))
                or diffusers_processors.fault(module)
                or _replaced_forward(module)
            ):
                raise UpgradeError(f"{name or type(module).__name__} is upgraded, and {fault}: take that back first")
        elif isinstance(module._modules.get(CHILD), Mechanisms):
            raise UpgradeError(
                f"{name or type(module).__name__} was upgraded, and has been given the class "
                f"{type(module).__qualname__} since, which computes without its mechanisms: take that back first"
            )


def _replaced_forward(module: Any) -> str:
    own: dict[str, Any] = vars(module)
    forward = own.get("forward", type(module).forward)
    if (
        forward is type(module).exsel_forward
        or own.get(_PASSED) is forward
        or (_HOOK in own and _is_of_class(own.get(_KEPT), module))
        or _holds(forward, module)
    ):
        return ""
    return f"its forward pass was replaced by {described(forward)}, which may compute without its mechanisms"


def _is_of_class(forward: Any, module: nn.Module) -> bool:
    return getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module


def _holds(function: Any, module: Any, depth: int = 4) -> bool:
    """Whether ``function`` refers to the rewritten forward pass of ``module``."""
    if type(module).exsel_forward in (function, getattr(function, "__func__", None)):
        return True
    if depth == 0:
        return False
    inner = [getattr(function, "__wrapped__", None), getattr(function, "__func__", None)]
    if isinstance(function, functools.partial):
        inner += [function.func, *function.args]
    if isinstance(function, types.FunctionType):
        inner += [content(cell) for cell in function.__closure__ or ()]
        inner += function.__defaults__ or ()
    return any(_holds(each, module, depth - 1) for each in inner if callable(each))
