"""Which of the two mechanisms a model uses, and how: checked at construction, plain JSON when saved."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from exsel.errors import ExselError, UpgradeError

TokenTerm = Literal["shared", "mlp", "linear", "frequency", "constant", "none"]
PositionForm = Literal["sigmoid", "double_exponential"]
Layers = str | int | Sequence[int]

_FIRST_OR_LAST = re.compile(r"(first|last):([1-9][0-9]{0,5})")


def _shown(value: Any) -> str:
    """``value`` as an error message shows it."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "an integer of thousands of digits"  # Python refuses to write it out


def resolve_layers(layers: Layers, num_layers: int) -> frozenset[int]:
    """The indices of the layers that ``layers`` names in a model of ``num_layers`` layers.

    Args:
        layers: ``"all"``, ``"first:k"``, ``"last:k"``, an index or several; negative ones count from the end.
        num_layers: how many layers there are.

    Raises:
        UpgradeError: an index or k beyond the model.
    """
    layers = _check_layers(layers)
    if layers == "all":
        return frozenset(range(num_layers))
    if isinstance(layers, str):
        match = _FIRST_OR_LAST.fullmatch(layers)
        assert match is not None, "checked by _check_layers"
        count = int(match[2])
        if count > num_layers:
            raise UpgradeError(f"layers={_shown(layers)} names {count} layers, but the model has {num_layers}")
        return frozenset(range(count) if match[1] == "first" else range(num_layers - count, num_layers))
    outside = [index for index in layers if not -num_layers <= index < num_layers]
    if outside:
        raise UpgradeError(
            f"layers={_shown(layers)} names layer {_shown(outside[0])}, but the model has layers 0 to {num_layers - 1}"
        )
    return frozenset(index % num_layers for index in layers)


def _check_layers(layers: Any) -> str | tuple[int, ...]:
    if type(layers) is int:
        return (layers,)
    if isinstance(layers, str) and (layers == "all" or _FIRST_OR_LAST.fullmatch(layers)):
        return layers
    if isinstance(layers, (list, tuple)) and all(type(index) is int for index in layers) and layers:
        return tuple(layers)
    raise ExselError(f"layers must be 'all', 'first:k', 'last:k', an index or a list of indices, got {_shown(layers)}")


