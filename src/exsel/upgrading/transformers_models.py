"""Upgraded models of transformers: their configuration, saving and loading.

A program without exsel must not load such a model silently without its mechanisms. So ``config.json`` wraps the base
model's configuration under a model type of its own, with further entries for classes that ignore that. With exsel, the
configuration's class is a subclass of the base model's configuration class, under the same name. The Auto classes map
it to a loader, which builds the base model and inserts the mechanisms.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exsel.errors import LoadError, UpgradeError
from exsel.model_folder import ENTRY, MODEL_TYPE, PREFIX, UNSAVED, check_weights, wrapped_config, write_card
from exsel.nn.exclusive import check_strengths
from exsel.nn.mechanisms import Mechanisms
from exsel.tensor_parallel import are_heads_divided, heads_plan
from exsel.upgrading.description import Description, check, describe, restore
from exsel.upgrading.folder_checks import PLACES, check_files, damage
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import Upgraded
from exsel.upgrading.wrapped_methods import Guarded, remember, wrap

#: Arguments that ``AutoConfig.from_pretrained`` would consume, although the model's ``from_pretrained`` needs them.
_SHARED = ("dtype", "torch_dtype", "quantization_config")


class UpgradedFields(Guarded):
    """The base of every upgraded configuration class: its additional fields, and how it is saved."""

    plain_class: ClassVar[type[Any]]
    exsel: Description
    #: trl reads it if transformers has no class of the saved name. It is empty since the folder holds no code.
    auto_map: ClassVar[dict[str, str]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        guard()
        remember(self)
        super().__init__(*args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the plain class; also takes the values of a wrapped ``config.json``."""
        if config_dict.get("model_type") == MODEL_TYPE:
            return read_upgraded_config(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """As the plain class. PEFT calls it when it wraps the model, so PEFT's methods are guarded here."""
        guard()
        values: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """The content of ``config.json``: the plain configuration, wrapped."""
        base = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        del base[ENTRY]
        return json.dumps(wrapped_config(base, self.exsel), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As the plain class, and a model card beside it."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)  # type: ignore[misc]
        self.write_card(Path(save_directory))

    def write_card(self, folder: Path) -> None:
        """Write the model card of a saved model."""
        mechanisms = {}
        for upgrade in self.exsel["upgrades"]:
            names = upgrade["modules"]
            where = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)} modules)"
            for name, values in (("exclusive", upgrade["exclusive"]), ("selective", upgrade["selective"])):
                if values is not None:
                    mechanisms[f"{name} attention in {where}"] = values
        config: Any = self
        model = _plain_names(config.architectures or [config.model_type])[0]
        write_card(folder, model, mechanisms, config._name_or_path.removesuffix(UNSAVED))

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle cannot find its class by name.
        return _new_config, (self.plain_class,), self.__dict__


class UpgradingLoader:
    """Builds a model of the base model's class and inserts the mechanisms: Auto classes call it in that class's place.

    It is a subclass of that class, since ``from_pretrained`` reads that class's attributes.
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
        update_configuration(model, config._name_or_path)
        _divide_with_heads(model)
        return model

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, with the checks and errors of :func:`exsel.from_pretrained`."""
        if kwargs.pop("use_safetensors", True) is False or kwargs.get("gguf_file") is not None:
            raise LoadError("upgraded models are read from safetensors files alone: leave use_safetensors out")
        with_info = kwargs.pop("output_loading_info", False)
        check_files(folder, **kwargs)
        if not isinstance(config, UpgradedFields):
            if isinstance(config, PreTrainedConfig):
                raise LoadError(f"{folder} is an upgraded model, and this configuration is not: leave config out")
            kept = {name: kwargs[name] for name in (*PLACES, *_SHARED) if name in kwargs}
            given = {name: value for name, value in kwargs.items() if name not in _SHARED}
            config, rest = AutoConfig.from_pretrained(
                folder if config is None else config, return_unused_kwargs=True, trust_remote_code=False, **given
            )
            if not isinstance(config, UpgradedFields):
                raise LoadError(f"{folder} is no upgraded model: load it with exsel.from_pretrained, or its own class")
            kwargs = {**rest, **kept}
        model, info = super().from_pretrained(  # type: ignore[misc]
            folder, *args, config=config, use_safetensors=True, output_loading_info=True, **kwargs
        )
        is_part = cls.__name__ not in (getattr(config, "architectures", None) or ())
        check_weights(folder, model, info, may_miss_head=is_part, may_have_other_head=is_part)
        check_strengths(model, folder)
        return (model, info) if with_info else model


