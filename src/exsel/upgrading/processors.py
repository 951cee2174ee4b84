"""diffusers' attention layers, whose forward pass lies in an object beside them: their *processor*.

The layer's ``forward`` calls ``self.processor(self, hidden_states, …)``. In an upgraded layer the processor's
``__call__`` runs with calls to an insertion in it, looked up by the processor's class at each call: one that is set
later keeps the mechanisms, or is refused when it is called.
"""

from __future__ import annotations

import ast
import copy
import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from exsel.nn.packing import Geometry
from exsel.upgrading.layouts import Layout
from exsel.upgrading.rewriting import (
    CHILD,
    INSERTION,
    RewritingError,
    compiled,
    is_sdpa,
    method_of,
    self_attribute,
    syntax_tree,
)

LAYOUT = Layout({"to_q": "query", "to_k": "key", "to_v": "value"})

#: Processors that attend from text and image together to text and image together, each token with its own value:
#: their ``encoder_hidden_states`` are tokens of the layer's, not a context.
JOINT = frozenset(
    {
        "AuraFlowAttnProcessor2_0",
        "CogVideoXAttnProcessor2_0",
        "FluxAttnProcessor",
        "JointAttnProcessor2_0",
    }
)

_DISPATCH = "dispatch_attention_fn"
_CONTEXT = "encoder_hidden_states"


@functools.cache
def has_processor(cls: type) -> bool:
    """Whether ``cls`` is an attention class of diffusers that hands its forward pass to a processor."""
    if not cls.__module__.startswith("diffusers."):
        return False
    try:
        rewritten(cls, "forward")
    except RewritingError:
        return False
    return True


def is_across(module: nn.Module) -> bool:
    """Whether the layer attends to a context."""
    return getattr(module, "is_cross_attention", False) is True


