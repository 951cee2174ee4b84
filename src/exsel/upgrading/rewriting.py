"""The forward pass of an attention class with calls to an :class:`exsel.nn.insertion.Insertion` put into it.

What one would do by hand, in a copy of the modelling file: at the layer's projections, its cache and its attention
function the call goes through the insertion. The rest of the method stays as it is, line numbers too, so that norms,
gates, caches and whichever attention function is chosen keep their places, and a traceback shows the original's lines.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F

#: The local variable that holds the insertion, and the child module that holds the parameters.
INSERTION = "_exsel"
CHILD = "exsel"

#: Names of a cache among the parameters of attention modules.
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")
_MASKS = ("attention_mask", "mask")
_CONTEXTS = ("key_value_states", "encoder_hidden_states", "context", "memory")
#: Names of two inputs that are one tensor in self-attention. Only of classes that are not swept by the tests.
_QUERIES_AND_KEYS = (("query", "key"), ("queries", "keys"), ("q", "k"))


class RewritingError(ValueError):
    """Why a class's forward pass cannot be rewritten, in words that follow its name."""


@dataclass
class Sites:
    """What a method calls: the places found in it, and the methods of the class in which others lie."""

    attention: int = 0
    projections: set[str] = field(default_factory=set)
    methods: dict[str, Sites] = field(default_factory=dict)

    def all_attention(self) -> int:
        """Over this method and those it calls."""
        return self.attention + sum(sites.all_attention() for sites in self.methods.values())

    def all_projections(self) -> set[str]:
        """Over this method and those it calls."""
        return self.projections.union(*(sites.all_projections() for sites in self.methods.values()))


@functools.cache
def syntax_tree(function: Callable[..., Any]) -> ast.FunctionDef:
    """The source of a method, parsed, with the lines that it has in its file."""
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError) as error:
        raise RewritingError("has no Python source to read") from error
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise RewritingError("has a forward that is not a plain method")
    return definition


def method_of(cls: type, name: str) -> types.FunctionType:
    """The plain function that is method ``name`` of ``cls``."""
    function = inspect.unwrap(getattr(cls, name))
    if not isinstance(function, types.FunctionType):
        raise RewritingError(f"has a {name} that is not a plain method")
    return function


def self_attribute(node: ast.expr) -> str | None:
    """``name`` of the expression ``self.name``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def is_sdpa(call: ast.Call, function: types.FunctionType) -> bool:
    """Whether ``call``, in ``function``, is one of PyTorch's attention, under whatever name it was imported."""
    found = _named_value(call.func, function)
    if found is not None:
        return found is F.scaled_dot_product_attention
    path = ast.unparse(call.func)  # imported in the function itself
    return path.endswith("scaled_dot_product_attention") and not path.startswith("self.")


def _linear_of(call: ast.Call, function: types.FunctionType) -> str | None:
    """``name`` of ``F.linear(x, self.name.weight, …)``: a projection that the layer does itself."""
    if _named_value(call.func, function) is not F.linear:
        return None
    weights = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "weight")]
    for weight in weights:
        if isinstance(weight, ast.Attribute) and weight.attr == "weight":
            return self_attribute(weight.value)
    return None


def _named_value(expression: ast.expr, function: types.FunctionType) -> Any:
    """What a name or ``name.attribute`` means in ``function``; ``None`` if it is a local variable."""
    if isinstance(expression, ast.Attribute):
        return getattr(_named_value(expression.value, function), expression.attr, None)
    if not isinstance(expression, ast.Name):
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if expression.id in cells:
        return cells[expression.id].cell_contents
    return function.__globals__.get(expression.id)


def is_attention_function(call: ast.Call) -> bool:
    """``attention_interface(self, query, key, value, …)``: transformers' convention."""
    if not re.search("attention|attn", ast.unparse(call.func)):
        return False
    if not call.args or not (isinstance(call.args[0], ast.Name) and call.args[0].id == "self"):
        return False
    if any(isinstance(argument, ast.Starred) for argument in call.args[:4]):
        return False
    return len(call.args) >= 4 or {"query", "key", "value"} <= {keyword.arg for keyword in call.keywords}


