"""A whole training step: forward, backward, clipping, optimiser, as ``exsel train`` does it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exsel.bench.block import GROUPS, check_compiler
from exsel.bench.cases import Case
from exsel.bench.measuring import Contender
from exsel.bench.timing import Work
from exsel.bench.variants import VARIANTS, VOCABULARY, build
from exsel.models import ExselForCausalLM
from exsel.variants import BASELINE

#: The size and its tokens and sequences a step, where nothing else is said.
DEFAULTS = {"cpu": ("tiny", 512, 8), "cuda": ("1.4b", 2048, 4)}

#: Bytes a parameter: the weight, its gradient and the optimiser's two moments in float32, and room for activations.
BYTES_PER_PARAMETER = 24


class _Weights:
    """The first model's parameters and their optimiser's state, which all others share: one fits, five may not."""

    def __init__(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizers: list[torch.optim.Optimizer] = []

    def share(self, model: ExselForCausalLM) -> None:
        """Put the shared parameters into the model; those that it alone has stay its own."""
        for name, parameter in list(model.named_parameters()):
            shared = self._parameters.setdefault(name, parameter)
            if shared.shape == parameter.shape and shared is not parameter:
                module_name, _, own_name = name.rpartition(".")
                setattr(model.get_submodule(module_name), own_name, shared)
        model.tie_weights()  # the output layer still had the token embedding that was its own

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """One that updates the model's parameters, with the shared state."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for other in self._optimizers:
            for parameter in model.parameters():
                if parameter in other.state:
                    optimizer.state[parameter] = other.state[parameter]
        self._optimizers.append(optimizer)
        return optimizer


def contenders(case: Case) -> list[Contender]:
    """The variants in each way, the baseline in front; float32 weights, and autocast where the dtype is lower."""
    ids = torch.randint(3, VOCABULARY, (case.batch, case.tokens), device=case.device)
    weights = _Weights()

    def work(variant: str, group: str) -> Work:
        model = build(variant, case.shape.name).to(case.device)
        weights.share(model)
        if group == "compiled":
            check_compiler()
            for layer in model.model.layers:
                layer.compile(dynamic=False)
        optimizer = weights.optimizer(model)

        def step() -> Tensor:
            with torch.autocast(case.device.type, case.dtype, enabled=case.dtype != torch.float32):
                loss: Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return Work(forward=step, name="step")

    return [
        Contender(name=variant, group=group, floor=(group, BASELINE), prepare=lambda v=variant, g=group: work(v, g))  # type: ignore[misc]
        for group in GROUPS
        for variant in VARIANTS
    ]
