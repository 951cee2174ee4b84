"""Rewrite the forward pass of an attention class so that the calls that matter go through the mechanisms.

The result is what one would write by hand in a copy of the modelling file: the calls of the layer's projections, its
cache and its attention function go through a :class:`exsel.nn.layer_pass.LayerPass`. Everything else stays, line
numbers in a traceback too.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F

from exsel.nn.projections import Projections
from exsel.upgrading.sources import Method, RewritingError, closure_cells, content, may_attend, read

#: The local variable that holds the pass; the child module that holds the parameters; the method of an upgraded layer
#: that begins a pass.
PASS = "_exsel"
CHILD = "exsel"
BEGIN = "_exsel_begin"
#: The attribute of an upgraded class that keeps, by name, the original's methods at the time of rewriting.
READ = "exsel_read"

#: Names of a cache among the parameters of attention modules.
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")
_MASKS = ("attention_mask", "mask")
_CONTEXTS = ("key_value_states", "encoder_hidden_states", "context", "memory")
#: Names of two inputs that are one tensor in self-attention, in classes outside transformers.
_QUERIES_AND_KEYS = (("query", "key"), ("queries", "keys"), ("q", "k"))


@dataclass
class CallSites:
    """The calls in a method that go through the mechanisms."""

    method: Method
    layer: str  # the parameter that is the layer
    attention: int = 0  # how many calls of an attention function
    projections: set[str] = field(default_factory=set)  # the layer's attributes that it calls
    methods: dict[str, CallSites] = field(default_factory=dict)  # the layer's methods that it calls

    def all_attention(self) -> int:
        """Those in the methods that it calls among them."""
        return self.attention + sum(sites.all_attention() for sites in self.methods.values())

    def all_methods(self) -> dict[str, CallSites]:
        """The methods that this one calls, directly or through others."""
        return self.methods | {
            name: sites for inner in self.methods.values() for name, sites in inner.all_methods().items()
        }

    def kind(self, call: ast.Call) -> tuple[str, str]:
        """The method of a pass that ``call`` goes through, and the attribute of the layer that it calls, if any.

        The method is ``"of_layer"`` for a call of an attribute of the layer: a projection, or another method.
        """
        if _is_sdpa(call, self.method):
            return "sdpa", ""
        if isinstance(call.func, ast.Name) and call.func.id == "dispatch_attention_fn":  # diffusers' function
            return "sdpa_tokens_first", ""
        if _is_attention_function(call, self.layer):
            return "attend", ""
        if (name := attribute_of(call.func, self.layer)) is not None:
            return "of_layer", name
        if _is_cache_update(call):
            return "update", ""
        return "linear", self._linear_of(call) or ""

    def _linear_of(self, call: ast.Call) -> str | None:
        """``name`` if ``call`` is ``F.linear(x, self.name.weight, …)``: a projection whose module is not called."""
        if _named_value(call.func, self.method.function) is F.linear:
            weights = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "weight")]
            for weight in weights:
                if isinstance(weight, ast.Attribute) and weight.attr == "weight":
                    return attribute_of(weight.value, self.layer)
        return None


def attribute_of(node: ast.AST, name: str) -> str | None:
    """``attribute`` if ``node`` is the expression ``name.attribute``, else ``None``."""
    match node:
        case ast.Attribute(value=ast.Name(id=found), attr=attribute) if found == name:
            return attribute
    return None


def _is_sdpa(call: ast.Call, method: Method) -> bool:
    """Whether ``call`` calls PyTorch's ``scaled_dot_product_attention``, under whatever name it was imported."""
    found = _named_value(call.func, method.function)
    if found is not None:
        return found is F.scaled_dot_product_attention
    path = ast.unparse(call.func)  # the function may import it itself
    return path.endswith("scaled_dot_product_attention") and not path.startswith(f"{method.parameters[0]}.")


