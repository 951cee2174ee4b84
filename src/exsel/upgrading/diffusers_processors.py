"""diffusers' attention layers, whose forward pass lies in an object beside them: their *processor*.

The layer's ``forward`` calls ``self.processor(self, hidden_states, …)``. In an upgraded layer the processor's
``__call__`` runs with calls to an insertion in it, looked up by the processor's class at each call: one that is set
later keeps the mechanisms, or is refused when it is called.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.projections import Geometry
from exsel.upgrading.architectures import Layout
from exsel.upgrading.rewriting import CHILD, READ, attribute_of, begin, is_sdpa, through
from exsel.upgrading.sources import Method, RewritingError, described, read, replacement
from exsel.upgrading.wrapped_methods import wrap

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
#: The upgraded layer's method that calls its processor.
_PROCESS = "_exsel_process"


def has_processor(cls: type) -> bool:
    """Whether ``cls`` is an attention class of diffusers that hands its forward pass to a processor."""
    if not cls.__module__.startswith("diffusers."):
        return False
    try:
        method = read(cls, "forward")
    except RewritingError:
        return False
    return any(_calls_processor(node, method.receiver) for node in ast.walk(method.definition))


def _calls_processor(node: ast.AST, receiver: str) -> bool:
    return isinstance(node, ast.Call) and attribute_of(node.func, receiver) == "processor"


def is_joint(cls: type) -> bool:
    """Whether processors of class ``cls`` attend from text and image together; see :data:`JOINT`."""
    return cls.__name__ in JOINT and not replacement(cls, "__call__")


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
        through_insertion(processor)
    except RewritingError as error:
        return f"its processor {error}", f"its processor {error}"
    has_added = getattr(module, "add_k_proj", None) is not None
    if has_added and not is_joint(type(processor)):
        reason = f"{name} adds keys and values of other tokens to its own"
        return reason, reason
    if has_added:
        return "", f"{name} attends with queries of two projections, for text and for image"
    missing = set(LAYOUT.projections) - sites.projections
    if missing:
        return "", f"{name} calls its projections in code of their own"
    return "", "" if geometry(module) is not None else f"the heads of {cls.__name__} are not known here"


def methods(cls: type) -> dict[str, Any]:
    """What a subclass of the attention layer's class ``cls`` needs, and what is there now."""
    method = read(cls, "forward")
    return {"forward": method.rewritten(_Layer(method).visit), _PROCESS: _process, READ: {"forward": method.as_read}}


def _process(self: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``self.processor(…)``."""
    processor = self.processor
    try:
        function = through_insertion(processor)
    except RewritingError as error:
        raise RuntimeError(
            f"this layer is upgraded, and the processor that was set since {error}: its mechanisms would be lost. "
            "Set another processor, or exsel.downgrade(model) first"
        ) from error
    return function(processor, *args, **kwargs)


def fault(module: Any) -> str:
    """Why an upgraded ``module`` with a processor would not compute with it; empty where it would."""
    try:
        if hasattr(module, _PROCESS):
            through_insertion(module.processor)
    except RewritingError as error:
        return f"its processor {error}"
    return ""


#: By a processor's class, its ``__call__`` and the same with an insertion in it. A plain dictionary: compilers see
#: through it.
_THROUGH: dict[type, tuple[Callable[..., Any], Callable[..., Any]]] = {}


def through_insertion(processor: Any) -> Callable[..., Any]:
    """``processor``'s ``__call__``, its arguments after itself, with an insertion in it.

    Raises:
        RewritingError: a processor that does not call one attention function once, or that calls something else than
            its class's.
    """
    cls = type(processor)
    if isinstance(processor, nn.Module):
        if "forward" in vars(processor):
            raise RewritingError(f"{cls.__name__} has its forward replaced by {described(processor.forward)}")
        function = cls.forward
    else:
        function = cls.__call__
    if cls not in _THROUGH or _THROUGH[cls][0] is not function:
        sites = _Sites.of(cls)
        rewrite = functools.partial(_rewrite, sites, is_joint(cls))
        _THROUGH[cls] = function, sites.method.rewritten(rewrite)
    return _THROUGH[cls][1]


class _Sites(ast.NodeVisitor):
    """What a processor calls."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.receiver = method.parameters[1]
        self.attention = 0
        self.projections: set[str] = set()

    @classmethod
    def of(cls, processor: type) -> _Sites:
        # A processor that is a module of its own has its call in forward.
        try:
            method = read(processor, "forward" if issubclass(processor, nn.Module) else "__call__")
        except RewritingError as error:
            raise RewritingError(f"{processor.__name__} {error}") from error
        if len(method.parameters) < 2:
            raise RewritingError(f"{processor.__name__} does not take the layer first")
        sites = cls(method)
        sites.visit(method.definition)
        if sites.attention != 1:
            raise RewritingError(
                f"{processor.__name__} calls an attention function {sites.attention} times, not once: "
                "set one that calls PyTorch's, like AttnProcessor2_0"
            )
        return sites

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if is_sdpa(node, self.method) or _is_dispatch(node):
            self.attention += 1
        elif (name := attribute_of(node.func, self.receiver)) is not None:
            self.projections.add(name)


def _is_dispatch(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == _DISPATCH


class _Layer(ast.NodeTransformer):
    """``self.processor(…)`` → ``self._exsel_process(…)``."""

    def __init__(self, method: Method) -> None:
        self.receiver = method.receiver

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _calls_processor(node, self.receiver):
            assert isinstance(node.func, ast.Attribute)
            node.func.attr = _PROCESS
        return node


class _Processor(ast.NodeTransformer):
    """The calls of projections and of the attention function through an insertion."""

    def __init__(self, sites: _Sites) -> None:
        self.sites = sites

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = attribute_of(node.func, self.sites.receiver)
        if is_sdpa(node, self.sites.method):
            call = through("sdpa", node.func, *node.args, keywords=node.keywords)
        elif _is_dispatch(node):
            call = through("sdpa_tokens_first", node.func, *node.args, keywords=node.keywords)
        elif name in LAYOUT.projections:
            call = through("project", ast.Constant(name), node.func, *node.args, keywords=node.keywords)
        else:
            return node
        return ast.copy_location(call, node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        value = node.value if node.value is not None else ast.Constant(None)
        return ast.copy_location(ast.Return(through("end", value)), node)


def _rewrite(sites: _Sites, is_joint: bool, definition: ast.FunctionDef) -> None:
    _Processor(sites).visit(definition)
    is_across = _CONTEXT in sites.method.parameters and not is_joint
    begin(definition, sites.receiver, [f"context={_CONTEXT}"] if is_across else [])


def guard_saving() -> None:
    """Have diffusers save no upgraded model, once it is imported: from such a folder it would load the plain one."""
    module = sys.modules.get("diffusers.models.modeling_utils")
    if module is not None and hasattr(module, "ModelMixin"):
        wrap(module.ModelMixin, save_pretrained=_refusing)


def _refusing(save: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if any(CHILD in part._modules for part in self.modules()):
            raise UpgradeError(
                f"diffusers would load a plain {type(self).__name__} from what it saves of an upgraded one: save its "
                "state_dict(), and load that into a model upgraded alike; or exsel.downgrade(model) first"
            )
        return save(self, *args, **kwargs)

    return guarded
