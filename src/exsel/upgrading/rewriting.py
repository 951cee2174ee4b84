"""The forward pass of an attention class with calls to an :class:`exsel.nn.layer_pass.LayerPass` put into it.

What one would do by hand, in a copy of the modelling file: at the layer's projections, its cache and its attention
function the call goes through the insertion. The rest of the method stays as it is, line numbers too, so that norms,
gates, caches and whichever attention function is chosen keep their places, and a traceback shows the original's lines.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F

from exsel.upgrading.sources import Method, RewritingError, content, may_attend, read

#: The local variable that holds the insertion; the child module that holds the parameters; the method of an upgraded
#: layer that begins an insertion.
INSERTION = "_exsel"
CHILD = "exsel"
BEGIN = "_exsel_begin"
#: Among an upgraded class's attributes: what the original class had, by name, when it was rewritten.
READ = "exsel_read"

#: Names of a cache among the parameters of attention modules.
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")
_MASKS = ("attention_mask", "mask")
_CONTEXTS = ("key_value_states", "encoder_hidden_states", "context", "memory")
#: Names of two inputs that are one tensor in self-attention. Only of classes that are not swept by the tests.
_QUERIES_AND_KEYS = (("query", "key"), ("queries", "keys"), ("q", "k"))


@dataclass
class Sites:
    """What a method calls: the places found in it, and the methods of the class in which others lie."""

    method: Method
    attention: int = 0
    projections: set[str] = field(default_factory=set)
    methods: dict[str, Sites] = field(default_factory=dict)

    def all_attention(self) -> int:
        """Over this method and those it calls."""
        return self.attention + sum(sites.all_attention() for sites in self.methods.values())

    def names(self) -> set[str]:
        """Of the methods in which others lie, and of those in these."""
        return set(self.methods).union(*(sites.names() for sites in self.methods.values()))

    def all_projections(self) -> set[str]:
        """Over this method and those it calls."""
        return self.projections.union(*(sites.all_projections() for sites in self.methods.values()))


def attribute_of(node: ast.expr, receiver: str) -> str | None:
    """``name`` of the expression ``receiver.name``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == receiver:
        return node.attr
    return None


def is_sdpa(call: ast.Call, method: Method) -> bool:
    """Whether ``call``, in ``method``, is one of PyTorch's attention, under whatever name it was imported."""
    found = _named_value(call.func, method.function)
    if found is not None:
        return found is F.scaled_dot_product_attention
    path = ast.unparse(call.func)  # imported in the function itself
    return path.endswith("scaled_dot_product_attention") and not path.startswith(f"{method.receiver}.")


def _linear_of(call: ast.Call, method: Method) -> str | None:
    """``name`` of ``F.linear(x, self.name.weight, …)``: a projection that the layer does itself."""
    if _named_value(call.func, method.function) is not F.linear:
        return None
    weights = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "weight")]
    for weight in weights:
        if isinstance(weight, ast.Attribute) and weight.attr == "weight":
            return attribute_of(weight.value, method.receiver)
    return None


def _named_value(expression: ast.expr, function: types.FunctionType) -> Any:
    """What a name or ``name.attribute`` means in ``function``; ``None`` if it is a local variable."""
    if isinstance(expression, ast.Attribute):
        return getattr(_named_value(expression.value, function), expression.attr, None)
    if not isinstance(expression, ast.Name):
        return None
    code = function.__code__
    if expression.id in (*code.co_varnames, *code.co_cellvars):
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    if expression.id in cells:
        return content(cells[expression.id])
    return function.__globals__.get(expression.id)


def is_attention_function(call: ast.Call, receiver: str) -> bool:
    """``attention_interface(self, query, key, value, …)``: transformers' convention."""
    if not re.search("attention|attn", ast.unparse(call.func)):
        return False
    if not call.args or not (isinstance(call.args[0], ast.Name) and call.args[0].id == receiver):
        return False
    if any(isinstance(argument, ast.Starred) for argument in call.args[:4]):
        return False
    return len(call.args) >= 4 or {"query", "key", "value"} <= {keyword.arg for keyword in call.keywords}