def _named_value(expression: ast.expr, function: types.FunctionType) -> Any:
    """The value of a name or ``name.attribute`` in ``function``; ``None`` if it is a local variable."""
    if isinstance(expression, ast.Attribute):
        return getattr(_named_value(expression.value, function), expression.attr, None)
    if not isinstance(expression, ast.Name):
        return None
    code = function.__code__
    if expression.id in (*code.co_varnames, *code.co_cellvars):
        return None
    cells = closure_cells(function)
    if expression.id in cells:
        return content(cells[expression.id])
    return function.__globals__.get(expression.id)


def _is_attention_function(call: ast.Call, layer: str) -> bool:
    """Whether ``call`` is ``attention_interface(self, query, key, value, …)``, transformers' convention."""
    if not call.args or not (isinstance(call.args[0], ast.Name) and call.args[0].id == layer):
        return False
    if any(isinstance(argument, ast.Starred) for argument in call.args[:4]):
        return False
    has_states = len(call.args) >= 4 or {"query", "key", "value"} <= {keyword.arg for keyword in call.keywords}
    return has_states and re.search("attention|attn", ast.unparse(call.func)) is not None


def _is_cache_update(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "update" and len(call.args) >= 3


def find_sites(cls: type, name: str = "forward", seen: frozenset[str] = frozenset(), *, place: int = 0) -> CallSites:
    """The calls in method ``name`` of ``cls``, whose parameter ``place`` is the layer, and in those that it calls."""
    method = read(cls, name)
    if len(method.parameters) <= place:
        raise RewritingError(f"has a {name} that does not take the layer first")
    sites = CallSites(method, method.parameters[place])
    for node in ast.walk(method.definition):
        if not isinstance(node, ast.Call):
            continue
        kind, called = sites.kind(node)
        if kind in ("sdpa", "sdpa_tokens_first", "attend"):
            sites.attention += 1
        elif place == 0 and called and isinstance(inspect.getattr_static(cls, called, None), types.FunctionType):
            if called in seen | {name}:
                continue
            try:
                sites.methods[called] = find_sites(cls, called, seen | {name})
            except RewritingError:
                # A method that cannot be read stays unchanged. That matters only if it attends.
                if may_attend(cls, called):
                    raise
        elif called:
            sites.projections.add(called)
    return sites


def rewrite(cls: type, projections: Projections) -> dict[str, Any]:
    """The methods that a subclass of the attention class ``cls`` needs to go through the mechanisms, by name."""
    sites = find_sites(cls)
    inner = _with_calls(sites, {*projections.packings, projections.output})
    methods = {f"_exsel_{name}": rewrite_method(found, projections, inner, begin=None) for name, found in inner.items()}
    methods["forward"] = rewrite_method(sites, projections, inner, begin=_arguments_of_begin(sites))
    return {**methods, READ: {name: found.method.as_read for name, found in {"forward": sites, **inner}.items()}}


def rewrite_method(
    sites: CallSites, projections: Projections, methods: Mapping[str, CallSites], *, begin: Iterable[str] | None
) -> types.FunctionType:
    """The method of ``sites``, rewritten to call ``methods``, the other rewritten ones, and to go through a pass.

    It begins the pass with the arguments ``begin``, as source; ``None``: the pass is its first argument.
    """

    def change(definition: ast.FunctionDef) -> None:
        _rewrite_calls(definition, sites, projections, methods)
        if begin is None:
            (definition.args.posonlyargs or definition.args.args).insert(1, ast.arg(PASS))
        else:
            _end(definition, projections.output)
            _begin(definition, sites.layer, begin)

    return sites.method.rewritten(change)


def _with_calls(sites: CallSites, names: set[str | None]) -> dict[str, CallSites]:
    """The methods to rewrite: those that attend, call one of ``names``, or call a method that does."""
    found: dict[str, CallSites] = {}
    for name, inner in sites.methods.items():
        both = [inner, *inner.all_methods().values()]
        if inner.all_attention() or any(not each.projections.isdisjoint(names) for each in both):
            found |= {name: inner, **_with_calls(inner, names)}
    return found


def _nodes(root: ast.AST, depth: int = 0) -> Iterator[tuple[ast.AST, int]]:
    """The nodes below ``root`` outside lambdas, inner ones first, each with the number of functions that nest it."""
    for node in ast.iter_child_nodes(root):
        if not isinstance(node, ast.Lambda):
            yield from _nodes(node, depth + isinstance(node, ast.FunctionDef))
            yield node, depth


def _rewrite_calls(
    definition: ast.FunctionDef, sites: CallSites, projections: Projections, methods: Mapping[str, CallSites]
) -> None:
    output = projections.output
    for call in [node for node, _ in _nodes(definition) if isinstance(node, ast.Call)]:
        kind, name = sites.kind(call)
        if name and name in projections.packings:
            if kind == "linear":
                call.args += [keyword.value for keyword in call.keywords if keyword.arg == "input"]
                call.keywords = [keyword for keyword in call.keywords if keyword.arg != "input"]
            _through("project", call, ast.Constant(name), call.func)
        elif name and name == output:
            call.args[0] = ast.Call(_method("mixed"), [call.args[0]], [])
        elif name and name in methods:
            assert isinstance(call.func, ast.Attribute)
            call.func.attr = f"_exsel_{name}"
            call.args.insert(0, ast.Name(PASS, ast.Load()))
        elif kind == "update" and output is None:
            assert isinstance(call.func, ast.Attribute)
            _through("update", call, call.func.value)
        elif kind in ("sdpa", "sdpa_tokens_first", "attend") and output is None:
            _through(kind, call, call.func)


def _method(name: str) -> ast.expr:
    return ast.Attribute(ast.Name(PASS, ast.Load()), name, ast.Load())


def _through(method: str, call: ast.Call, *first: ast.expr) -> None:
    """Turn ``call`` into a call of the pass's ``method``, with ``first`` before its arguments."""
    call.func, call.args = _method(method), [*first, *call.args]


def _end(definition: ast.FunctionDef, output: str | None) -> None:
    for node, depth in list(_nodes(definition)):
        if isinstance(node, ast.Return) and depth == 0:
            value = node.value if node.value is not None else ast.Constant(None)
            node.value = ast.Call(_method("end_mixed" if output == "" else "end"), [value], [])


def _begin(definition: ast.FunctionDef, layer: str, arguments: Iterable[str]) -> None:
    """Insert ``_exsel = layer._exsel_begin(…)`` as the first statement."""
    statement = ast.parse(f"{PASS} = {layer}.{BEGIN}({', '.join(arguments)})").body[0]
    for node in ast.walk(statement):
        ast.copy_location(node, definition)
    definition.body.insert(0 if ast.get_docstring(definition) is None else 1, statement)


def _arguments_of_begin(sites: CallSites) -> Iterator[str]:
    """The arguments of :meth:`Mechanisms.begin`, as source: positions, cache, context, mask and layer index."""
    method = sites.method
    arguments = method.definition.args
    names = [*method.parameters[1:], *(argument.arg for argument in arguments.kwonlyargs)]

    def given(name: str, found: list[str]) -> Iterator[str]:
        if found:
            yield f"{name}={found[0]}"
        elif arguments.kwarg is not None:
            yield f"{name}={arguments.kwarg.arg}.get({name!r})"

    yield from given("position_ids", [name for name in names if name == "position_ids"])
    yield from [f"cache={name}" for name in CACHES if name in names][:1]
    contexts = [f"None if {name} is {names[0]} else {name}" for name in _CONTEXTS if name in names]
    if not method.function.__module__.startswith("transformers."):
        contexts += [f"None if {k} is {q} else {k}" for q, k in _QUERIES_AND_KEYS if {q, k} <= set(names)]
    yield from [f"context={context}" for context in contexts][:1]
    yield from given("attention_mask", [name for name in _MASKS if name in names])
    # One module may be several layers of a cache. Its own call of the cache then says which.
    calls = (node for node in ast.walk(method.definition) if isinstance(node, ast.Call))
    for index in [call.args[2] for call in calls if _is_cache_update(call)][:1]:
        if {name.id for name in ast.walk(index) if isinstance(name, ast.Name)} <= {sites.layer, *names}:
            yield f"layer_index={ast.unparse(index)}"
