"""The adapters of one attention layer. Its rewritten forward pass begins with them."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.layer_pass import LayerPass
from exsel.nn.mechanisms import Mechanisms


class AdapterLayer(nn.Module, BaseTunerLayer):
    """The mechanisms of one attention layer by adapter name, in the place of an upgraded layer's own.

    It does not wrap the projections, so LoRA may wrap them before or after.
    """

    adapter_layer_names = ("adapters",)
    # Other code reads these from layers that wrap a module. This layer wraps none.
    weight = None
    bias = None

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []

    def begin(self, **call: Any) -> LayerPass:
        """Begin a forward pass with the active adapter, or as the original layer; see :meth:`Mechanisms.begin`."""
        active: Any = () if self.disable_adapters else self.active_adapters
        for name in active:
            if name in self.adapters:
                mechanisms = self.adapters[name]
                assert isinstance(mechanisms, Mechanisms)
                return mechanisms.begin(**call)
        return LayerPass()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter of this layer the active one. The names may include adapters of other methods."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        own = [name for name in names if name in self.adapters]
        if len(own) > 1:
            raise UpgradeError(
                f"the adapters {own[0]!r} and {own[1]!r} cannot both be active: a layer has one temperature"
            )
        super().set_adapter(names, inference_mode=inference_mode)