def _is_cache_update(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "update" and len(call.args) >= 3


def find_sites(cls: type, name: str = "forward", seen: frozenset[str] = frozenset()) -> Sites:
    """The places in method ``name`` of ``cls``, and in the methods that it calls on itself.

    Raises:
        RewritingError: no source to read, or a wrapper that is not known.
    """
    method = read(cls, name)
    sites = Sites(method)
    for node in ast.walk(method.definition):
        if not isinstance(node, ast.Call):
            continue
        called = attribute_of(node.func, method.receiver)
        if is_sdpa(node, method) or is_attention_function(node, method.receiver):
            sites.attention += 1
        elif called is not None:
            if called not in seen | {name} and isinstance(
                inspect.getattr_static(cls, called, None), types.FunctionType
            ):
                try:
                    sites.methods[called] = find_sites(cls, called, seen | {name})
                except RewritingError:
                    # As it is, it stays: what lies in it is not seen, but it is no attention.
                    if may_attend(cls, called):
                        raise
            else:
                sites.projections.add(called)
        elif (name_of_linear := _linear_of(node, method)) is not None:
            sites.projections.add(name_of_linear)
    return sites


class _Rewriter(ast.NodeTransformer):
    def __init__(
        self,
        method: Method,
        projections: Mapping[str, str],
        output: str | None,
        methods: Mapping[str, Sites],
    ):
        self.method = method
        self.projections = projections
        self.output = output
        self.methods = methods
        self.depth = 0
        self.wraps_returns = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = attribute_of(node.func, self.method.receiver)
        calls_function = self.output is None
        if calls_function and is_sdpa(node, self.method):
            call = through("sdpa", node.func, *node.args, keywords=node.keywords)
        elif calls_function and is_attention_function(node, self.method.receiver):
            call = through("attend", node.func, *node.args, keywords=node.keywords)
        elif calls_function and _is_cache_update(node):
            assert isinstance(node.func, ast.Attribute)
            call = through("update", node.func.value, *node.args, keywords=node.keywords)
        elif (name := _linear_of(node, self.method)) in self.projections:
            source = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "input")]
            rest = [keyword for keyword in node.keywords if keyword.arg != "input"]
            call = through("project", ast.Constant(name), node.func, *source, *node.args[1:], keywords=rest)
        elif called in self.projections:
            call = through("project", ast.Constant(called), node.func, *node.args, keywords=node.keywords)
        elif called is not None and called == self.output:
            mixed = through("mixed", node.args[0])
            call = ast.Call(node.func, [mixed, *node.args[1:]], node.keywords)
        elif called in self.methods:
            receiver = ast.Name(self.method.receiver, ast.Load())
            function = ast.Attribute(receiver, rewritten_name(str(called)), ast.Load())
            call = ast.Call(function, [ast.Name(INSERTION, ast.Load()), *node.args], node.keywords)
        else:
            return node
        return ast.copy_location(call, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if self.depth > 1 or not self.wraps_returns:
            return node
        value = node.value if node.value is not None else ast.Constant(None)
        end = "end_mixed" if self.output == "" else "end"  # it returns what it mixed
        return ast.copy_location(ast.Return(through(end, value)), node)


def through(method: str, *arguments: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    """The call ``_exsel.method(…)``."""
    function = ast.Attribute(ast.Name(INSERTION, ast.Load()), method, ast.Load())
    return ast.Call(function, list(arguments), keywords or [])


def rewritten_name(method: str) -> str:
    """The name of a method's rewritten form, beside the original."""
    return f"_exsel_{method}"


def _with_sites(sites: Sites, projections: Mapping[str, str], output: str | None) -> dict[str, Sites]:
    """The methods that are to be rewritten, by name: those in which a place lies."""
    found: dict[str, Sites] = {}
    for name, inner in sites.methods.items():
        calls = inner.all_projections()
        if inner.all_attention() or calls & set(projections) or (output is not None and output in calls):
            found[name] = inner
            found |= _with_sites(inner, projections, output)
    return found


def rewrite(cls: type, projections: Mapping[str, str], output: str | None) -> dict[str, Any]:
    """The methods of ``cls`` through an insertion, by name, and what they were: what a subclass of it needs.

    Args:
        cls: an attention module's class.
        projections: its projections, and how each is packed.
        output: for a class whose attention is written out: its output projection, at whose input the mixed values
            are; ``""``: it has none, and its forward returns them. ``None`` for a class that calls an attention
            function.

    Raises:
        RewritingError: no source to read, or a wrapper that is not known.
    """
    sites = find_sites(cls)
    inner = _with_sites(sites, projections, output)
    found = {name: other.method for name, other in {"forward": sites, **inner}.items()}
    methods: dict[str, Any] = {}
    for name, method in found.items():
        rewriter = _Rewriter(method, projections, output, inner)
        if name == "forward":
            methods[name] = method.rewritten(functools.partial(_rewrite_forward, rewriter))
        else:
            methods[rewritten_name(name)] = method.rewritten(functools.partial(_rewrite_inner, rewriter))
    return {**methods, READ: {name: method.as_read for name, method in found.items()}}


def _rewrite_forward(rewriter: _Rewriter, definition: ast.FunctionDef) -> None:
    rewriter.wraps_returns = True
    rewriter.visit(definition)
    begin(definition, rewriter.method.receiver, _call_of_begin(rewriter.method))


def _rewrite_inner(rewriter: _Rewriter, definition: ast.FunctionDef) -> None:
    rewriter.visit(definition)
    (definition.args.posonlyargs or definition.args.args).insert(1, ast.arg(INSERTION))


def begin(definition: ast.FunctionDef, layer: str, arguments: Iterable[str]) -> None:
    """Have the method begin with ``_exsel = layer._exsel_begin(…)``."""
    statement = ast.parse(f"{INSERTION} = {layer}.{BEGIN}({', '.join(arguments)})").body[0]
    for node in ast.walk(statement):
        ast.copy_location(node, definition)
    definition.body.insert(0 if ast.get_docstring(definition) is None else 1, statement)


def _call_of_begin(method: Method) -> Iterator[str]:
    """The positions, the cache and what else the method is called with, as :meth:`Mechanisms.begin` takes them."""
    arguments = method.definition.args
    names = [*method.parameters[1:], *(argument.arg for argument in arguments.kwonlyargs)]
    if "position_ids" in names:
        yield "position_ids=position_ids"
    elif arguments.kwarg is not None:
        yield f"position_ids={arguments.kwarg.arg}.get('position_ids')"
    yield from [f"cache={name}" for name in CACHES if name in names][:1]
    contexts = [f"None if {name} is {names[0]} else {name}" for name in _CONTEXTS if name in names]
    if not method.function.__module__.startswith("transformers."):
        contexts += [f"None if {k} is {q} else {k}" for q, k in _QUERIES_AND_KEYS if {q, k} <= set(names)]
    yield from [f"context={context}" for context in contexts][:1]
    masks = [name for name in _MASKS if name in names]
    if masks:
        yield f"attention_mask={masks[0]}"
    elif arguments.kwarg is not None:
        yield f"attention_mask={arguments.kwarg.arg}.get('attention_mask')"
    # One module may be several layers of a cache: its own call says which.
    calls = (node for node in ast.walk(method.definition) if isinstance(node, ast.Call))
    for index in [call.args[2] for call in calls if _is_cache_update(call)][:1]:
        if {name.id for name in ast.walk(index) if isinstance(name, ast.Name)} <= {method.receiver, *names}:
            yield f"layer_index={ast.unparse(index)}"