def read_upgraded_config(values: dict[str, Any], **kwargs: Any) -> Any:
    """As ``PreTrainedConfig.from_dict`` for the ``config.json`` of an upgraded model; LoadError if it is damaged."""
    description = check(values.get(ENTRY))
    base: Any = dict(description).get("base")
    if not isinstance(base, dict) or not isinstance(base.get("model_type"), str):
        raise LoadError("the configuration's 'exsel' entry has no base model: it is damaged")
    if ENTRY in base:
        raise LoadError("the configuration's 'exsel' entry has an upgraded model for its base: it is damaged")
    if base["model_type"] not in CONFIG_MAPPING or base["model_type"] == MODEL_TYPE:
        raise LoadError(
            f"this upgraded model's base is a {base['model_type']!r}, which transformers does not know here: install "
            "the version that saved it, or import the package that registers it"
        )
    architectures = [PREFIX + name for name in base.get("architectures") or ()]
    config_class = upgraded_config_class(CONFIG_MAPPING[base["model_type"]])
    with damage("the configuration of the upgraded model's base is damaged"):
        return config_class.from_dict({**base, "architectures": architectures or None, ENTRY: description}, **kwargs)


@functools.cache
def upgraded_config_class(plain_class: Any) -> Any:
    """The upgraded subclass of a configuration class, under the same name; registers its loaders with Auto classes."""

    members = {
        "__module__": __name__,
        "__doc__": plain_class.__doc__,
        # Without an __init__ here, transformers would generate one that skips the plain class's validation.
        "__init__": UpgradedFields.__init__,
        "plain_class": plain_class,
    }
    upgraded = type(plain_class)(plain_class.__name__, (UpgradedFields, plain_class), members)
    for _, mapping in auto_mappings(_BaseAutoModelClass):
        if plain_class in mapping:
            loaders = tuple(_loader_class(cls, upgraded) for cls in _as_tuple(mapping[plain_class]))
            is_one = not isinstance(mapping[plain_class], (list, tuple))
            mapping.register(upgraded, loaders[0] if is_one else loaders, exist_ok=True)
    return upgraded


@functools.cache
def _loader_class(model_class: Any, config_class: Any) -> Any:
    """The :class:`UpgradingLoader` for a model class and an upgraded configuration class."""
    members = {"__module__": __name__, "model_class": model_class, "config_class": config_class}
    return type(model_class)(PREFIX + model_class.__name__, (UpgradingLoader, model_class), members)


def auto_mappings(auto_class: Any) -> Iterator[tuple[Any, Any]]:
    """Each Auto class with its mapping from a configuration class to one or several model classes."""
    if auto_class._model_mapping is not None:
        yield auto_class, auto_class._model_mapping
    for subclass in auto_class.__subclasses__():
        yield from auto_mappings(subclass)


