"""What every operator of ours needs beside its kernel, so that autograd, ``torch.func`` and vmap compose with it.

An operator takes and returns tensors whose first dimension is the batch; the kernel behind it sees plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad


def is_watched() -> bool:
    """Whether something is at work that must see operators and not what they do to memory."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or is_forward_mode()
    )


def is_forward_mode() -> bool:
    """Whether derivatives are taken forward (``torch.func.jvp`` too), which our operators do not do."""
    return forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is what lies in its memory, by its strides, and nothing more: it may be read by its pointer."""
    is_itself = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided and not x.is_nested
    return is_itself and x.device.type != "meta" and not (x.is_neg() or x._is_zerotensor())


def fold_batch(x: Tensor, trailing: int) -> Tensor:
    """x with all dimensions before the last ``trailing`` as one, also where there are none, or no elements."""
    if x.ndim == trailing:
        return x.unsqueeze(0)
    return x if x.ndim == trailing + 1 else x.flatten(0, -trailing - 1)


def register_vmap(op: CustomOpDef) -> None:
    """Under vmap the mapped dimension joins the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def fold(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            mapped = argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            return mapped.flatten(0, 1)

        def unfold(result: Tensor) -> Tensor:
            unfolded: Tensor = result.unflatten(0, (info.batch_size, -1))
            return unfolded

        results = op(*(fold(argument, dim) for argument, dim in zip(args, in_dims, strict=True)))
        if isinstance(results, Tensor):
            return unfold(results), 0
        return tuple(unfold(result) for result in results), (0,) * len(results)

    op.register_vmap(rule)


def refuse_vmap(op: CustomOpDef, remedy: str) -> None:
    """An error that says what to do where an operator cannot be mapped."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        raise NotImplementedError(f"{op._qualname} cannot be mapped by vmap: {remedy}")

    op.register_vmap(rule)


def differentiable(
    op: CustomOpDef,
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
) -> Callable[..., Any]:
    """Give ``op`` its gradient; return the function to call instead of ``op``.

    The operator's own registration serves ``torch.ops``, ``torch.compile`` and tensors that are more than tensors.
    ``torch.func`` does not go through it, and needs the same functions as an autograd function around the operator.
    Anything else reaches the kernel directly: an operator in Python takes longer than a small attention.
    """
    op.register_autograd(backward, setup_context=setup_context)
    overload, kernel = op._opoverload, op._init_fn
    name = op._qualname.replace("::", "_")

    def run_and_save(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup_context(ctx, args, output)
        return output

    direct = _autograd_function(name, forward=run_and_save, backward=backward)
    transformed = _autograd_function(
        name, forward=lambda *args: op(*args), setup_context=setup_context, backward=backward
    )

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*args)
        if torch._C._are_functorch_transforms_active():
            return transformed.apply(*args)
        tensors = [x for x in args if isinstance(x, Tensor)]
        if is_forward_mode() and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
            raise NotImplementedError(f"{op._qualname} has no forward-mode derivative: use backend='reference'")
        if is_watched() or not all(map(is_plain, tensors)):
            return overload(*args)
        if torch.is_grad_enabled():
            return direct.apply(*args)
        return kernel(*args)

    return apply


def _autograd_function(name: str, **methods: Callable[..., Any]) -> type[torch.autograd.Function]:
    members = {method: staticmethod(function) for method, function in methods.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": "setup_context" in methods, **members})


def without_gradient(op: CustomOpDef, remedy: str) -> Callable[..., Any]:
    """An operator that has no gradient of its own, as the function to call: it may run while gradients are recorded."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{op._qualname} has no derivative: {remedy}")

    return differentiable(op, refuse, lambda ctx, inputs, output: None)