def geometry(module: nn.Module) -> Geometry | None:
    """The heads of the layer."""
    sizes: list[Any] = [getattr(getattr(module, name, None), "out_features", None) for name in LAYOUT.projections]
    heads = getattr(module, "heads", None)
    if not isinstance(heads, int) or not all(isinstance(size, int) for size in sizes) or sizes[0] % heads:
        return None
    head_dim = sizes[0] // heads
    return Geometry(heads, sizes[1] // head_dim, head_dim) if sizes[1] == sizes[2] else None


def refusals(module: nn.Module, cls: type) -> tuple[str, str]:
    """Why ``module`` cannot be exclusive, and why not selective; each empty where it can be."""
    processor: Any = module.processor
    name = type(processor).__name__
    try:
        sites = _Sites.of(type(processor))
        through(processor)
    except RewritingError as error:
        return f"its processor {error}", f"its processor {error}"
    has_added = getattr(module, "add_k_proj", None) is not None
    if has_added and name not in JOINT:
        reason = f"{name} adds keys and values of other tokens to its own"
        return reason, reason
    if has_added:
        return "", f"{name} attends with queries of two projections, for text and for image"
    missing = set(LAYOUT.projections) - sites.projections
    if missing:
        return "", f"{name} calls its projections in code of their own"
    return "", "" if geometry(module) is not None else f"the heads of {cls.__name__} are not known here"


def methods(cls: type) -> dict[str, Any]:
    """What a subclass of the attention layer's class ``cls`` needs."""
    return {"forward": rewritten(cls, "forward"), "_exsel_process": _process}


def _process(self: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``self.processor(…)``."""
    processor = self.processor
    try:
        function = through(processor)
    except RewritingError as error:
        raise RuntimeError(
            f"this layer is upgraded, and the processor that was set since {error}: its mechanisms would be lost. "
            "Set another processor, or exsel.downgrade(model) first"
        ) from error
    return function(processor, *args, **kwargs)


#: By processor class, its ``__call__`` with an insertion in it. A plain dictionary: compilers see through it.
_THROUGH: dict[type, Callable[..., Any]] = {}


def through(processor: Any) -> Callable[..., Any]:
    """``processor``'s ``__call__``, its arguments after itself, with an insertion in it.

    Raises:
        RewritingError: a processor that does not call one attention function once.
    """
    cls = type(processor)
    if cls not in _THROUGH:
        _THROUGH[cls] = rewritten(cls, "__call__")
    return _THROUGH[cls]


class _Sites(ast.NodeVisitor):
    """What a processor calls."""

    def __init__(self, function: types.FunctionType, receiver: str) -> None:
        self.function = function
        self.receiver = receiver
        self.attention = 0
        self.projections: set[str] = set()

    @classmethod
    def of(cls, processor: type) -> _Sites:
        function = _call_of(processor)
        definition = syntax_tree(function)
        if len(definition.args.args) < 2:
            raise RewritingError(f"{processor.__name__} does not take the layer first")
        sites = cls(function, definition.args.args[1].arg)
        sites.visit(definition)
        if sites.attention != 1:
            raise RewritingError(
                f"{processor.__name__} calls an attention function {sites.attention} times, not once: "
                "set one that calls PyTorch's, like AttnProcessor2_0"
            )
        return sites

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if is_sdpa(node, self.function) or _is_dispatch(node):
            self.attention += 1
        elif (name := _attribute_of(node.func, self.receiver)) is not None:
            self.projections.add(name)


def _call_of(cls: type) -> types.FunctionType:
    # A processor that is a module of its own has its call in forward.
    return method_of(cls, "forward" if issubclass(cls, nn.Module) else "__call__")


def _is_dispatch(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == _DISPATCH


def _attribute_of(node: ast.expr, receiver: str) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == receiver:
        return node.attr
    return None


class _Layer(ast.NodeTransformer):
    """``self.processor(…)`` → ``self._exsel_process(…)``."""

    def __init__(self) -> None:
        self.places = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if self_attribute(node.func) == "processor":
            assert isinstance(node.func, ast.Attribute)
            node.func.attr = "_exsel_process"
            self.places += 1
        return node


class _Processor(ast.NodeTransformer):
    """The calls of projections and of the attention function through an insertion."""

    def __init__(self, function: types.FunctionType, receiver: str) -> None:
        self.function = function
        self.receiver = receiver

    def _insertion(
        self, node: ast.AST, method: str, arguments: list[ast.expr], keywords: list[ast.keyword]
    ) -> ast.Call:
        function = ast.Attribute(ast.Name(INSERTION, ast.Load()), method, ast.Load())
        return ast.copy_location(ast.Call(function, arguments, keywords), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = _attribute_of(node.func, self.receiver)
        if is_sdpa(node, self.function):
            return self._insertion(node, "sdpa", [node.func, *node.args], node.keywords)
        if _is_dispatch(node):
            return self._insertion(node, "sdpa_tokens_first", [node.func, *node.args], node.keywords)
        if name in LAYOUT.projections:
            return self._insertion(node, "project", [ast.Constant(name), node.func, *node.args], node.keywords)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        value = node.value if node.value is not None else ast.Constant(None)
        return ast.copy_location(ast.Return(self._insertion(node, "end", [value], [])), node)


def rewritten(cls: type, name: str) -> Callable[..., Any]:
    """The layer's ``forward`` or the processor's ``__call__`` of ``cls``, rewritten.

    Raises:
        RewritingError: no source, or no place for a call.
    """
    if name == "forward":
        function = method_of(cls, name)
        layer = _Layer()
        definition = layer.visit(copy.deepcopy(syntax_tree(function)))
        if not layer.places:
            raise RewritingError(f"is not called by {cls.__name__}")
        return compiled(definition, function, definition.name)  # type: ignore[no-any-return]
    sites = _Sites.of(cls)
    function, receiver = sites.function, sites.receiver
    definition = _Processor(function, receiver).visit(copy.deepcopy(syntax_tree(function)))
    names = {argument.arg for argument in definition.args.args}
    context = f"context={_CONTEXT}" if _CONTEXT in names and cls.__name__ not in JOINT else ""
    begin = ast.parse(f"{INSERTION} = {receiver}.{CHILD}.begin({context})").body[0]
    for node in ast.walk(begin):
        ast.copy_location(node, definition)
    definition.body.insert(0, begin)
    return compiled(definition, function, definition.name)  # type: ignore[no-any-return]
