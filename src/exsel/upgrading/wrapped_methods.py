"""Methods of other libraries that are wrapped as long as anything in this process is upgraded.

A model of theirs may have an upgraded part of which its own saving knows nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any


class Guarded:
    """What the methods are wrapped for: upgraded modules, and configurations that say so."""


#: By their ids, objects that were guarded when they were remembered, as long as there are any.
_REMEMBERED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: The wrapped methods by class and name.
_WRAPPED: dict[Any, dict[str, Any]] = {}


def remember(value: Any) -> Any:
    """``value``, for which methods stay wrapped as long as it is :class:`Guarded`."""
    _REMEMBERED[id(value)] = value
    return value


def wrap(cls: Any, **wrappers: Callable[[Any], Any]) -> None:
    """Wrap methods of ``cls``, unless they are.

    Args:
        cls: a class of another library.
        **wrappers: by the method's name, a function from the method to what stands in its place.
    """
    if cls in _WRAPPED:
        return
    methods = {name: getattr(cls, name) for name in wrappers}
    _WRAPPED[cls] = {name: functools.wraps(method)(wrappers[name](method)) for name, method in methods.items()}
    for name, wrapped in _WRAPPED[cls].items():
        setattr(cls, name, wrapped)


def release() -> None:
    """Give the methods back, where nothing is guarded any more.

    A class of which somebody has wrapped one of ours since keeps them all.
    """
    if any(isinstance(value, Guarded) for value in list(_REMEMBERED.values())):
        return
    for cls, methods in list(_WRAPPED.items()):
        if all(vars(cls)[name] is wrapped for name, wrapped in methods.items()):
            for name, wrapped in methods.items():
                setattr(cls, name, wrapped.__wrapped__)
            del _WRAPPED[cls]
