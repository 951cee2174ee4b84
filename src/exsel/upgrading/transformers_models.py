"""Upgraded transformers models as folders: the configuration that wraps the base model's, and what loads it.

A program without exsel must not load such a folder and drop its mechanisms in silence. So ``config.json`` has a
model type of its own, which ``AutoModel`` refuses, around the base model's configuration, and entries that stop a
class that does not look at the model type. Tokenizers read neither. With exsel, the configuration is an instance of
the base model's own configuration class, upgraded: a subclass under the same name, by which the Auto classes find one
that builds the base model and puts its mechanisms in.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exsel.errors import LoadError, UpgradeError
from exsel.model_folder import MODEL_TYPE, STOP, UNSAVED, check_weights, write_card
from exsel.nn.exclusive import check_strengths
from exsel.nn.mechanisms import Mechanisms
from exsel.tensor_parallel import are_heads_divided, heads_plan
from exsel.upgrading.description import Description, check, describe, restore
from exsel.upgrading.folder_checks import PLACES, check_files, damage
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import Upgraded
from exsel.upgrading.wrapped_methods import Guarded, remember, wrap

_PREFIX = "Upgraded"
_ENTRY = "exsel"
#: Those that a configuration's own takes though the model's needs them too.
_SHARED = ("dtype", "torch_dtype", "quantization_config")


class UpgradedFields(Guarded):
    """What an upgraded configuration is beside what it was: ``exsel``, and how it is written."""

    plain_class: ClassVar[type[Any]]
    exsel: Description
    #: No code in the folder: what trl asks of a class that transformers does not have under the name in its file.
    auto_map: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the plain class; the values may be the wrapping ones too."""
        if config_dict.get("model_type") == MODEL_TYPE:
            return read_config(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """As the plain class; PEFT asks for it when it puts an adapter around the model."""
        guard()
        values: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """The wrapping configuration."""
        base = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        del base[_ENTRY]
        names = _plain_names(base.get("architectures") or [])
        base["architectures"] = names
        wrapping = {
            "model_type": MODEL_TYPE,
            "architectures": [_PREFIX + name for name in names],
            **STOP,
            _ENTRY: {**self.exsel, "base": base},
            "transformers_version": base.get("transformers_version"),
        }
        return json.dumps(wrapping, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As the plain class, and a model card beside it."""
        mechanisms = {
            f"{name} attention in {_in_short(upgrade['modules'])}": values
            for upgrade in self.exsel["upgrades"]
            for name, values in (("exclusive", upgrade["exclusive"]), ("selective", upgrade["selective"]))
            if values is not None
        }
        config: Any = self
        model = _plain_names(config.architectures or [config.model_type])[0]
        super().save_pretrained(save_directory, push_to_hub, **kwargs)  # type: ignore[misc]
        write_card(Path(save_directory), model, mechanisms, config._name_or_path.removesuffix(UNSAVED))

    def __reduce__(self) -> tuple[Any, ...]:
        # Its class has no name under which pickle could find it.
        return _new_config, (self.plain_class,), self.__dict__


class UpgradingLoader:
    """Builds the base model and puts the mechanisms in: what the Auto classes find for an upgraded configuration.

    A subclass of the base model's class, for all that ``from_pretrained`` asks it; but what it builds is the base
    model's class itself.
    """

    model_class: ClassVar[type[Any]]
    config_class: ClassVar[type[Any]]

    def __new__(cls, config: Any, *args: Any, **kwargs: Any) -> Any:
        """The model of ``config``, upgraded."""
        if not issubclass(config.plain_class, cls.model_class.config_class):
            raise LoadError(
                f"{cls.model_class.__name__} is a part of what this folder holds, and would leave mechanisms out: "
                f"use exsel.from_pretrained(folder)"
            )
        with damage(f"{cls.model_class.__name__} cannot be built as its configuration says"):
            model = cls.model_class(_without_fields(copy.deepcopy(config)), *args, **kwargs)
            restore(model, config.exsel)
        mark(model, config._name_or_path)
        _divide_with_heads(model)
        return model

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``; safetensors only, with all weights and none left over.

        Raises:
            LoadError: as :func:`exsel.from_pretrained`.
        """
        if kwargs.pop("use_safetensors", True) is False or kwargs.get("gguf_file") is not None:
            raise LoadError("upgraded models are read from safetensors files alone: leave use_safetensors out")
        with_info = kwargs.pop("output_loading_info", False)
        check_files(folder, **kwargs)
        if isinstance(config, PreTrainedConfig) and not isinstance(config, UpgradedFields):
            raise LoadError(f"{folder} is an upgraded model, and this configuration is not: leave config out")
        if not isinstance(config, UpgradedFields):
            config, kwargs = _config_of(folder if config is None else config, kwargs)
        model, info = super().from_pretrained(  # type: ignore[misc]
            folder, *args, config=config, use_safetensors=True, output_loading_info=True, **kwargs
        )
        is_part = cls.__name__ not in (config.architectures or ())
        check_weights(folder, model, info, may_miss_head=is_part, may_have_other_head=is_part)
        check_strengths(model, folder)
        return (model, info) if with_info else model


def read_config(values: dict[str, Any], **kwargs: Any) -> Any:
    """The upgraded configuration in a ``config.json``'s ``values``; ``kwargs`` as ``PreTrainedConfig.from_dict``.

    Raises:
        LoadError: from a newer exsel, damaged, or of a base model that transformers does not know.
    """
    entry = values.get(_ENTRY)
    description = check(entry)
    assert isinstance(entry, dict)
    base = entry.get("base")
    if not isinstance(base, dict) or not isinstance(base.get("model_type"), str):
        raise LoadError("the configuration's 'exsel' entry has no base model: it is damaged")
    if _ENTRY in base:
        raise LoadError("the configuration's 'exsel' entry has an upgraded model for its base: it is damaged")
    if base["model_type"] not in CONFIG_MAPPING or base["model_type"] == MODEL_TYPE:
        raise LoadError(
            f"this upgraded model's base is a {base['model_type']!r}, which transformers does not know here: install "
            "the version that saved it, or import the package that registers it"
        )
    architectures = [_PREFIX + name for name in base.get("architectures") or ()]
    config_class = upgraded_config_class(CONFIG_MAPPING[base["model_type"]])
    with damage("the configuration of the upgraded model's base is damaged"):
        return config_class.from_dict({**base, "architectures": architectures or None, _ENTRY: description}, **kwargs)


@functools.cache
def upgraded_config_class(plain_class: Any) -> Any:
    """The subclass of a configuration's class that an upgraded model's has, under the same name."""

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        guard()
        remember(self)
        plain_class.__init__(self, *args, **kwargs)

    members = {
        "__module__": __name__,
        "__doc__": plain_class.__doc__,
        # Without one of its own, transformers would write one that skips the plain class's validation.
        "__init__": initialise,
        "plain_class": plain_class,
    }
    upgraded = type(plain_class)(plain_class.__name__, (UpgradedFields, plain_class), members)
    for mapping in _auto_mappings(_BaseAutoModelClass):
        if plain_class in mapping:
            found = mapping[plain_class]
            loaders = [loader_class(cls, upgraded) for cls in (found if isinstance(found, (list, tuple)) else [found])]
            mapping.register(
                upgraded, tuple(loaders) if isinstance(found, (list, tuple)) else loaders[0], exist_ok=True
            )
    return upgraded


@functools.cache
def loader_class(model_class: Any, config_class: Any) -> Any:
    """The :class:`UpgradingLoader` of a model's class with an upgraded configuration's class."""
    members = {"__module__": __name__, "model_class": model_class, "config_class": config_class}
    return type(model_class)(_PREFIX + model_class.__name__, (UpgradingLoader, model_class), members)


def _auto_mappings(auto_class: Any) -> Iterator[Any]:
    """From a configuration's class to one or several model classes: what each Auto class goes by."""
    if auto_class._model_mapping is not None:
        yield auto_class._model_mapping
    for subclass in auto_class.__subclasses__():
        yield from _auto_mappings(subclass)


def model_class_of(config: Any) -> Any:
    """The class that saved a model of this configuration, or its loader; ``None``: there is none of that name."""
    config_class: Any = type(config)
    for name in config.architectures or ():
        for mapping in _auto_mappings(_BaseAutoModelClass):
            found = mapping.get(config_class, None)
            for model_class in found if isinstance(found, (list, tuple)) else [found]:
                if model_class is not None and model_class.__name__ == name:
                    return model_class
        model_class = getattr(transformers, name.removeprefix(_PREFIX), None)
        if (
            isinstance(model_class, type)
            and issubclass(model_class, PreTrainedModel)
            and isinstance(config, getattr(model_class, "config_class", None) or ())
        ):
            return loader_class(model_class, config_class) if isinstance(config, UpgradedFields) else model_class
    return None


def _config_of(folder: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration in ``folder``, and the arguments of ``from_pretrained`` that are left for the model."""
    kept = {name: kwargs[name] for name in (*PLACES, *_SHARED) if name in kwargs}
    given = {name: value for name, value in kwargs.items() if name not in _SHARED}
    config, rest = AutoConfig.from_pretrained(folder, return_unused_kwargs=True, trust_remote_code=False, **given)
    if not isinstance(config, UpgradedFields):
        raise LoadError(f"{folder} is no upgraded model: load it with exsel.from_pretrained, or a class of its own")
    return config, {**rest, **kept}


def _new_config(plain_class: Any) -> Any:
    guard()
    upgraded = upgraded_config_class(plain_class)
    return remember(upgraded.__new__(upgraded))


def _divide_with_heads(model: Any) -> None:
    """Where the model's plan for tensor parallelism divides a layer's heads, have it divide its mechanisms too."""
    for name, module in model.named_modules():
        if not isinstance(module, Upgraded):
            continue
        mechanisms: Any = getattr(module, CHILD)
        if are_heads_divided(model._tp_plan, [f"{name}.{projection}" for projection in mechanisms.projections]):
            model._tp_plan.update(heads_plan(mechanisms, f"{name}.{CHILD}"))


def _in_short(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)} modules)"


def _plain_names(names: list[str]) -> list[str]:
    return [name.removeprefix(_PREFIX) for name in names]


def mark(model: nn.Module, name: str | None = None) -> None:
    """Have the configuration of each transformers model in ``model`` say what it is now.

    It gets one of its own, since plain models may have been built with the same.

    Args:
        model: upgraded.
        name: where it can be found; ``None``: nowhere.
    """
    guard()
    for whole in _whole_models(model):
        description = describe(whole)
        if description is None:
            continue
        before = whole.config
        config = copy.copy(before)
        config.__class__ = upgraded_config_class(_plain_class(before))
        remember(config)
        config.exsel = description
        config._name_or_path = f"{before._name_or_path}{UNSAVED}" if name is None else name
        _exchange(whole, before, config)


def unmark(model: nn.Module) -> None:
    """The inverse of :func:`mark`, where nothing is upgraded any more."""
    for whole in _whole_models(model):
        if isinstance(whole.config, UpgradedFields) and describe(whole) is None:
            before = whole.config
            config = _without_fields(before)
            config._name_or_path = config._name_or_path.removesuffix(UNSAVED)
            _exchange(whole, before, config)


def _whole_models(model: nn.Module) -> list[Any]:
    """The transformers models in ``model`` that are in no other."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [whole for child in model.children() for whole in _whole_models(child)]


def _exchange(model: nn.Module, before: Any, config: Any) -> None:
    for module in model.modules():
        for name, value in vars(module).items():
            if value is before:
                vars(module)[name] = config


def _plain_class(config: Any) -> Any:
    return config.plain_class if isinstance(config, UpgradedFields) else type(config)


def _without_fields(config: Any) -> Any:
    """A copy as the plain class."""
    plain: Any = copy.copy(config)
    plain.__class__ = config.plain_class
    del plain.__dict__[_ENTRY]
    if plain.architectures is not None:
        plain.architectures = _plain_names(plain.architectures)
    return plain


@contextmanager
def _described(model: Any) -> Iterator[None]:
    """Within, the configuration of ``model`` says which of its modules are upgraded, and how."""
    description = describe(model)
    config = model.config
    if description is None and not isinstance(config, UpgradedFields):
        yield
        return
    plain_class = _plain_class(config)
    own_code = plain_class.__module__.startswith("transformers_modules.") or model.is_remote_code()
    if description is not None and (own_code or plain_class.model_type not in CONFIG_MAPPING):
        raise UpgradeError(
            f"{type(model).__name__} has code that transformers would not find again from a folder: register it with "
            "the Auto classes, or exsel.downgrade(model) and save what is left"
        )
    before = type(config), config.__dict__.pop(_ENTRY, None)
    config.__class__ = plain_class
    if description is not None:
        config.__class__ = upgraded_config_class(plain_class)
        config.exsel = description
    try:
        yield
    finally:
        config.__class__ = before[0]
        config.__dict__.pop(_ENTRY, None)
        if before[1] is not None:
            config.exsel = before[1]


def _check_base(model: nn.Module, adapters: Mapping[str, Any], names: Iterable[str]) -> None:
    """Before adapters are saved: whether the upgraded model around which they were put can be found.

    Raises:
        UpgradeError: it lies in no folder.
    """
    if not any(isinstance(getattr(module, CHILD), Mechanisms) for module in model.modules() if _is_upgraded(module)):
        return
    for name in names:
        base = adapters[name].base_model_name_or_path or model.__dict__.get("name_or_path")
        if not base or base.endswith(UNSAVED):
            raise UpgradeError(
                f"the adapter {name!r} belongs to a model that was upgraded in memory, which nobody would find again: "
                "save the upgraded model with save_pretrained, load it with exsel.from_pretrained, and put the adapter "
                "around that; or save what merge_and_unload() returns"
            )


def _is_upgraded(module: nn.Module) -> bool:
    return isinstance(module, Upgraded)


def guard() -> None:
    """Have transformers and PEFT save what is upgraded as such, and build nothing plain from what says it is upgraded.

    transformers goes by methods of every model, since any model may have an upgraded part that it knows nothing of.
    PEFT saves no adapter whose base is upgraded and in no folder, once it is imported.
    """
    wrap(PreTrainedModel, __init__=_building, save_pretrained=_saving)
    peft_model = sys.modules.get("peft.peft_model")
    if peft_model is not None and hasattr(peft_model, "PeftModel"):
        wrap(peft_model.PeftModel, save_pretrained=_saving_adapters)


def _building(initialise: Callable[..., None]) -> Callable[..., None]:
    def guarded(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(config, UpgradedFields):
            name = type(self).__name__
            raise LoadError(
                f"{name} by itself would drop the mechanisms of this upgraded configuration: use "
                f"exsel.from_pretrained(folder), or an Auto class; for a plain {name} take {name}'s own configuration"
            )
        initialise(self, config, *args, **kwargs)

    return guarded


def _saving(save: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_hf_peft_config_loaded", False):
            _check_base(self, self.peft_config, self.active_adapters())
            return save(self, *args, **kwargs)  # an adapter alone, without a configuration
        with _described(self):
            return save(self, *args, **kwargs)

    return guarded


def _saving_adapters(save: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        _check_base(self.get_base_model(), self.peft_config, kwargs.get("selected_adapters") or self.peft_config)
        return save(self, save_directory, *args, **kwargs)

    return guarded


guard()
