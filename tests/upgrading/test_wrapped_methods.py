"""Methods of other libraries are wrapped while something is guarded, and no longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exsel.upgrading import wrapped_methods


class Theirs:
    def save(self) -> str:
        """What is saved."""
        return "plain"


class Ours(wrapped_methods.Guarded):
    pass


def _louder(save: Callable[[Theirs], str]) -> Callable[[Theirs], str]:
    return lambda self: save(self) + "!"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have left upgraded does not count here."""
    monkeypatch.setattr(wrapped_methods, "_REMEMBERED", type(wrapped_methods._REMEMBERED)())
    monkeypatch.setattr(wrapped_methods, "_WRAPPED", {})
    monkeypatch.setattr(Theirs, "save", Theirs.save)


def test_as_long_as_something_is_guarded() -> None:
    original = Theirs.save
    kept = wrapped_methods.remember(Ours())
    for _ in range(2):
        wrapped_methods.wrap(Theirs, save=_louder)
    assert Theirs().save() == "plain!"
    assert Theirs.save.__doc__ == original.__doc__
    wrapped_methods.release()
    assert Theirs().save() == "plain!"
    kept.__class__ = Theirs  # no longer guarded, as after a downgrade
    wrapped_methods.release()
    assert Theirs.save is original


def test_what_somebody_has_wrapped_since_stays() -> None:
    wrapped_methods.wrap(Theirs, save=_louder)
    Theirs.save = _louder(Theirs.save)  # type: ignore[method-assign, assignment]
    wrapped_methods.release()
    assert Theirs().save() == "plain!!"
