"""What one module runs: the forward pass of its class, or something that was put in its place.

Before an upgrade, a forward pass of the instance's own is one that a change of class would not reach. accelerate's
hooks are such, on every module of a model that it has spread over devices. They keep the class's forward pass beside
their own and call it, so that it can be exchanged; anything else is refused.

After an upgrade, whatever replaces a forward pass may go around the mechanisms: :class:`Upgraded` sees at each call
whether something was replaced, and whether the call has come through to the insertion all the same.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.mechanisms import Mechanisms
from exsel.upgrading import architectures_vision, diffusers_processors, multihead
from exsel.upgrading.rewriting import CHILD, rewrite
from exsel.upgrading.sources import Read, content, described
from exsel.upgrading.wrapped_methods import Guarded, remember

#: Where accelerate keeps the forward pass that its hook stands in for, and the hook. A hook that was removed leaves
#: the class's forward pass on the instance.
_KEPT, _HOOK = "_old_forward", "_hf_hook"
#: Where an upgraded module with a replaced forward pass keeps the one through which its last call has come.
_PASSED = "_exsel_passed"


class Upgraded(Guarded):
    """What every upgraded attention module is beside what it was.

    Its class is made anew for the original class, and holds the rewritten methods.

    Attributes:
        exsel_original: the original class.
        exsel_layout: by which its methods were rewritten: the projections and the output projection.
        exsel_read: what the original class had, by name, when they were: what is called, the function in it that has
            the source, and its code.
        exsel_forward: the rewritten forward pass.
    """

    exsel_original: ClassVar[type[nn.Module]]
    exsel_layout: ClassVar[tuple[tuple[tuple[str, str], ...], str | None]]
    exsel_read: ClassVar[Mapping[str, Read]]
    exsel_forward: ClassVar[types.FunctionType]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Its class has no name under which pickle could find it.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, (self.exsel_original, *self.exsel_layout), *reduced[2:]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module; but no forward pass that goes around the mechanisms.

        Raises:
            RuntimeError: what would be lost, and to what.
        """
        if fault := _bypassed(self):
            raise RuntimeError(f"{fault}. Take it back, or exsel.downgrade(model), put it there, and upgrade again")
        own, cls = self.__dict__, type(self)
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
        """The insertion with which the rewritten forward pass begins."""
        own = self.__dict__
        if _PASSED in own:
            own[_PASSED] = own.get("forward", type(self).forward)  # type: ignore[attr-defined]
        return own["_modules"][CHILD].begin(**call)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or the one that it had before its upgrade."""
    cls: type[nn.Module] = getattr(type(module), "exsel_original", type(module))
    return cls


#: By original class and layout. A class that was patched since is made anew.
_MADE: dict[tuple[Any, ...], Any] = {}


def upgraded_class(cls: Any, projections: tuple[tuple[str, str], ...], output: str | None) -> Any:
    """The subclass of ``cls`` with the methods that the layout, its projections and its output, gives it.

    Raises:
        RewritingError: a method that cannot be rewritten.
    """
    made = _MADE.get((cls, projections, output))
    if made is None or made.forward is not made.exsel_forward or _replaced(made):
        methods = _methods(cls, dict(projections), output)
        switched = {name: property(_returning(value)) for name, value in architectures_vision.switches(cls).items()}
        described = {"__module__": cls.__module__, "__doc__": cls.__doc__, "exsel_layout": (projections, output)}
        known = {"exsel_original": cls, "exsel_forward": methods["forward"]}
        made = type(cls.__name__, (Upgraded, cls), {**described, **known, **switched, **methods})
        _MADE[cls, projections, output] = made
    return made


def _new(cls: Any, projections: tuple[tuple[str, str], ...], output: str | None) -> Any:
    upgraded = upgraded_class(cls, projections, output)
    return remember(upgraded.__new__(upgraded))


def _methods(cls: Any, projections: dict[str, str], output: str | None) -> Mapping[str, Any]:
    if issubclass(cls, nn.MultiheadAttention):
        return multihead.methods(cls)
    return (
        diffusers_processors.methods(cls)
        if diffusers_processors.has_processor(cls)
        else rewrite(cls, projections, output)
    )


def _returning(value: bool) -> Callable[[Any], bool]:
    return lambda _: value


def _replaced(cls: Any) -> str:
    """Of the methods that the upgraded class ``cls`` was made of, one that its original class has no more."""
    for name, (attribute, function, code) in cls.exsel_read.items():
        if getattr(cls.exsel_original, name, None) is not attribute or function.__code__ is not code:
            return str(name)
    return ""


def _bypassed(module: Any) -> str:
    """Which method that was rewritten has been replaced where an upgraded module does not look; empty: none."""
    cls, own = type(module), module.__dict__
    if name := _replaced(cls):
        by = described(getattr(cls.exsel_original, name, None))
        return f"{cls.__name__}.{name} was replaced by {by} since this layer was upgraded, which would not run"
    for name in cls.exsel_read:
        if name != "forward" and name in own:
            return f"{name} of this upgraded {cls.__name__} was replaced by {described(own[name])}, which would not run"
    return ""


def refusal(module: nn.Module, names: Iterable[str] = ("forward",)) -> str:
    """Why the class's methods ``names`` are not what ``module`` runs, or not with new parameters; else empty."""
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


def check_whole(model: nn.Module) -> None:
    """Check that every module of ``model`` that has mechanisms computes with them, as far as can be seen.

    Raises:
        UpgradeError: a module whose class or forward pass was replaced since it was upgraded. A forward pass that was
            put around the upgraded one is none such if it holds that one, or the last call has come through it.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Upgraded):
            if isinstance(module._modules.get(CHILD), Mechanisms):
                raise UpgradeError(
                    f"{name or type(module).__name__} was upgraded, and has been given the class "
                    f"{type(module).__qualname__} since, which computes without its mechanisms: take that back first"
                )
            continue
        own: dict[str, Any] = vars(module)
        forward = own.get("forward", type(module).forward)  # type: ignore[attr-defined]
        fault = _bypassed(module) or diffusers_processors.fault(module)
        if not fault and not (
            forward is type(module).exsel_forward
            or own.get(_PASSED) is forward
            or (_HOOK in own and _is_of_class(own.get(_KEPT), module))  # type: ignore[arg-type]
            or _holds(forward, module)
        ):
            fault = f"its forward pass was replaced by {described(forward)}, which may compute without its mechanisms"
        if fault:
            raise UpgradeError(f"{name or type(module).__name__} is upgraded, and {fault}: take that back first")


def rebind(module: nn.Module) -> None:
    """After a change of class: have the instance's own forward pass, if there is one, be the new class's."""
    own = vars(module)
    own.pop(_PASSED, None)
    for name in (_KEPT, "forward"):
        if isinstance(own.get(name), types.MethodType):
            own[name] = types.MethodType(type(module).forward, module)


def _is_of_class(forward: Any, module: nn.Module) -> bool:
    return getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module


def _holds(function: Any, module: Any, depth: int = 4) -> bool:
    """Whether ``function`` has the rewritten forward pass of ``module`` among what it refers to."""
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