def _is_cache_update(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "update" and len(call.args) >= 3


def find_sites(cls: type, name: str = "forward", seen: frozenset[str] = frozenset()) -> Sites:
    """The places in method ``name`` of ``cls``, and in the methods that it calls on itself.

    Raises:
        RewritingError: no source to read.
    """
    sites = Sites()
    function = method_of(cls, name)
    for node in ast.walk(syntax_tree(function)):
        if not isinstance(node, ast.Call):
            continue
        called = self_attribute(node.func)
        if is_sdpa(node, function) or is_attention_function(node):
            sites.attention += 1
        elif called is not None:
            if called not in seen | {name} and isinstance(
                inspect.getattr_static(cls, called, None), types.FunctionType
            ):
                sites.methods[called] = find_sites(cls, called, seen | {name})
            else:
                sites.projections.add(called)
        elif (name_of_linear := _linear_of(node, function)) is not None:
            sites.projections.add(name_of_linear)
    return sites


class _Rewriter(ast.NodeTransformer):
    def __init__(
        self,
        function: types.FunctionType,
        projections: Mapping[str, str],
        output: str | None,
        methods: Mapping[str, Sites],
    ):
        self.function = function
        self.projections = projections
        self.output = output
        self.methods = methods
        self.depth = 0
        self.wraps_returns = False

    def _insertion(self, method: str, *arguments: ast.expr, keywords: list[ast.keyword]) -> ast.Call:
        function = ast.Attribute(ast.Name(INSERTION, ast.Load()), method, ast.Load())
        return ast.Call(function, list(arguments), keywords)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = self_attribute(node.func)
        calls_function = self.output is None
        if calls_function and is_sdpa(node, self.function):
            call = self._insertion("sdpa", node.func, *node.args, keywords=node.keywords)
        elif calls_function and is_attention_function(node):
            call = self._insertion("attend", node.func, *node.args, keywords=node.keywords)
        elif calls_function and _is_cache_update(node):
            assert isinstance(node.func, ast.Attribute)
            call = self._insertion("update", node.func.value, *node.args, keywords=node.keywords)
        elif (name := _linear_of(node, self.function)) in self.projections:
            source = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "input")]
            rest = [keyword for keyword in node.keywords if keyword.arg != "input"]
            call = self._insertion("project", ast.Constant(name), node.func, *source, *node.args[1:], keywords=rest)
        elif called in self.projections:
            call = self._insertion("project", ast.Constant(called), node.func, *node.args, keywords=node.keywords)
        elif called is not None and called == self.output:
            mixed = self._insertion("mixed", node.args[0], keywords=[])
            call = ast.Call(node.func, [mixed, *node.args[1:]], node.keywords)
        elif called in self.methods:
            function = ast.Attribute(ast.Name("self", ast.Load()), rewritten_name(str(called)), ast.Load())
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
        return ast.copy_location(ast.Return(self._insertion("end", value, keywords=[])), node)


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
    """The methods of ``cls`` through an insertion, by name: what a subclass of it needs.

    Args:
        cls: an attention module's class.
        projections: its projections, and how each is packed.
        output: for a class whose attention is written out: its output projection, at whose input the mixed values
            are; ``""``: it has none, and its forward returns them. ``None`` for a class that calls an attention
            function.

    Raises:
        RewritingError: no source to read.
    """
    sites = find_sites(cls)
    inner = _with_sites(sites, projections, output)
    methods = {}
    for name in ("forward", *inner):
        function = method_of(cls, name)
        tree = copy.deepcopy(syntax_tree(function))
        rewriter = _Rewriter(function, projections, output, inner)
        rewriter.wraps_returns = name == "forward"
        definition = rewriter.visit(tree)
        assert isinstance(definition, ast.FunctionDef)
        if name == "forward":
            if output == "":
                _returns_mixed(definition)
            definition.body.insert(0 if ast.get_docstring(definition) is None else 1, _begin(definition, function))
            target = "forward"
        else:
            definition.name = target = rewritten_name(name)
            definition.args.args.insert(1, ast.arg(INSERTION))
        methods[target] = compiled(definition, function, target)
    return methods


