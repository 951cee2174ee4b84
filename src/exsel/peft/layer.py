"""An attention layer's adapters: what the layer's rewritten forward pass begins with."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.layer_pass import LayerPass
from exsel.nn.mechanisms import Mechanisms


class AdapterLayer(nn.Module, BaseTunerLayer):
    """The mechanisms of one attention layer, by adapter, where an upgraded layer has its own.

    It is beside the projections, not around them. So LoRA may wrap these before or after.
    """

    adapter_layer_names = ("adapters",)
    # Others read these of a layer that PEFT wraps: there is none here.
    weight = None
    bias = None

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []

    def begin(self, **call: Any) -> LayerPass:
        """One forward pass with the active adapter, or with none as the layer was; see :meth:`Mechanisms.begin`."""
        active: Any = () if self.disable_adapters else self.active_adapters
        for name in active:
            if name in self.adapters:
                mechanisms = self.adapters[name]
                assert isinstance(mechanisms, Mechanisms)
                return mechanisms.begin(**call)
        return LayerPass()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make an adapter the active one; those of other methods may be named too.

        Raises:
            UpgradeError: two adapters of this layer.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        own = [name for name in names if name in self.adapters]
        if len(own) > 1:
            raise UpgradeError(
                f"the adapters {own[0]!r} and {own[1]!r} cannot both be active: a layer has one temperature"
            )
        super().set_adapter(names, inference_mode=inference_mode)
