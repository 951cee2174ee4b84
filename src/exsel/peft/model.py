"""PEFT's tuner for the mechanisms: puts adapters into a model, and takes them out."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from peft import LoraModel, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from exsel.errors import LoadError, UpgradeError
from exsel.peft.adapter_config import AdapterConfig
from exsel.peft.layer import AdapterLayer
from exsel.upgrading.placing import build_mechanisms, choose_layers
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgrade_model import upgrade
from exsel.upgrading.upgraded_class import Upgraded, insert, remove

# PEFT finds an adapter's parameters by its name in theirs. These words are part of every such parameter's name.
_TAKEN = frozenset({"adapters", "temperatures", "query", "key", "value", "exclusive", "feature_proj", CHILD})


class MechanismsModel(BaseTuner):
    """A model whose layers, as a configuration of :mod:`exsel.peft` selects them, have an :class:`AdapterLayer`.

    Raises:
        UpgradeError: a model that has no self-attention, a layer that cannot have the mechanism, a model that is
            upgraded or wrapped by PEFT already. The model is then unchanged.
    """

    prefix = f"{CHILD}."
    tuner_layer_cls = AdapterLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    _lora: LoraModel | None = None

    model: nn.Module

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **options: Any) -> None:
        _check_adaptable(model, adapter_name)
        if isinstance(peft_config, AdapterConfig) and peft_config.lora is not None:
            # transformers' own loading takes only parameters with this method's prefix, so LoRA's would be missing.
            raise UpgradeError(
                "transformers' own adapters cannot have lora= inside: load it with AutoPeftModelForCausalLM or "
                "PeftModel.from_pretrained, or add the LoRA as an adapter of its own"
            )
        super().__init__(model, peft_config, adapter_name, **options)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the adapter ``adapter_name`` of ``peft_config`` into ``model``, or raise and leave it unchanged."""
        _check_adaptable(model, adapter_name)
        config: AdapterConfig = self.peft_config[adapter_name]
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        try:
            self._steps = {step[0].name: step for step in choose_layers(model, *config.mechanisms())}
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if config.lora is not None:
                self._inject_lora(model, adapter_name, bool(kwargs.get("low_cpu_mem_usage")))
        except Exception:
            self.withdraw(adapter_name)
            raise

    def _check_target_module_exists(self, peft_config: AdapterConfig, key: str) -> bool:
        return key in self._steps

    def _prepare_adapter_config(self, peft_config: AdapterConfig, model_config: dict[str, Any]) -> AdapterConfig:
        return peft_config

    def _create_and_replace(
        self, peft_config: AdapterConfig, adapter_name: str, target: nn.Module, *_: Any, current_key: str
    ) -> None:
        step = self._steps[current_key]
        if not isinstance(target, Upgraded):
            insert(target, step[0].projections, AdapterLayer())
        mechanisms = build_mechanisms(target, *step).requires_grad_(adapter_name in self.active_adapters)
        layer: Any = target.get_submodule(CHILD)
        layer.adapters[adapter_name] = mechanisms

    def _inject_lora(self, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool) -> None:
        config: AdapterConfig = self.peft_config[adapter_name]
        assert config.lora is not None
        config.lora.inference_mode = config.inference_mode
        if self._lora is not None:
            self._lora.peft_config[adapter_name] = config.lora
            self._lora.inject_adapter(model, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
            return
        # A tuner adds its configuration to ``model.peft_config`` and leaves it there. What was there is put back below.
        found = model.__dict__.pop("peft_config", None)
        try:
            tuner = LoraModel(model, {adapter_name: config.lora}, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        finally:
            model.__dict__.pop("peft_config", None)
            if found is not None:
                model.peft_config = found
        object.__setattr__(self, "_lora", tuner)  # not a child: it holds the same model
        if adapter_name not in self.active_adapters:
            tuner.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make ``adapter_name`` the active one, with its LoRA."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        if self._lora is not None:
            self._lora.set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete ``adapter_name`` and its LoRA. If it was active, another one becomes so, the same in every layer."""
        was_active = adapter_name in self.active_adapters
        if self._lora is not None and adapter_name in self._lora.peft_config:
            self._lora.delete_adapter(adapter_name)
        super().delete_adapter(adapter_name)
        if was_active:
            self.set_adapter(self.active_adapters)

    def withdraw(self, adapter_name: str) -> None:
        """Undo the last injection, of ``adapter_name``: the model is as it was before."""
        if len(self.peft_config) > 1:
            self.delete_adapter(adapter_name)
            for module in list(self.model.modules()):
                child = getattr(module, CHILD, None)
                if isinstance(child, AdapterLayer) and not child.adapters:
                    remove(module)
        else:
            self.unload()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Always raise UpgradeError: temperatures are not linear maps, and cannot be merged into weights."""
        raise UpgradeError(
            "a temperature cannot be merged into the weights of a projection: merge_and_unload() returns the model "
            "with the mechanisms in it, as exsel.upgrade makes it"
        )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """The original model; or, with ``merge``, upgraded with one adapter's mechanisms, its LoRA in the weights."""
        names = self.active_adapters if adapter_names is None else adapter_names
        if merge and len(names) != 1:
            raise UpgradeError(f"one adapter can be merged, got {names}: name it in adapter_names=[…]")
        kept = {
            name: module.adapters[names[0]]
            for name, module in self.model.named_modules()
            if merge and isinstance(module, AdapterLayer) and names[0] in module.adapters
        }
        base: Any = super() if self._lora is None else self._lora
        base._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        for module in list(self.model.modules()):
            if isinstance(module, Upgraded):
                remove(module)
        if merge:
            exclusive, selective = self.peft_config[names[0]].mechanisms()
            upgrade(self.model, exclusive=exclusive, selective=selective)
            for name, mechanisms in kept.items():
                self.model.set_submodule(name, mechanisms)
        return self.model

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        if kwargs.get("adapter_names") is not None:
            raise UpgradeError(
                "adapter_names=… would mix adapters in a batch: the mechanisms of a layer are one a batch"
            )
        if self._lora is None:
            return nullcontext()
        hooks: AbstractContextManager[None] = self._lora._enable_peft_forward_hooks(*args, **kwargs)
        return hooks

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: AdapterConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        select = super()._get_adapter_state_dict if config.lora is None else LoraModel._get_adapter_state_dict
        lora = config.lora or config
        selected: dict[str, Tensor] = select(model, lora, adapter_name, state_dict, unwanted_adapter_names)
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: AdapterConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors to load, by their names in ``model``: checked to be all of the adapter's, and nothing else."""
        if config.lora is not None:
            state_dict = LoraModel._remap_adapter_state_dict_for_load(model, config.lora, adapter_name, state_dict)
        found: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        there = model.state_dict()
        own = super()._get_adapter_state_dict(model, config, adapter_name, there, [])
        fault = _fault(found, there, {name for name in own if f".{adapter_name}." in f"{name}."})
        if fault:
            if config.awaits_weights and isinstance(tuner := getattr(model, "base_model", None), cls):
                tuner.withdraw(adapter_name)
            raise LoadError(f"these are not the weights of this adapter in this model: {fault}")
        config.awaits_weights = False
        return {name: tensor.to(_device(model, name)) for name, tensor in found.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        own = f".{CHILD}.adapters."
        if own in key:
            return key.replace(f"{own}{adapter_name}.", own)
        without: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return without


def _check_adaptable(model: nn.Module, adapter_name: str) -> None:
    if adapter_name in _TAKEN:
        raise UpgradeError(f"an adapter cannot be called {adapter_name!r}: its parameters have parts of that name")
    for module in model.modules():
        if isinstance(module, PeftModel):
            raise UpgradeError(
                "the model is a PeftModel already: give LoRA that is to be trained with the mechanisms as lora=…, or "
                "take the model that merge_and_unload() returns"
            )
        if isinstance(module, Upgraded) and not isinstance(getattr(module, CHILD), AdapterLayer):
            raise UpgradeError("the model is upgraded already: exsel.downgrade(model) it, the adapter brings its own")
        if isinstance(module, BaseTunerLayer) and adapter_name in module._get_available_adapters():
            raise UpgradeError(f"the model has an adapter {adapter_name!r} already: give this one another adapter_name")


def _fault(found: Mapping[str, Tensor], there: Mapping[str, Tensor], expected: Set[str]) -> str:
    """What is wrong with the tensors ``found``; empty if nothing is."""
    for name in sorted(expected - found.keys()):
        return f"{name} is missing"
    for name, tensor in found.items():
        if name not in there:
            return f"{name} belongs to nothing here"
        if name in expected and tensor.shape != there[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)}, here it has {tuple(there[name].shape)}"
    return ""


def _device(model: nn.Module, name: str) -> torch.device | None:
    """The device of the attention layer of an adapter's parameter, which may itself be on the meta device."""
    layer, is_own, _ = name.rpartition(f".{CHILD}.adapters.")
    if not is_own:
        return None
    devices = (parameter.device for parameter in model.get_submodule(layer).parameters())
    return next((device for device in devices if device.type != "meta"), None)
