"""Wrap methods of other libraries as long as anything in this process is upgraded.

A model of such a library may have an upgraded part that the library's own saving does not know.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any


class Guarded:
    """The base of upgraded modules and configurations: as long as one exists the methods stay wrapped."""


#: Remembered objects that still exist, by id. A downgrade changes their class, so not all are :class:`Guarded`.
_REMEMBERED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: The wrapped methods by class and name.
_WRAPPED: dict[Any, dict[str, Any]] = {}


def remember(value: Any) -> Any:
    """Keep methods wrapped as long as ``value`` exists and is :class:`Guarded`; returns it."""
    _REMEMBERED[id(value)] = value
    return value


def wrap(cls: Any, **wrappers: Callable[[Any], Any]) -> None:
    """Replace methods of ``cls``, once: each by what its wrapper makes of it."""
    if cls in _WRAPPED:
        return
    methods = {name: getattr(cls, name) for name in wrappers}
    _WRAPPED[cls] = {name: functools.wraps(method)(wrappers[name](method)) for name, method in methods.items()}
    for name, wrapped in _WRAPPED[cls].items():
        setattr(cls, name, wrapped)


def release() -> None:
    """Remove the wrappers if no guarded object exists any more.

    If a wrapped method of a class was wrapped again by others, all wrappers of that class stay.
    """
    if any(isinstance(value, Guarded) for value in list(_REMEMBERED.values())):
        return
    for cls, methods in list(_WRAPPED.items()):
        if all(vars(cls)[name] is wrapped for name, wrapped in methods.items()):
            for name, wrapped in methods.items():
                setattr(cls, name, wrapped.__wrapped__)
            del _WRAPPED[cls]
