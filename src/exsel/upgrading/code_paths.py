"""Follow the paths through a forward pass: through an attention function, or attention that is written out beside it.

Many classes have both, ``if self.flash: … else: …``. Calls can be inserted into the first only, so it must be the one
that runs. Conditions on the module's own attributes are evaluated here. Conditions on the call's arguments cannot be:
the check at the end of each forward pass covers them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from exsel.upgrading.rewriting import CallSites

#: One path: the set of those of the following that lie on it.
Path = frozenset[str]
_ATTENTION, _SOFTMAX, _END = "attention", "softmax", "end"
_EMPTY: frozenset[Path] = frozenset({frozenset()})


def code_path_refusal(module: Any, cls: type, sites: CallSites, switches: set[str]) -> str:
    """Why a module cannot be upgraded at its attention function alone; empty if it can be."""
    finder = _PathFinder(module, cls, switches)
    found = finder.method(sites)
    if not any(_ATTENTION in path for path in found):
        chosen = ", ".join(f"{name}={value}" for name, value in finder.conditions.items())
        return f"{cls.__name__} writes its attention out when {chosen}: switch to its attention function"
    if any({_ATTENTION, _SOFTMAX} <= path for path in found):
        return f"{cls.__name__} writes its attention out in code that is not known here"
    return ""


def _joined(first: frozenset[Path], second: frozenset[Path]) -> frozenset[Path]:
    """Each path of ``first``, continued by each of ``second`` unless it has ended."""
    return frozenset(one if _END in one else one | other for one in first for other in second)


class _PathFinder:
    def __init__(self, module: Any, cls: type, switches: set[str]) -> None:
        self.module, self.cls, self.switches = module, cls, switches
        self.conditions: dict[str, bool] = {}

    def method(self, sites: CallSites) -> frozenset[Path]:
        """All paths through a method; a return in it does not end its caller."""
        return frozenset(path - {_END} for path in self.body(sites.method.definition.body, sites))

    def body(self, statements: Iterable[ast.stmt], sites: CallSites) -> frozenset[Path]:
        paths = _EMPTY
        for statement in statements:
            paths = _joined(paths, self.statement(statement, sites))
        return paths

    def statement(self, statement: ast.stmt, sites: CallSites) -> frozenset[Path]:
        match statement:
            case ast.If():
                value = self.value(statement.test, sites)
                branches: frozenset[Path] = frozenset()
                if value is not False:
                    branches |= self.body(statement.body, sites)
                if value is not True:
                    branches |= self.body(statement.orelse, sites)
                return _joined(self.expression(statement.test, sites), branches)
            case ast.For() | ast.While():
                once = self.body(statement.body, sites)
                return once | _joined(once, once) | _EMPTY
            case ast.With():
                return self.body(statement.body, sites)
            case ast.Try():
                parts = [statement.body, *(handler.body for handler in statement.handlers), statement.orelse]
                return self.body([inner for part in parts for inner in part], sites)
            case ast.Raise():
                return frozenset()
            case ast.FunctionDef():
                return _EMPTY
            case ast.Return():
                return frozenset(path | {_END} for path in self.expression(statement, sites))
        return self.expression(statement, sites)

    def expression(self, root: ast.AST, sites: CallSites) -> frozenset[Path]:
        paths = _EMPTY
        for call in (node for node in ast.walk(root) if isinstance(node, ast.Call)):
            kind, name = sites.kind(call)
            called = ast.unparse(call.func)
            if kind in ("sdpa", "sdpa_tokens_first", "attend"):
                after = frozenset({frozenset({_ATTENTION})})
            elif kind == "of_layer" and name in sites.methods:
                after = self.method(sites.methods[name])
            # super() of this method is not rewritten and may attend: it counts as attention that is written out.
            elif "softmax" in called or called == f"super().{sites.method.function.__name__}":
                after = frozenset({frozenset({_SOFTMAX})})
            else:
                continue
            paths = _joined(paths, after)
        return paths

    def value(self, test: ast.expr, sites: CallSites) -> bool | None:
        """The value of a condition, if the module's own attributes determine it; else ``None``."""
        match test:
            case ast.Attribute(value=ast.Name(id=sites.layer), attr=name):
                value = name in self.switches or self.module.__dict__.get(name, getattr(self.cls, name, None))
                if not isinstance(value, bool):
                    return None
                self.conditions[name] = value
                return value
            case ast.UnaryOp(op=ast.Not()):
                inner = self.value(test.operand, sites)
                return None if inner is None else not inner
            case ast.BoolOp():
                decides = isinstance(test.op, ast.Or)
                values = [self.value(part, sites) for part in test.values]
                if decides in values:
                    return decides
                return None if None in values else not decides
        return None
