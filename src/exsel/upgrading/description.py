"""Describe a model's mechanisms for its configuration file, and restore them from the description.

The description names modules instead of layer numbers, since one checkpoint loads into several classes, which number
their layers differently. Names are those in the base model, without the prefix that a class with a task's head adds.
"""

from __future__ import annotations

from typing import Any, TypedDict

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import LoadError, UpgradeError
from exsel.nn.mechanisms import Mechanisms
from exsel.upgrading.attention_layers import targets
from exsel.upgrading.placing import Step, insert_all
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import Upgraded, check_whole
from exsel.version import __version__

#: The version of :class:`Description`'s format. A reader refuses later formats.
FORMAT = 1


class Upgrade(TypedDict):
    """Modules with equal mechanisms. The configurations lack ``layers``: ``modules`` stands for them."""

    modules: list[str]
    exclusive: dict[str, Any] | None
    selective: dict[str, Any] | None


class Description(TypedDict):
    """The mechanisms of a model, as JSON types."""

    format: int
    version: str
    upgrades: list[Upgrade]


def describe(model: Any) -> Description | None:
    """The mechanisms of ``model``, or ``None``; an UpgradeError if they are an adapter's, which saves them."""
    check_whole(model)
    upgrades: dict[str, Upgrade] = {}
    for name, module in model.named_modules():
        if not isinstance(module, Upgraded):
            continue
        mechanisms: Any = getattr(module, CHILD)
        if not isinstance(mechanisms, Mechanisms):
            raise UpgradeError(f"{name} has its mechanisms from an adapter: save the adapter, or merge it first")
        exclusive, selective = _values(mechanisms.exclusive_config), _values(mechanisms.selective_config)
        new: Upgrade = {"modules": [], "exclusive": exclusive, "selective": selective}
        upgrades.setdefault(repr(new), new)["modules"].append(_name_in_base(model, name))
    if not upgrades:
        return None
    return {"format": FORMAT, "version": __version__, "upgrades": list(upgrades.values())}


def _values(config: ExclusiveConfig | SelectiveConfig | None) -> dict[str, Any] | None:
    if config is None:
        return None
    return {name: value for name, value in config.to_dict().items() if name != "layers"}


def _damaged(what: str) -> LoadError:
    return LoadError(f"the configuration's 'exsel' entry {what}: it is damaged")


def check(description: Any) -> Description:
    """``description``; a LoadError for a later format, or anything that :func:`describe` would not have written."""
    if not isinstance(description, dict) or type(description.get("format")) is not int:
        raise _damaged(f"has no format: {description!r:.80}")
    if description["format"] > FORMAT:
        raise LoadError(
            f"this model was saved by exsel {description.get('version')} in format {description['format']}, and exsel "
            f"{__version__} reads up to format {FORMAT}: pip install -U 'exsel>={description.get('version')}'"
        )
    if description["format"] < 1:
        raise _damaged(f"has format {description['format']}")
    upgrades = description.get("upgrades")
    if not isinstance(upgrades, list) or not upgrades:
        raise _damaged("names no upgraded modules")
    seen: set[object] = set()
    for upgrade in upgrades:
        mechanisms = _mechanisms(upgrade)
        names = upgrade.get("modules")
        if mechanisms in seen:
            raise _damaged("has the same mechanisms twice")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise _damaged(f"has modules {names!r:.80}")
        for one in (mechanisms, *names):
            if one in seen:
                raise _damaged(f"has the module {one!r:.80} twice")
            seen.add(one)
    return description  # type: ignore[return-value]


def _mechanisms(upgrade: Any) -> tuple[ExclusiveConfig | None, SelectiveConfig | None]:
    """The configurations of an :class:`Upgrade`."""
    if not isinstance(upgrade, dict):
        raise _damaged(f"has {upgrade!r:.80} for an upgrade")
    if unknown := set(upgrade) - set(Upgrade.__annotations__):
        raise _damaged(f"has {min(unknown)!r:.80} in an upgrade")
    exclusive, selective = upgrade.get("exclusive"), upgrade.get("selective")
    if exclusive is None and selective is None:
        raise _damaged("has an upgrade without a mechanism")
    try:
        if any("layers" in values for values in (exclusive, selective) if values is not None):
            raise ValueError("an upgrade has layers, which its modules are")
        return (
            None if exclusive is None else ExclusiveConfig.from_dict(exclusive),
            None if selective is None else SelectiveConfig.from_dict(selective),
        )
    except (TypeError, ValueError) as error:
        raise LoadError(f"the configuration's 'exsel' entry is damaged: {error}") from error


def restore(model: Any, description: Description) -> None:
    """Put the mechanisms of ``description`` into ``model``, a plain one of transformers, with initial parameters.

    A class that builds only a part of the saved model, such as its encoder, gets that part's mechanisms. If the model's
    attention modules are not those that were upgraded, a LoadError leaves it unchanged.
    """
    found = {_name_in_base(model, target.name): target for target in targets(model)}
    steps: list[Step] = []
    missing = []
    for upgrade in description["upgrades"]:
        exclusive, selective = _mechanisms(upgrade)
        for name in upgrade["modules"]:
            target = found.get(name)
            if target is not None:
                reason = (exclusive and target.exclusive) or (selective and target.selective)
                if reason:
                    raise LoadError(f"{target.name} was saved upgraded and cannot be here: {reason}")
                steps.append((target, exclusive, selective))
            elif hasattr(model.base_model, name.split(".")[0]) or hasattr(model, name.split(".")[0]):
                missing.append(name)
    if missing or not steps:
        names = missing or [name for upgrade in description["upgrades"] for name in upgrade["modules"]]
        raise LoadError(
            f"{type(model).__name__} has no attention {names[0]!r}, which the saved model has upgraded "
            f"({len(names)} such); its own: {', '.join(list(found)[:3]) or 'none'}, …"
        )
    insert_all(model, steps)


def _name_in_base(model: Any, name: str) -> str:
    """The name of a module in the base model, which may be inside ``model``, a model with a task's head."""
    return name.removeprefix(f"{model.base_model_prefix}.")
