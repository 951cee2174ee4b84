"""Random weights for the zoo under which no part of a model is trivial, so that a misplaced operation shows."""

import math

import torch
from torch import nn

# Vectors of state-space layers have meanings (decay rates, step sizes), and those of normalised transformers are
# multiplied by large constants: they keep their start values.
_OWN_START = (
    *("A_log", "dt_bias", "time_decay", "time_first", "inv_freq", "a_param", "recurrent_param"),
    *("sqk", "s_gate"),
)


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every floating-point parameter again, in the order of their names.

    Matrices get N(0, 1/fan_in), embeddings N(0, 1); vectors that start at a constant 1 (norms, scales) are spread
    around it by 0.3, those that start at 0 (biases, zero-centred norms, sinks) and tiny layer scales get N(0, 0.3²).

    Args:
        model: any model on the CPU; changed in place
        generator: where the numbers come from
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.is_floating_point() or parameter.numel() == 0 or name.endswith(_OWN_START):
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)
        if id(parameter) in embeddings:
            parameter.copy_(noise)
        elif parameter.dim() >= 2:
            parameter.copy_(noise / math.sqrt(_fan_in(parameter)))
        elif parameter.min() == parameter.max() and parameter.abs().max() < 0.5:
            parameter.copy_(0.3 * noise)
        elif parameter.min() == parameter.max():
            parameter.mul_(1 + 0.3 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)


def _fan_in(parameter: torch.Tensor) -> int:
    """How many terms an output of this weight sums; stacked experts [E, a, b] count their larger side."""
    if parameter.dim() == 3 and min(parameter.shape[1:]) > 16:
        return max(parameter.shape[1:])
    return max(1, parameter[0].numel())
