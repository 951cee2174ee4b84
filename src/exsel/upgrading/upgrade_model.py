"""Put the mechanisms into a model, and take them out again."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from torch import nn

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig
from exsel.errors import UpgradeError
from exsel.model_folder import UNSAVED
from exsel.nn.mechanisms import Mechanisms
from exsel.upgrading import diffusers_processors, upgraded_class, wrapped_methods
from exsel.upgrading.placing import choose_layers, insert_all
from exsel.upgrading.rewriting import CHILD, READ
from exsel.upgrading.upgraded_class import Upgraded

Model = TypeVar("Model", bound=nn.Module)


def upgrade(
    model: Model,
    *,
    exclusive: ExclusiveArgument = None,
    selective: SelectiveArgument = None,
) -> Model:
    """Put either or both mechanisms into an existing model, in place.

    Args:
        model: a transformers, timm or diffusers model, or any module with attention layers of a known kind:
            PyTorch's own, and classes that call ``scaled_dot_product_attention``. See :func:`exsel.support`.
        exclusive: ``True``, a strength, or an :class:`exsel.ExclusiveConfig`; see :meth:`exsel.ExclusiveConfig.read`.
        selective: ``True`` or an :class:`exsel.SelectiveConfig`; see :meth:`exsel.SelectiveConfig.read`. It starts with
            the outputs of the original: exactly without a positional term, nearly with one.

    ``layers`` of either configuration counts the self-attention layers in the model's order, encoder before decoder,
    as :func:`exsel.support` numbers them. Cross-attention is left alone.

    Returns:
        ``model``. It trains, compiles, caches, generates and saves as before; :func:`exsel.from_pretrained` loads what
        its ``save_pretrained`` saves, and :func:`exsel.downgrade` takes everything out again.

    Raises:
        UpgradeError: no mechanism was asked for, the model has no attention, a layer cannot be upgraded (the message
            says why), ``layers`` exceeds the model, or the model is upgraded already. The model is then unchanged.
        ExselError: a dictionary that is not a valid configuration.
        TypeError: ``exclusive`` or ``selective`` is of another type.

    Source: Zhai, arXiv:2603.09078 (2026); Zhang et al., NeurIPS 2024, arXiv:2411.12892, who also fine-tune existing
    models. :mod:`exsel.nn.mechanisms` says where each mechanism enters a layer.
    """
    if any(isinstance(module, Upgraded) for module in model.modules()):
        raise UpgradeError(f"this {type(model).__name__} is upgraded already: exsel.downgrade(model) it first")
    insert_all(model, choose_layers(model, ExclusiveConfig.read(exclusive), SelectiveConfig.read(selective)))
    for module in model.modules():
        if isinstance(path := module.__dict__.get("name_or_path"), str):
            # Under this name transformers finds the plain model. PEFT would load it in place of the upgraded one.
            module.__dict__["name_or_path"] = path + UNSAVED
    diffusers_processors.guard_saving()
    if "transformers.modeling_utils" in sys.modules:
        from exsel.upgrading import transformers_models

        # Every transformers model in it now has a configuration that names the mechanisms, and is saved with it.
        transformers_models.update_configuration(model)
    return model


def downgrade(model: Model) -> Model:
    """Remove the mechanisms from ``model``, in place: modules and classes are the original's, other weights stay.

    Raises:
        UpgradeError: the mechanisms belong to a PEFT adapter, or the class or ``forward`` of an upgraded module was
            replaced since the upgrade. accelerate's hooks are accepted.
    """
    upgraded: list[Any] = [module for module in model.modules() if isinstance(module, Upgraded)]
    if not all(isinstance(module._modules[CHILD], Mechanisms) for module in upgraded):
        raise UpgradeError(f"this {type(model).__name__} has its mechanisms from a PEFT adapter: call its unload()")
    if any(READ not in vars(type(module)) for module in upgraded):
        raise UpgradeError(f"the upgraded modules of this {type(model).__name__} were given another class: undo that")
    if any(upgraded_class.class_refusal(module) for module in upgraded):
        raise UpgradeError("the forward of an upgraded module was replaced on the instance: take that back first")
    for module in upgraded:
        upgraded_class.remove(module)
    for module in model.modules():
        if isinstance(path := module.__dict__.get("name_or_path"), str):
            module.__dict__["name_or_path"] = path.removesuffix(UNSAVED)
    if "exsel.upgrading.transformers_models" in sys.modules:
        sys.modules["exsel.upgrading.transformers_models"].update_configuration(model)
    wrapped_methods.release()
    return model