class _Serialised:
    _ALSO_READ: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()  # type: ignore[call-overload]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            ExselError: a name that is no field (a newer version's, or a typo), or a bad value.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ExselError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**values)

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """The configuration that an argument ``exclusive`` or ``selective`` stands for.

        Args:
            value: ``None`` or ``False``: without the mechanism; ``True``: its default configuration; a configuration;
                or its dictionary; for the exclusive mechanism also its strength alone, a number or ``"learned"``.

        Raises:
            TypeError: anything else.
            ExselError: a dictionary that :meth:`from_dict` refuses, or an impossible strength.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        name = cls.__name__.removesuffix("Config").lower()
        raise TypeError(
            f"{name} must be None, True, False, an exsel.{cls.__name__} or its dictionary{cls._ALSO_READ}; "
            f"got {_shown(value)}"
        )


@dataclass(frozen=True, kw_only=True)
class ExclusiveConfig(_Serialised):
    """Exclusive self-attention (XSA): z = y − α (y·v̂) v̂ after attention.

    Args:
        layers: where: ``"all"``, ``"first:k"``, ``"last:k"``, an index or several.
        strength: α, the same for every head, or ``"learned"``: tanh(γ) a head, from γ = 0.

    Raises:
        ExselError: anything else.

    Source: Zhai, "Exclusive Self Attention", arXiv:2603.09078 (2026): all layers, α = 1. The learned strength is
    follow-up work, on which the evidence is mixed: a speed-run record has it (github.com/KellerJordan/modded-nanogpt,
    pull request 264), and elsewhere it was worse than the fixed one (github.com/marin-community/marin, issue 5301).
    """

    _ALSO_READ: ClassVar[str] = ", or a strength (a number or 'learned')"

    layers: Layers = "all"
    strength: float | Literal["learned"] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _check_layers(self.layers))
        if self.strength == "learned":
            return
        strength: Any = self.strength
        is_number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not is_number or not abs(strength) <= sys.float_info.max:
            raise ExselError(f"strength must be a finite number or 'learned', got {_shown(strength)}")
        object.__setattr__(self, "strength", float(strength))

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """As :meth:`SelectiveConfig.read`; also takes the strength alone, a number or ``"learned"``."""
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return cls(strength=value)  # type: ignore[arg-type]
        return super().read(value)


@dataclass(frozen=True, kw_only=True)
class SelectiveConfig(_Serialised):
    """Selective self-attention (SSA): an inverse temperature τ = τ_tok + τ_pos for each query, key or value.

    τ_tok = tanh(f(x)) and τ_pos = 1 + c(a) log n, n the 1-based position within the token's own sequence.

    Args:
        layers: where: ``"all"``, ``"first:k"``, ``"last:k"``, an index or several.
        query, key, value: what gets a temperature. Keys get none by default, as in the paper: scaling a
            key can change which key is nearest.
        token: f. ``"shared"``: w·GELU(W x) with W the projection the layer has anyway; ``"mlp"``: the same with a
            W' of its own; ``"linear"``: w·x, x the layer's input; ``"frequency"``: u φ(token), φ the standardised
            log frequency; ``"constant"``: w, one number whatever the token is; ``"none"``: τ_tok = 0.
        position: whether τ_pos has its log n term on queries and keys; without it τ_pos = 1.
        value_position: the same for values (the paper's final model has it).
        per_head: a w (or u) for each head, or one for all.
        position_form: c. ``"sigmoid"``: σ(a); ``"double_exponential"``: exp(−exp a), which near 0 grows log(1 / c)
            times as fast in −a as σ(a) in a.
        position_per_head: an a for each head, or one a layer.
        position_init: c(a) at the start, in (0, 1).

    Raises:
        ExselError: an impossible value, or a combination that changes nothing.

    Source: Zhang et al., "Selective Attention: Enhancing Transformer through Principled Context Control",
    NeurIPS 2024, arXiv:2411.12892. Ours: the initialisation (w = 0; c(a) from the authors' code), and φ, for
    which the paper gives no formula. Where the paper can be read in two ways, both are options, our default first.
    ``"sigmoid"`` is the paper's. ``"double_exponential"`` is the authors' code, which has no other term than that
    (github.com/umich-sota/selective_attention, ``lit_gpt/model_finetune_att.py``): ``token="none", value=False,
    position_form="double_exponential", position_per_head=False`` with a ``position_init`` of 6.2e-4 for Pythia (a = 2)
    and 1.13e-2 for GPT-2 (a = 1.5). ``"constant"`` selects nothing: it is the control for a gain of the other forms.
    """

    layers: Layers = "all"
    query: bool = True
    key: bool = False
    value: bool = True
    token: TokenTerm = "shared"
    position: bool = True
    value_position: bool = True
    per_head: bool = True
    position_form: PositionForm = "sigmoid"
    position_per_head: bool = True
    position_init: float = 6e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _check_layers(self.layers))
        for name in ("query", "key", "value", "position", "value_position", "per_head", "position_per_head"):
            if type(getattr(self, name)) is not bool:
                raise ExselError(f"{name} must be True or False, got {_shown(getattr(self, name))}")
        for name, choices in (("token", get_args(TokenTerm)), ("position_form", get_args(PositionForm))):
            if getattr(self, name) not in choices:
                raise ExselError(f"{name} must be one of {', '.join(choices)}; got {_shown(getattr(self, name))}")
        if not (self.query or self.key or self.value):
            raise ExselError("at least one of query, key and value must be True: nothing would be selective")
        positional = (self.position and (self.query or self.key)) or (self.value_position and self.value)
        if self.token == "none" and not positional:
            raise ExselError("token='none' without a positional term leaves every temperature at 1")
        if type(self.position_init) is not float or not 0 < self.position_init < 1:
            raise ExselError(f"position_init is c(a) and must lie in (0, 1), got {_shown(self.position_init)}")


#: The type of every argument ``exclusive``.
ExclusiveArgument = ExclusiveConfig | Mapping[str, Any] | float | Literal["learned"] | bool | None
#: The type of every argument ``selective``.
SelectiveArgument = SelectiveConfig | Mapping[str, Any] | bool | None
