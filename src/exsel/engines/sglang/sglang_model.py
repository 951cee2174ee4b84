"""SGLang's way to run models of transformers, with the layers that have the mechanisms.

SGLang builds the model as transformers does, so that its attention layers are exsel's: they scale queries and values,
call SGLang's attention function, whose cache keeps the scaled values, and project its output. The values that this
function is given are the current tokens' own, however a prompt is cut into chunks, and whichever sequences share a
batch. Positions come from SGLang too, so that each token counts in its own sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exsel.engines.serving import allocate
from exsel.nn.exclusive import check_strengths
from exsel.tensor_parallel import STYLE
from exsel.version import __version__

try:
    from sglang.srt.models.transformers import TransformersForCausalLM
    from sglang.srt.runtime_context import get_parallel
except ImportError as error:
    raise ImportError(f"exsel {__version__} serves with SGLang 0.5.23: {error}") from error


class SGLangForCausalLM(TransformersForCausalLM):
    """A model of exsel's own or an upgraded one.

    Raises:
        ValueError: more processes than key/value heads.
    """

    def _normalize_tp_plan(self, tp_plan: Mapping[str, str]) -> dict[str, Any]:
        """Without the style of the mechanisms' weights, which :meth:`_init_parameters` divides."""
        plan = {name: style for name, style in tp_plan.items() if style != STYLE}
        normalized: dict[str, Any] = super()._normalize_tp_plan(plan)
        return normalized

    def _init_parameters(self, module: nn.Module) -> None:
        """Allocate the weights: the mechanisms' in float32, each process those of its heads."""
        device = next(weight.device for weight in module.parameters() if not weight.is_meta)
        allocate(module, get_parallel().tp_size, device, _load_own_heads)
        for child in module.modules():
            for name, weight in list(child.named_parameters(recurse=False)):
                if weight.is_meta:
                    setattr(child, name, nn.Parameter(torch.empty_like(weight, device=device), requires_grad=False))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load what the folder holds.

        Raises:
            LoadError: the weights are of another strength than the configuration says.
        """
        loaded: set[str] = super().load_weights(weights)
        check_strengths(self.model, self.config.name_or_path)
        return loaded


def _load_own_heads(parameter: Tensor, whole: Tensor) -> None:
    size = parameter.shape[0]
    parameter.data.copy_(whole.narrow(0, get_parallel().tp_rank * size, size))
