"""Methods of other libraries are wrapped while something is guarded, and no longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exsel.upgrading import guards


class Theirs:
    def save(self) -> str:
        """What is saved."""
        return "plain"


class Ours(guards.Guarded):
    pass


def _louder(save: Callable[[Theirs], str]) -> Callable[[Theirs], str]:
    return lambda self: save(self) + "!"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have left upgraded does not count here."""
    monkeypatch.setattr(guards, "_REMEMBERED", type(guards._REMEMBERED)())
    monkeypatch.setattr(guards, "_WRAPPED", {})
    monkeypatch.setattr(Theirs, "save", Theirs.save)


def test_as_long_as_something_is_guarded() -> None:
    original = Theirs.save
    kept = guards.remember(Ours())
    for _ in range(2):
        guards.wrap(Theirs, save=_louder)
    assert Theirs().save() == "plain!"
    assert Theirs.save.__doc__ == original.__doc__
    guards.release()
    assert Theirs().save() == "plain!"
    kept.__class__ = Theirs  # no longer guarded, as after a downgrade
    guards.release()
    assert Theirs.save is original


def test_what_somebody_has_wrapped_since_stays() -> None:
    guards.wrap(Theirs, save=_louder)
    Theirs.save = _louder(Theirs.save)  # type: ignore[method-assign, assignment]
    guards.release()
    assert Theirs().save() == "plain!!"