def _as_tuple(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def model_class_of(config: Any) -> Any:
    """The class that saved a model of this configuration, or its loader; ``None`` if there is none of that name."""
    config_class: Any = type(config)
    for name in config.architectures or ():
        for _, mapping in auto_mappings(_BaseAutoModelClass):
            for model_class in _as_tuple(mapping.get(config_class, None)):
                if model_class is not None and model_class.__name__ == name:
                    return model_class
        model_class = getattr(transformers, name.removeprefix(PREFIX), None)
        if (
            isinstance(model_class, type)
            and issubclass(model_class, PreTrainedModel)
            and isinstance(config, getattr(model_class, "config_class", None) or ())
        ):
            return _loader_class(model_class, config_class) if isinstance(config, UpgradedFields) else model_class
    return None


def _new_config(plain_class: Any) -> Any:
    guard()
    upgraded = upgraded_config_class(plain_class)
    return remember(upgraded.__new__(upgraded))


def _divide_with_heads(model: Any) -> None:
    """Extend the tensor parallel plan: where it divides a layer's heads, it divides the layer's mechanisms too."""
    for name, module in model.named_modules():
        if isinstance(module, Upgraded):
            mechanisms: Any = getattr(module, CHILD)
            projections = [f"{name}.{projection}" for projection in mechanisms.projections.packings]
            if are_heads_divided(model._tp_plan, projections):
                model._tp_plan.update(heads_plan(mechanisms, f"{name}.{CHILD}"))


def _plain_names(names: list[str]) -> list[str]:
    return [name.removeprefix(PREFIX) for name in names]


def update_configuration(model: nn.Module, name: str | None = None) -> None:
    """Update the configuration of each transformers model in ``model`` to the mechanisms that the model has now.

    A changed configuration is a new object: plain models may have been built with the old one. ``name`` is the upgraded
    model's folder or hub name; ``None``: it is not saved.
    """
    guard()
    for whole in _whole_models(model):
        before, description = whole.config, describe(whole)
        if description == (before.exsel if isinstance(before, UpgradedFields) else None):
            continue
        after = _without_fields(before)
        if description is not None:
            plain_name = after._name_or_path
            after = copy.copy(before)
            after.__class__ = upgraded_config_class(_plain_class(before))
            remember(after)
            after.exsel = description
            after._name_or_path = f"{plain_name}{UNSAVED}" if name is None else name
        for module in whole.modules():
            for attribute, value in vars(module).items():
                if value is before:
                    vars(module)[attribute] = after


def _whole_models(model: nn.Module) -> list[Any]:
    """The outermost transformers models in ``model``."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [whole for child in model.children() for whole in _whole_models(child)]


def _plain_class(config: Any) -> Any:
    return config.plain_class if isinstance(config, UpgradedFields) else type(config)


def _without_fields(config: Any) -> Any:
    """A copy of the plain class, with the plain model's name."""
    plain: Any = copy.copy(config)
    plain.__class__ = _plain_class(config)
    plain.__dict__.pop(ENTRY, None)
    if plain.architectures is not None:
        plain.architectures = _plain_names(plain.architectures)
    plain._name_or_path = plain._name_or_path.removesuffix(UNSAVED)
    return plain


def _check_base(model: nn.Module, adapters: Mapping[str, Any], names: Iterable[str]) -> None:
    """Before adapters are saved, check that the upgraded model that they belong to is in a folder."""
    children = (getattr(module, CHILD) for module in model.modules() if isinstance(module, Upgraded))
    if not any(isinstance(child, Mechanisms) for child in children):
        return
    for name in names:
        base = adapters[name].base_model_name_or_path or model.__dict__.get("name_or_path")
        if not base or base.endswith(UNSAVED):
            raise UpgradeError(
                f"the adapter {name!r} belongs to a model that was upgraded in memory, which nobody would find again: "
                "save the upgraded model with save_pretrained, load it with exsel.from_pretrained, and put the adapter "
                "around that; or save what merge_and_unload() returns"
            )


def guard() -> None:
    """Make transformers and PEFT, once imported, save upgraded models as such, and build no plain ones of them."""
    wrap(PreTrainedModel, __init__=_building, save_pretrained=_saving, _upload_modified_files=_uploading)
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
            return save(self, *args, **kwargs)  # saves the adapter alone, without the model's configuration
        update_configuration(self)
        plain_class = _plain_class(self.config)
        has_own_code = plain_class.__module__.startswith("transformers_modules.") or self.is_remote_code()
        is_known = not has_own_code and plain_class.model_type in CONFIG_MAPPING
        if isinstance(self.config, UpgradedFields) and not is_known:
            raise UpgradeError(
                f"{type(self).__name__} has code that transformers would not find again from a folder: register it "
                "with the Auto classes, or exsel.downgrade(model) and save what is left"
            )
        return save(self, *args, **kwargs)

    return guarded


def _uploading(upload: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.config, UpgradedFields):  # transformers has put its own model card over ours by now
            self.config.write_card(Path(working_dir))
        return upload(self, working_dir, *args, **kwargs)

    return guarded


def _saving_adapters(save: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        _check_base(self.get_base_model(), self.peft_config, kwargs.get("selected_adapters") or self.peft_config)
        return save(self, save_directory, *args, **kwargs)

    return guarded


guard()
