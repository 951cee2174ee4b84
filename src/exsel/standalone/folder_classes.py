"""The parts of an upgraded model that loads by its folder's own code: configuration, model, attention layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.model_folder import ENTRY, MODEL_TYPE, check_weights, wrapped_config
from exsel.nn.exclusive import check_strengths
from exsel.nn.mechanisms import Mechanisms

#: An upgraded attention class, the index in the cache of each layer of that class by its name, and the arguments of
#: :class:`exsel.nn.mechanisms.Mechanisms` that these have in common.
LayersOfOneKind = tuple[type[Any], dict[str, int | None], dict[str, Any]]


class FolderConfig:
    """A plain model's configuration, which ``config.json`` wraps together with the mechanisms."""

    @classmethod
    def get_config_dict(cls, folder: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of a ``config.json``, unwrapped."""
        values, rest = super().get_config_dict(folder, **kwargs)  # type: ignore[misc]
        if values.get("model_type") == MODEL_TYPE:
            base = {**values[ENTRY]["base"], "architectures": values["architectures"], "auto_map": values["auto_map"]}
            values = {**base, ENTRY: {name: value for name, value in values[ENTRY].items() if name != "base"}}
        return values, rest

    def to_json_string(self, use_diff: bool = True) -> str:
        """What ``config.json`` holds."""
        base = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        description, auto_map = base.pop(ENTRY), base.pop("auto_map", None)
        return json.dumps(wrapped_config(base, description, auto_map), indent=2, sort_keys=True) + "\n"


class FolderModel:
    """A plain model with the mechanisms in its attention layers."""

    layers: ClassVar[Sequence[LayersOfOneKind]]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model: Any = self
        upgrades = {name: upgrade for upgrade in config.exsel["upgrades"] for name in upgrade["modules"]}
        for layer_class, indices, arguments in self.layers:
            for name, index in indices.items():
                upgrade = upgrades[name.removeprefix(f"{model.base_model_prefix}.")]
                layer = model.get_submodule(name)
                layer.exsel = Mechanisms(
                    exclusive=ExclusiveConfig.read(upgrade["exclusive"]),
                    selective=SelectiveConfig.read(upgrade["selective"]),
                    layer_index=index,
                    **arguments,
                )
                layer.__class__ = layer_class

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``; a LoadError if weights are missing, too many, of other strengths."""
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        check_weights(folder, model, info, may_miss_head=False, may_have_other_head=False)
        check_strengths(model, folder)
        return (model, info) if with_info else model


class FolderLayer:
    """An attention layer with mechanisms."""

    exsel: Mechanisms

    def _exsel_begin(self, **call: Any) -> Any:
        """Begin a pass: the first statement of the forward pass."""
        return self.exsel.begin(**call)
