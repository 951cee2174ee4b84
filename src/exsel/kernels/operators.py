"""Turn a kernel into an operator that autograd, ``torch.func``, vmap and compilers can use.

An operator takes and returns tensors whose first dimension is the batch; the kernel behind it reads their memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

_library = torch.library.Library("exsel", "FRAGMENT")


def is_watched() -> bool:
    """Whether a compiler, a transform or a tracer is active. It must see operators, not kernels that read memory."""
    c = torch._C
    return (
        torch.compiler.is_compiling()
        or c._are_functorch_transforms_active()
        or c._len_torch_dispatch_stack() > 0
        or c._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def is_forward_mode() -> bool:
    """Whether forward-mode derivatives are taken (also by ``torch.func.jvp``); our operators do not support them."""
    return forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """Whether a kernel may read a tensor by its pointer and strides: its memory holds its numbers as they are."""
    kind = type(x)
    if (kind is not Tensor and kind is not torch.nn.Parameter) or x.layout is not torch.strided or x.is_nested:
        return False
    return not (x.is_meta or x.is_neg() or x._is_zerotensor())


def is_unseen() -> bool:
    """Whether nothing sees what is computed: no gradients are recorded, and nothing watches."""
    return not (torch.is_grad_enabled() or is_watched())


def reads_cpu(*tensors: Tensor) -> bool:
    """Whether a kernel may read these tensors on the CPU; it may be called as it is where :func:`is_unseen` too."""
    for x in tensors:  # :func:`is_plain` written out, since this runs in every layer at every token
        kind = type(x)
        if (kind is not Tensor and kind is not torch.nn.Parameter) or not x.is_cpu or x.layout is not torch.strided:
            return False
        if x.is_nested or x.is_neg() or x._is_zerotensor():
            return False
    return True


def fold_batch(x: Tensor, trailing: int) -> Tensor:
    """x with all dimensions before the last ``trailing`` as one; there may be none of them, and no elements."""
    if x.ndim == trailing:
        return x.unsqueeze(0)
    return x if x.ndim == trailing + 1 else x.flatten(0, -trailing - 1)


def differentiable(
    name: str,
    kernel: Callable[..., Any],
    empty_results: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    *,
    dispatch_key: str = "CompositeExplicitAutograd",
) -> Callable[..., Any]:
    """Make ``kernel`` the operator ``exsel::name``, with a gradient and a rule for vmap; return the function to call.

    One autograd function serves eager calls, ``torch.func`` and ``torch.compile``. Where nothing is watching, it calls
    the kernel itself: an operator in Python takes longer than a small attention. The operator itself knows no
    gradients, and the dispatcher calls the kernel: what ``torch.library.custom_op`` puts between the two takes as long
    as a small pass.

    Args:
        name: the operator's.
        kernel: returns new tensors, and changes none of its arguments.
        empty_results: what the kernel returns, with any numbers in it.
        backward: as of ``torch.autograd.Function``.
        setup_context: as of ``torch.autograd.Function``.
        dispatch_key: the devices whose tensors the kernel can read, as PyTorch's dispatcher calls them.
    """
    qualified = f"exsel::{name}"
    _library.define(name + torch.library.infer_schema(kernel, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, dispatch_key)
    torch.library.register_fake(qualified, empty_results, lib=_library)
    operator = getattr(torch.ops.exsel, name).default
    torch.library.register_vmap(qualified, functools.partial(_map, operator), lib=_library)

    def run(*args: Any) -> Any:
        is_direct = not is_watched() and all(is_plain(x) for x in args if isinstance(x, Tensor))
        return kernel(*args) if is_direct else operator(*args)

    methods = {"forward": run, "setup_context": setup_context, "backward": backward}
    members: dict[str, Any] = {name: staticmethod(method) for name, method in methods.items()}
    function: type[torch.autograd.Function] = type(
        f"exsel_{name}", (torch.autograd.Function,), {"generate_vmap_rule": True, **members}
    )
    # Function.apply reads forward's signature at every call, which takes longer than a small kernel; without transforms
    # nothing needs it.
    apply_directly = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def apply(*args: Any) -> Any:
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and is_forward_mode() and any(map(_has_tangent, args)):
            raise NotImplementedError(f"{qualified} has no forward-mode derivative: use backend='reference'")
        if torch._C._are_functorch_transforms_active():
            return function.apply(*args) if torch.is_grad_enabled() else run(*args)
        if is_compiling:  # dynamo fails on a function of which nothing is differentiated (torch 2.13)
            is_differentiated = torch.is_grad_enabled() and any(_requires_grad(x) for x in args)
            return function.apply(*_all_distinct(args)) if is_differentiated else run(*args)
        args = unwrap_dead_wrappers(args)  # a graph that torch.func made may outlive its transform
        return apply_directly(*args) if torch.is_grad_enabled() else run(*args)

    return apply


def _all_distinct(args: tuple[Any, ...]) -> list[Any]:
    """A view wherever a tensor comes again, as where keys are values: dynamo refuses one tensor twice (torch 2.13)."""
    return [
        x.view_as(x) if isinstance(x, Tensor) and any(x is other for other in args[:index]) else x
        for index, x in enumerate(args)
    ]


def _requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def without_gradient(
    name: str,
    kernel: Callable[..., Any],
    empty_results: Callable[..., Any],
    remedy: str,
    *,
    dispatch_key: str = "CompositeExplicitAutograd",
) -> Callable[..., Any]:
    """:func:`differentiable` without a gradient, for calls in which gradients may be recorded."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"exsel::{name} has no derivative: {remedy}")

    return differentiable(
        name, kernel, empty_results, refuse, lambda ctx, inputs, output: None, dispatch_key=dispatch_key
    )


def _map(operator: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Under vmap the mapped dimension joins the batch."""

    def fold(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        mapped = argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return mapped.flatten(0, 1)

    def unfold(result: Tensor) -> Tensor:
        unfolded: Tensor = result.unflatten(0, (info.batch_size, -1))
        return unfolded

    results = operator(*(fold(argument, dim) for argument, dim in zip(args, in_dims, strict=True)))
    if isinstance(results, Tensor):
        return unfold(results), 0
    return tuple(unfold(result) for result in results), (0,) * len(results)
