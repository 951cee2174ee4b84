"""The variants of a model: the four that have a name, a control, and one's own as a TOML file says them.

A recipe is a table of that file, named as its variant. Its keys are flags of the command line, for this variant alone::

    [half]
    exclusive = 0.5

    [queries]
    selective = {value = false, layers = "last:2"}
    lr = [1e-3, 3e-3]
    token-lr = 1e-2
    position-lr = 1e-2
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig
from exsel.errors import ExselError

#: The name of the model without either mechanism, which every other variant is compared with.
BASELINE = "baseline"

#: The seed of the runs that choose a variant's learning rate. No result is made with it.
CHOOSING_SEED = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9][\w+.-]{0,59}", re.ASCII)
_KEYS = ("exclusive", "selective", "lr", "token-lr", "position-lr")

#: The learning rates of the mechanisms' per-head parameters, as fields of a variant and of a run's settings.
OWN_RATES = ("token_learning_rate", "position_learning_rate")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model with these mechanisms, trained at these rates.

    Args:
        name: in tables and as part of a folder's name.
        exclusive, selective: the mechanisms, as :meth:`exsel.ExclusiveConfig.read` and
            :meth:`exsel.SelectiveConfig.read` take them; ``None``: without.
        learning_rates: the peak learning rates of its own, in place of those of the comparison that it is in.
        token_learning_rate, position_learning_rate: peak learning rates of its mechanisms' per-head parameters (w, u
            and γ; a), in place of the comparison's.

    Raises:
        ExselError: a name that cannot be a folder's, a rate that is not a positive number, or an impossible mechanism.
    """

    name: str
    exclusive: ExclusiveConfig | None = None
    selective: SelectiveConfig | None = None
    learning_rates: tuple[float, ...] = ()
    token_learning_rate: float | None = None
    position_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ExselError(
                f"{self.name!r:.80} cannot name a variant: it takes letters, digits and . _ + - (60 at most), "
                "a letter or digit first"
            )
        object.__setattr__(self, "exclusive", ExclusiveConfig.read(self.exclusive))
        object.__setattr__(self, "selective", SelectiveConfig.read(self.selective))
        own = [rate for name in OWN_RATES if (rate := getattr(self, name)) is not None]
        for rate in (*self.learning_rates, *own):
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
                raise ExselError(f"a learning rate of {self.name} must be a positive number, got {rate!r:.80}")

    @property
    def mechanisms(self) -> dict[str, Any]:
        """The mechanisms as arguments of :func:`exsel.upgrade` and fields of :class:`exsel.ExselConfig`."""
        return {"exclusive": self.exclusive, "selective": self.selective}

    @property
    def kind(self) -> str:
        """The name in :data:`VARIANTS` of the variant with the same mechanisms, whatever their fields."""
        return kind_of(name for name, config in self.mechanisms.items() if config is not None)

    def to_dict(self) -> dict[str, Any]:
        """What its model has, as JSON types: the mechanisms, each ``None`` or its fields."""
        return {name: config and config.to_dict() for name, config in self.mechanisms.items()}


def kind_of(mechanisms: Iterable[str]) -> str:
    """The name in :data:`VARIANTS` of the variant that has these mechanisms."""
    return "+".join(sorted(mechanisms)) or BASELINE


#: The variants that every command knows by name, in the order in which they are compared.
VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name=BASELINE),
        Variant(name="exclusive", exclusive=ExclusiveConfig()),
        Variant(name="selective", selective=SelectiveConfig()),
        Variant(name="exclusive+selective", exclusive=ExclusiveConfig(), selective=SelectiveConfig()),
    )
}

#: The control of a selective variant, chosen by its name: one learned number a head in place of each temperature, which
#: depends neither on the token nor on its position. What it gains is a constant gain's, and not selection's.
CONTROL = Variant(name="constant", selective=SelectiveConfig(token="constant", position=False, value_position=False))


def choose_variants(
    words: Sequence[str], *, exclusive: ExclusiveArgument = True, selective: SelectiveArgument = True
) -> list[Variant]:
    """The variants that words name, in their order.

    Args:
        words: each a name in :data:`VARIANTS`, ``"constant"`` for the control of the selective variant as it is here, a
            TOML file of recipes, or one recipe of it as ``FILE.toml:NAME``.
        exclusive, selective: the mechanisms of the named variants that have them, as
            :meth:`exsel.ExclusiveConfig.read` and :meth:`exsel.SelectiveConfig.read` take them.

    Raises:
        ExselError: no such variant, file or recipe; a recipe that says nothing or what cannot be; a named variant whose
            mechanism is switched off.
    """
    configs: dict[str, Any] = {
        "exclusive": ExclusiveConfig.read(exclusive),
        "selective": SelectiveConfig.read(selective),
    }
    chosen: list[Variant] = []
    for word in words:
        if (named := {**VARIANTS, CONTROL.name: CONTROL}.get(word)) is not None:
            has = [name for name, config in named.mechanisms.items() if config is not None]
            if off := next((name for name in has if configs[name] is None), None):
                raise ExselError(f"--{off} false contradicts --variant {word}: leave out one of the two")
            own = {name: configs[name] for name in has}
            if named is CONTROL:
                own["selective"] = replace(own["selective"], token="constant", position=False, value_position=False)
            chosen.append(replace(named, **own))
        elif match := re.fullmatch(r"(.+\.toml)(?::(.+))?", word):
            chosen += _recipes(Path(match[1]), match[2])
        else:
            raise ExselError(
                f"no variant is called {word!r}: choose from {', '.join((*VARIANTS, CONTROL.name))}, or name a .toml "
                "file of recipes"
            )
    return chosen


def _recipes(path: Path, only: str | None) -> list[Variant]:
    """The variants of a file, or the one of this name."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExselError(f"the recipes {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExselError(f"the recipes {path} are not TOML: {error}") from error
    if only is not None and only not in tables:
        raise ExselError(f"{path} has no recipe {only!r}; it has {', '.join(tables) or 'none'}")
    if not tables:
        raise ExselError(f"{path} holds no recipe: begin one with [name]")
    return [_recipe(path, name, table) for name, table in tables.items() if only in (None, name)]


def _recipe(path: Path, name: str, table: Any) -> Variant:
    where = f"{path}, recipe {name}"
    if not isinstance(table, dict) or not table:
        raise ExselError(f"{where}: it must be a table [{name}] with one or more of {', '.join(_KEYS)}")
    if unknown := [key for key in table if key not in _KEYS]:
        raise ExselError(f"{where} has {unknown[0]!r}, and a recipe takes {', '.join(_KEYS)}")
    rates = table.get("lr", [])
    try:
        variant = Variant(
            name=name,
            exclusive=table.get("exclusive"),
            selective=table.get("selective"),
            learning_rates=tuple(rates if isinstance(rates, list) else [rates]),
            token_learning_rate=table.get("token-lr"),
            position_learning_rate=table.get("position-lr"),
        )
    except (ValueError, TypeError) as error:
        raise ExselError(f"{where}: {error}") from error
    if name in VARIANTS and variant.kind != name:
        raise ExselError(f"{where} is {variant.kind}, not {name}: give it a name of its own")
    return variant
