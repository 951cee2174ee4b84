"""diffusers' attention layers, whose forward pass is the code of another object, their *processor*.

The layer's ``forward`` calls ``self.processor(self, hidden_states, …)``. An upgraded layer calls the processor's
rewritten ``__call__`` instead. It looks that up by the processor's class at each call. So a processor that is set later
gets the mechanisms too, or is refused when it is called.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from exsel.errors import UpgradeError
from exsel.nn.projections import Projections
from exsel.upgrading.rewriting import CHILD, READ, CallSites, attribute_of, find_sites, rewrite_method
from exsel.upgrading.sources import RewritingError, described, read, replacement
from exsel.upgrading.wrapped_methods import wrap

PROJECTIONS = Projections.read("to_q to_k to_v")

#: Processors in which text and image tokens attend to each other as one sequence, each token with its own value. Their
#: ``encoder_hidden_states`` are tokens of the layer, not a context.
_JOINT = frozenset(
    {"AuraFlowAttnProcessor2_0", "CogVideoXAttnProcessor2_0", "FluxAttnProcessor", "JointAttnProcessor2_0"}
)
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
    return bool(_calls_of_processor(method.definition, method.parameters[0]))


def _calls_of_processor(definition: ast.FunctionDef, receiver: str) -> list[ast.Attribute]:
    called = (node.func for node in ast.walk(definition) if isinstance(node, ast.Call))
    return [
        function
        for function in called
        if isinstance(function, ast.Attribute) and attribute_of(function, receiver) == "processor"
    ]


def _is_joint(cls: type) -> bool:
    return cls.__name__ in _JOINT and not replacement(cls, "__call__")


def refusals(module: nn.Module) -> tuple[str, str]:
    """Why ``module`` cannot be exclusive, and why not selective; each empty if it can."""
    processor: Any = module.processor
    name = type(processor).__name__
    try:
        sites = _find_sites(type(processor))
        rewritten_call(processor)
    except RewritingError as error:
        return f"its processor {error}", f"its processor {error}"
    has_added = getattr(module, "add_k_proj", None) is not None
    if has_added and not _is_joint(type(processor)):
        reason = f"{name} adds keys and values of other tokens to its own"
        return reason, reason
    if has_added:
        return "", f"{name} attends with queries of two projections, for text and for image"
    if set(PROJECTIONS.packings) - sites.projections:
        return "", f"{name} calls its projections in code of their own"
    return "", ""


def processor_methods(cls: type) -> dict[str, Any]:
    """The members of an upgraded subclass of the attention class ``cls``."""
    method = read(cls, "forward")

    def change(definition: ast.FunctionDef) -> None:
        for function in _calls_of_processor(definition, method.parameters[0]):
            function.attr = _PROCESS

    return {"forward": method.rewritten(change), _PROCESS: _process, READ: {"forward": method.as_read}}


def _process(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The method that replaces ``self.processor(…)``."""
    processor = self.processor
    try:
        function = rewritten_call(processor)
    except RewritingError as error:
        raise RuntimeError(
            f"this layer is upgraded, and the processor that was set since {error}: its mechanisms would be lost. "
            "Set another processor, or exsel.downgrade(model) first"
        ) from error
    return function(processor, *args, **kwargs)


def fault(module: Any) -> str:
    """Why an upgraded ``module`` with a processor would compute without its mechanisms; empty if it would not."""
    try:
        if hasattr(module, _PROCESS):
            rewritten_call(module.processor)
    except RewritingError as error:
        return f"its processor {error}"
    return ""


#: For a processor's class, its ``__call__`` and the rewritten one. In a plain dictionary, so that compilers trace it.
_REWRITTEN: dict[type, tuple[Callable[..., Any], Callable[..., Any]]] = {}


def rewritten_call(processor: Any) -> Callable[..., Any]:
    """``processor``'s ``__call__``, rewritten to use the mechanisms of its layer; a RewritingError if it cannot be."""
    cls = type(processor)
    if isinstance(processor, nn.Module) and "forward" in vars(processor):
        raise RewritingError(f"{cls.__name__} has its forward replaced by {described(processor.forward)}")
    function = cls.forward if isinstance(processor, nn.Module) else cls.__call__
    if cls not in _REWRITTEN or _REWRITTEN[cls][0] is not function:
        sites = _find_sites(cls)
        is_across = _CONTEXT in sites.method.parameters and not _is_joint(cls)
        begin = [f"context={_CONTEXT}"] if is_across else []
        _REWRITTEN[cls] = function, rewrite_method(sites, PROJECTIONS, {}, begin=begin)
    return _REWRITTEN[cls][1]


def _find_sites(processor: type) -> CallSites:
    """The calls in a processor's ``__call__``, or in its ``forward`` if the processor is a module."""
    name = processor.__name__
    try:
        sites = find_sites(processor, "forward" if issubclass(processor, nn.Module) else "__call__", place=1)
    except RewritingError as error:
        raise RewritingError(f"{name} {error}") from error
    if sites.attention != 1:
        raise RewritingError(
            f"{name} calls an attention function {sites.attention} times, not once: "
            "set one that calls PyTorch's, like AttnProcessor2_0"
        )
    return sites


def guard_saving() -> None:
    """Make diffusers, if it is imported, refuse to save upgraded models: it would load them as plain ones."""
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
