"""The ways through a forward pass: by an attention function, or by attention that is written out beside it.

Many classes have both, ``if self.flash: … else: …``. Calls can be put into the first only, so it must be the one that
is taken; what was chosen when the module was made is read off the module, and what its caller chooses is left to the
check at the end of each forward pass.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from exsel.upgrading.rewriting import Sites, attribute_of, is_attention_function, is_sdpa


@dataclass(frozen=True)
class Way:
    """What lies on one way through a method.

    Args:
        attention: a call of an attention function.
        softmax: a softmax.
        has_returned: whether it is at its end.
    """

    attention: bool = False
    softmax: bool = False
    has_returned: bool = False

    def then(self, other: Way) -> Way:
        """This way and, if it goes on, ``other``."""
        if self.has_returned:
            return self
        return Way(self.attention or other.attention, self.softmax or other.softmax, other.has_returned)


def refusal(module: nn.Module, cls: type, sites: Sites, switches: Mapping[str, bool]) -> str:
    """Why not to upgrade ``module``, of class ``cls``, by its attention function alone; empty where there is no reason.

    Args:
        module: as it is.
        cls: its class.
        sites: of its forward pass.
        switches: values that some of its attributes will have when it is upgraded.
    """
    walk = _Walk(module, cls, switches)
    found = walk.method(sites)
    if not any(way.attention for way in found):
        chosen = ", ".join(f"{name}={value}" for name, value in walk.switches.items())
        return f"{cls.__name__} writes its attention out when {chosen}: switch to its attention function"
    if any(way.attention and way.softmax for way in found):
        return f"{cls.__name__} writes its attention out in code that is not known here"
    return ""


def _is_of_parent(call: ast.Call, name: str) -> bool:
    """Whether the method ``name`` calls that of the class above, which stays as it is and may attend too."""
    return ast.unparse(call.func) == f"super().{name}"


class _Walk:
    def __init__(self, module: nn.Module, cls: type, chosen: Mapping[str, bool]) -> None:
        self.module = module
        self.cls = cls
        self.chosen = chosen
        self.switches: dict[str, bool] = {}

    def method(self, sites: Sites) -> frozenset[Way]:
        """All ways through a method of the class; none of them ends its caller."""
        ways = self.body(sites.method.definition.body, sites)
        return frozenset(Way(way.attention, way.softmax) for way in ways)

    def body(self, statements: Iterable[ast.stmt], sites: Sites) -> frozenset[Way]:
        ways = frozenset({Way()})
        for statement in statements:
            after = self.statement(statement, sites)
            ways = frozenset(way.then(other) for way in ways for other in after)
        return ways

    def statement(self, statement: ast.stmt, sites: Sites) -> frozenset[Way]:
        match statement:
            case ast.If():
                chosen = self.truth(statement.test, sites)
                ways: frozenset[Way] = frozenset()
                if chosen is not False:
                    ways |= self.body(statement.body, sites)
                if chosen is not True:
                    ways |= self.body(statement.orelse, sites)
                tested = self.expressions([statement.test], sites)
                return frozenset(first.then(second) for first in tested for second in ways)
            case ast.For() | ast.While():
                once = self.body(statement.body, sites)
                often = once | frozenset(first.then(second) for first in once for second in once)
                return often | {Way()}
            case ast.With():
                return self.body(statement.body, sites)
            case ast.Try():
                parts = [statement.body, *(handler.body for handler in statement.handlers), statement.orelse]
                return self.body([inner for part in parts for inner in part], sites)
            case ast.Raise():
                return frozenset()
            case ast.FunctionDef():
                return frozenset({Way()})
            case _:
                returns = isinstance(statement, ast.Return)
                ways = self.expressions([statement], sites)
                return frozenset(Way(way.attention, way.softmax, returns) for way in ways)

    def expressions(self, nodes: Iterable[ast.AST], sites: Sites) -> frozenset[Way]:
        ways = frozenset({Way()})
        for call in (node for root in nodes for node in ast.walk(root) if isinstance(node, ast.Call)):
            called = attribute_of(call.func, sites.method.receiver)
            if is_sdpa(call, sites.method) or is_attention_function(call, sites.method.receiver):
                after = frozenset({Way(attention=True)})
            elif called in sites.methods:
                after = self.method(sites.methods[called])
            elif "softmax" in ast.unparse(call.func) or _is_of_parent(call, sites.method.function.__name__):
                after = frozenset({Way(softmax=True)})
            else:
                continue
            ways = frozenset(way.then(other) for way in ways for other in after)
        return ways

    def truth(self, test: ast.expr, sites: Sites) -> bool | None:
        """Whether a test holds for this module, as far as its own attributes tell."""
        name = attribute_of(test, sites.method.receiver)
        if name is not None:
            value = self.chosen.get(name, self.module.__dict__.get(name, getattr(self.cls, name, None)))
            if not isinstance(value, bool):
                return None
            self.switches[name] = value
            return value
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand, sites)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            decides = isinstance(test.op, ast.Or)
            parts = [self.truth(part, sites) for part in test.values]
            if decides in parts:
                return decides
            return None if None in parts else not decides
        return None
