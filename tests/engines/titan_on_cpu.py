"""torchtitan 0.3 on the CPU, where it does not run by itself: import this before it.

It takes a machine without an accelerator for one with CUDA; FlexAttention refuses a backward pass on the CPU, which its
uncompiled form computes; the memory monitor asks for statistics that the CPU does not keep.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch._utils
from torch.nn.attention import flex_attention

torch._utils._get_available_device_type = lambda: "cpu"
flex_attention._validate_device = lambda *states: None

from torchtitan.components import metrics  # noqa: E402
from torchtitan.models.common import attention  # noqa: E402

attention.FlexAttention._compiled_flex_attn = staticmethod(flex_attention.flex_attention)
attention._compiled_create_block_mask = flex_attention.create_block_mask
_NOTHING = metrics.DeviceMemStats(0, 0, 0, 0, 0, 0)
metrics.build_device_memory_monitor = lambda: SimpleNamespace(
    device_name="cpu", get_peak_stats=lambda: _NOTHING, reset_peak_stats=lambda: None
)
