"""Methods of other libraries that are wrapped as long as anything in this process is upgraded.

A model of such a library may have an upgraded part, of which its own saving knows nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any


class Guarded:
    """The base of upgraded modules and configurations: as long as one exists the methods stay wrapped."""


#: By id, the remembered objects that still exist. A downgrade changes their class, so they may be guarded no more.
_REMEMBERED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: The wrapped methods by class and name.
_WRAPPED: dict[Any, dict[str, Any]] = {}


def remember(value: Any) -> Any:
    """Keep methods wrapped as long as ``value`` exists and is :class:`Guarded`; returns it."""
    _REMEMBERED[id(value)] = value
    return value


def wrap(cls: Any, **wrappers: Callable[[Any], Any]) -> None:
    """Wrap methods of ``cls``, once.

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
    """Take the wrappers off, if nothing is guarded any more.

    If somebody has wrapped one of a class's wrapped methods again, all wrappers of that class stay.
    """
    if any(isinstance(value, Guarded) for value in list(_REMEMBERED.values())):
        return
    for cls, methods in list(_WRAPPED.items()):
        if all(vars(cls)[name] is wrapped for name, wrapped in methods.items()):
            for name, wrapped in methods.items():
                setattr(cls, name, wrapped.__wrapped__)
            del _WRAPPED[cls]
