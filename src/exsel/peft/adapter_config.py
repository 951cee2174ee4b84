"""The mechanisms' options as PEFT configurations, and how these are read from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from exsel.config import ExclusiveArgument, ExclusiveConfig, Layers, PositionForm, SelectiveConfig, TokenTerm
from exsel.errors import ExselError, LoadError, first_line


def _peft_type(name: str) -> Any:
    """Add ``name`` to PEFT's enumeration of methods: PEFT registers members of it only."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    return member


_SELECTIVE = _peft_type("EXSEL_SELECTIVE")
_EXCLUSIVE = _peft_type("EXSEL_EXCLUSIVE")


@dataclass(kw_only=True)
class AdapterConfig(PeftConfig):
    """The fields and methods that both adapters share."""

    lora: LoraConfig | None = None
    modules_to_save: list[str] | None = None

    # PEFT's injection reads these. The mechanisms are placed by ``layers`` instead.
    target_modules: ClassVar[None] = None
    target_parameters: ClassVar[None] = None

    #: Whether it was read from a folder whose weights have not been loaded yet.
    awaits_weights = False

    def __new__(cls, *_: Any, **values: Any) -> Self:
        """Refuse unknown fields: PEFT would drop them with a warning."""
        _check_known(cls, values)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lora = _lora(self.lora)
        _, _ = self.mechanisms()  # checks the values

    def mechanisms(self) -> tuple[ExclusiveConfig | None, SelectiveConfig | None]:
        """The ``exclusive`` and ``selective`` with which ``exsel.upgrade`` does the same."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        values: dict[str, Any] = super().to_dict()
        if self.lora is not None:
            lora = self.lora.to_dict().items()
            values["lora"] = {name: sorted(value) if isinstance(value, set) else value for name, value in lora}
        return values

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> AdapterConfig:
        """Read the configuration in a folder, and check the weights beside it before PEFT changes a model.

        Raises:
            LoadError: no configuration, one of a newer version, or weights that are no readable safetensors.
        """
        folder = pretrained_model_name_or_path
        try:
            config: AdapterConfig = super().from_pretrained(folder, subfolder=subfolder, **kwargs)
        except (TypeError, ValueError) as error:
            raise LoadError(str(error)) from error
        _check_weights(Path(folder, subfolder or ""))
        config.awaits_weights = True
        return config


@dataclass(kw_only=True)
class SelectiveAdapterConfig(AdapterConfig):
    """A PEFT adapter with selective self-attention (SSA), and optionally exclusive self-attention (XSA).

    ``get_peft_model(model, SelectiveAdapterConfig())`` freezes the model and inserts temperatures. Only these are
    trained and saved. LoRA in the same adapter is trained, switched and saved with them, and the temperatures are
    computed from the projections' outputs with LoRA::

        SelectiveAdapterConfig(exclusive=True, lora=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))

    For LoRA as a separate adapter, call transformers' ``model.add_adapter(config, name)`` for each, in either order,
    then ``model.set_adapter([…, …])``. A model that PEFT has wrapped already is refused: merge that adapter first.
    Loading needs ``import exsel.peft`` first, since PEFT raises at an adapter type that it does not know.

    ``merge_and_unload()`` returns an upgraded model as ``exsel.upgrade`` makes it, with the trained parameters:
    temperatures are not linear maps, so only LoRA is merged into the weights. ``unload()`` returns the original model.
    One adapter is active at a time.

    Args:
        layers: as in :class:`exsel.SelectiveConfig`, counted over the model's self-attention layers; it replaces
            ``target_modules`` and ``layers_to_transform`` of other methods.
        query, key, value, token, position, value_position, per_head: as in :class:`exsel.SelectiveConfig`.
        position_form, position_per_head, position_init: as in :class:`exsel.SelectiveConfig`.
        exclusive: XSA in the same adapter, as :meth:`exsel.ExclusiveConfig.read` takes it; it has its own ``layers``.
        lora: LoRA in the same adapter.
        modules_to_save: modules to train in full, as in other methods.
        task_type, base_model_name_or_path, revision, inference_mode: as in :class:`peft.PeftConfig`.

    Raises:
        ExselError: impossible values, or a field that this version does not know.
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
    exclusive: ExclusiveArgument = None

    def __post_init__(self) -> None:
        self.peft_type = _SELECTIVE
        self.exclusive = ExclusiveConfig.read(self.exclusive)
        super().__post_init__()
        if self.token == "frequency":
            raise ExselError("token='frequency' needs each token's frequency, which a model's layers do not get")

    def mechanisms(self) -> tuple[ExclusiveConfig | None, SelectiveConfig | None]:
        """The ``exclusive`` and ``selective`` with which ``exsel.upgrade`` does the same."""
        selective = SelectiveConfig(**{field.name: getattr(self, field.name) for field in fields(SelectiveConfig)})
        return ExclusiveConfig.read(self.exclusive), selective


@dataclass(kw_only=True)
class ExclusiveAdapterConfig(AdapterConfig):
    """A PEFT adapter with exclusive self-attention (XSA) only; otherwise like :class:`SelectiveAdapterConfig`.

    Args:
        layers, strength: as in :class:`exsel.ExclusiveConfig`. A fixed strength has nothing to train, so it needs LoRA
            or modules to save beside it.
        lora, modules_to_save, task_type, base_model_name_or_path, revision, inference_mode: see there.

    Raises:
        ExselError: impossible values, nothing to train, or a field that this version does not know.
    """

    layers: Layers = "all"
    strength: float | Literal["learned"] = 1.0

    def __post_init__(self) -> None:
        self.peft_type = _EXCLUSIVE
        super().__post_init__()
        if self.strength != "learned" and self.lora is None and not self.modules_to_save:
            raise ExselError(
                "a fixed strength has nothing to train: pass strength='learned' or lora=LoraConfig(…), or put the "
                "mechanism in with exsel.upgrade(model, exclusive=True)"
            )

    def mechanisms(self) -> tuple[ExclusiveConfig | None, SelectiveConfig | None]:
        """The ``exclusive`` with which ``exsel.upgrade`` does the same, and no ``selective``."""
        return ExclusiveConfig(layers=self.layers, strength=self.strength), None


def _check_known(cls: type[Any], values: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(cls)}
    # Another version of PEFT may have further fields, which have no effect while they are None.
    unknown = [name for name, value in values.items() if name not in known and value is not None]
    if unknown:
        raise ExselError(
            f"{cls.__name__} has no field {unknown[0]!r}: it is misspelt, or from a newer version of exsel or PEFT"
        )


def _lora(lora: LoraConfig | Mapping[str, Any] | None) -> LoraConfig | None:
    if isinstance(lora, Mapping):
        _check_known(LoraConfig, lora)
        lora = LoraConfig(**{name: value for name, value in lora.items() if value is not None})
    if lora is None:
        return None
    if type(lora) is not LoraConfig:
        raise ExselError(f"lora must be a peft.LoraConfig, got {type(lora).__name__}")
    for name, empty in (("modules_to_save", None), ("trainable_token_indices", None), ("bias", "none")):
        if getattr(lora, name) != empty:
            raise ExselError(
                f"lora={name}={getattr(lora, name)!r} is not saved from here: use modules_to_save= beside lora="
            )
    return lora


def _check_weights(folder: Path) -> None:
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if weights.exists():
        try:
            with safe_open(weights, framework="pt"):
                return
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{weights} is not a readable safetensors file: {first_line(error)}") from error
    if (folder / WEIGHTS_NAME).exists():
        raise LoadError(f"{folder / WEIGHTS_NAME} is a pickle, which can run code: only {weights.name} is loaded")
