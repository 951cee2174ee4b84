"""torchtitan 0.3 on the CPU, where it does not run by itself: import this before it, or run it as ``torchtitan.train``.

It takes a machine without an accelerator for one with CUDA; FlexAttention refuses a backward pass on the CPU, which its
uncompiled form computes; the memory monitor asks for statistics that the CPU does not keep; gloo has no barrier of
devices, and no sum that multiplies first.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch._utils
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import flex_attention

torch._utils._get_available_device_type = lambda: "cpu"
flex_attention._validate_device = lambda *states: None

from torchtitan.components import metrics  # noqa: E402
from torchtitan.distributed import fsdp, utils  # noqa: E402
from torchtitan.models.common import attention  # noqa: E402

attention.FlexAttention._compiled_flex_attn = staticmethod(flex_attention.flex_attention)
attention._compiled_create_block_mask = flex_attention.create_block_mask
_NOTHING = metrics.DeviceMemStats(0, 0, 0, 0, 0, 0)
metrics.build_device_memory_monitor = lambda: SimpleNamespace(
    device_name="cpu", get_peak_stats=lambda: _NOTHING, reset_peak_stats=lambda: None
)
utils.set_pg_timeouts = lambda timeout, parallel_dims: None


def plain_sums(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


fsdp.disable_fsdp_gradient_division = plain_sums

if __name__ == "__main__":
    from torchtitan.train import main

    main()