def _without_annotations(definition: ast.FunctionDef) -> None:
    """They are evaluated when a function is made, and say nothing to its forward pass."""
    definition.returns = None
    arguments = definition.args
    for argument in (
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        *filter(None, (arguments.vararg, arguments.kwarg)),
    ):
        argument.annotation = None


def _returns_mixed(definition: ast.FunctionDef) -> None:
    """``end(x)`` → ``end(mixed(x))`` and ``end((x, …))`` → ``end((mixed(x), …))`` in the method's own returns."""
    for node in ast.walk(definition):
        if not (isinstance(node, ast.Return) and isinstance(node.value, ast.Call)):
            continue
        node.value.func = ast.copy_location(
            ast.Attribute(ast.Name(INSERTION, ast.Load()), "end_mixed", ast.Load()), node.value
        )


def _begin(definition: ast.FunctionDef, function: types.FunctionType) -> ast.stmt:
    """``_exsel = self.exsel.begin(…)`` with the positions and the cache that the method is called with."""
    names = {argument.arg for argument in (*definition.args.args, *definition.args.kwonlyargs)}
    keywords = []
    if "position_ids" in names:
        keywords.append("position_ids=position_ids")
    elif definition.args.kwarg is not None:
        keywords.append(f"position_ids={definition.args.kwarg.arg}.get('position_ids')")
    keywords += [f"cache={name}" for name in CACHES if name in names][:1]
    tokens = definition.args.args[1].arg
    contexts = [f"None if {name} is {tokens} else {name}" for name in _CONTEXTS if name in names]
    if not function.__module__.startswith("transformers."):
        contexts += [f"None if {k} is {q} else {k}" for q, k in _QUERIES_AND_KEYS if {q, k} <= names]
    keywords += [f"context={context}" for context in contexts][:1]
    masks = [f"attention_mask={name}" for name in _MASKS if name in names]
    if not masks and definition.args.kwarg is not None:
        masks = [f"attention_mask={definition.args.kwarg.arg}.get('attention_mask')"]
    keywords += masks[:1]
    # One module may be several layers of a cache: its own call says which.
    updates = [
        node for node in ast.walk(syntax_tree(function)) if isinstance(node, ast.Call) and _is_cache_update(node)
    ]
    for index in (update.args[2] for update in updates[:1]):
        if {name.id for name in ast.walk(index) if isinstance(name, ast.Name)} <= names | {"self"}:
            keywords.append(f"layer_index={ast.unparse(index)}")
    statement = ast.parse(f"{INSERTION} = self.{CHILD}.begin({', '.join(keywords)})").body[0]
    for node in ast.walk(statement):
        ast.copy_location(node, definition)
    return statement


def compiled(definition: ast.FunctionDef, original: types.FunctionType, name: str) -> Any:
    """The function called ``name`` that ``definition`` defines, with the globals and closure of ``original``."""
    _without_annotations(definition)
    free = original.__code__.co_freevars
    factory = ast.parse(f"def _factory({', '.join(free)}): return {name}").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body.insert(0, definition)
    module = ast.Module([factory], type_ignores=[])
    ast.fix_missing_locations(module)
    code = compile(module, original.__code__.co_filename, "exec", dont_inherit=True)
    namespace: dict[str, Any] = {}
    exec(code, original.__globals__, namespace)
    cells = original.__closure__ or ()
    return namespace["_factory"](*(cell.cell_contents for cell in cells))
