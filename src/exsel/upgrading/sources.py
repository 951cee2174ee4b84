"""Read the source of a method, and check that it is the source of the code that runs.

A file may have been edited since it was imported, and some classes come from no file. So the source is compiled again,
and used only if this gives the method's own bytecode. Line numbers may differ.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import inspect
import itertools
import linecache
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourcelessFileLoader
from typing import Any
from zipimport import zipimporter

import torch.nn.functional as F

#: The flags of a code object that say which ``from __future__`` imports it was compiled with.
_FUTURE = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)
#: Packages whose decorators call the method that they wrap. They stay around a rewritten method.
_HARMLESS = ("transformers.", "diffusers.", "timm.", "torch.utils._contextlib", "torch.amp.")
#: Names of attention functions.
_ATTENTION = re.compile(
    r"(scaled_dot_product|memory_efficient|flex)_attention|flash_attn_\w*func|attention_interface|dispatch_attention_fn"
)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
#: The name of pytest's import in a module whose assertions it has rewritten.
_PYTEST = "@pytest_ar"


class RewritingError(ValueError):
    """A forward pass cannot be rewritten. The message goes on from the class's name: "GPT2Attention …"."""


#: The attribute of a class that is the method, the function inside its wrappers, and that function's code.
Read = tuple[types.FunctionType, types.FunctionType, types.CodeType]


@dataclass(frozen=True, eq=False)
class Method:
    """A method of a class, with its source."""

    attribute: types.FunctionType
    function: types.FunctionType  # ``attribute`` without its wrappers
    wrappers: tuple[types.FunctionType, ...]  # outermost first
    module: ast.Module  # the statement that defines it, and those of its file that define nothing, like imports
    definition: ast.FunctionDef

    @property
    def parameters(self) -> list[str]:
        """The names of the positional parameters."""
        arguments = self.definition.args
        return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]

    @property
    def as_read(self) -> Read:
        """What tells later whether the class still has this method."""
        return self.attribute, self.function, self.function.__code__

    def rewritten(self, change: Callable[[ast.FunctionDef], object]) -> types.FunctionType:
        """The method, compiled from a copy of its definition that ``change`` has edited.

        Globals, defaults, closure, wrappers and line numbers stay. ``inspect.getsource`` shows the rewritten source.
        """
        module, definition = copy.deepcopy((self.module, self.definition))
        change(definition)
        ast.fix_missing_locations(module)
        function, first = self.function, _first_line(definition)
        code = next(
            code
            for code in _codes(_compile(module, function.__code__))
            if (code.co_firstlineno, code.co_qualname) == (first, function.__code__.co_qualname)
        )
        made = _like(function, code, closure_cells(function))
        # inspect.getsource follows __wrapped__: there it finds the same bytecode, in a file with the rewritten source.
        made.__wrapped__ = _like(function, _readable(code, definition), closure_cells(function))  # type: ignore[attr-defined]
        inner = function
        for wrapper in reversed(self.wrappers):
            cells = {
                name: types.CellType(made) if content(cell) is inner else cell
                for name, cell in closure_cells(wrapper).items()
            }
            made, inner = _like(wrapper, wrapper.__code__, cells, __wrapped__=made), wrapper
        return made


def read(cls: type, name: str) -> Method:
    """Method ``name`` of ``cls``; a RewritingError if it is no plain one, or no source gives the bytecode that runs."""
    attribute = inspect.getattr_static(cls, name)
    if not isinstance(attribute, types.FunctionType):
        raise RewritingError(f"has a {name} that is not a plain method")
    wrappers: list[types.FunctionType] = []
    function = attribute
    while (inner := vars(function).get("__wrapped__")) is not None:
        held = [cell for cell in closure_cells(function).values() if content(cell) is inner]
        others = [value for key, value in vars(function).items() if value is inner and key != "__wrapped__"]
        if not isinstance(inner, types.FunctionType) or not _is_harmless(function) or len(held) != 1 or others:
            raise RewritingError(
                f"has a {name} wrapped by {_place(function)}, of which nothing is known here: take the wrapper off, "
                "upgrade, and put it on again"
            )
        wrappers.append(function)
        function = inner
    method = Method(attribute, function, tuple(wrappers), *_source(function))
    if not method.parameters:
        raise RewritingError(f"has a {name} without a parameter for the layer itself")
    return method


def described(function: Any) -> str:
    """Where ``function`` was defined, whatever name it has now and whichever harmless wrappers are around it."""
    while (inner := getattr(function, "__wrapped__", None)) is not None and _is_harmless(function):
        function = inner
    return _place(function)


def _place(function: Any) -> str:
    """``package.module.outer.<locals>.inner``."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if not isinstance(code, types.CodeType):
        return f"{type(function).__module__}.{type(function).__qualname__}"
    names = getattr(function, "__globals__", {})
    return f"{names.get('__name__', code.co_filename)}.{code.co_qualname}"


def replacement(cls: type, name: str) -> str:
    """Where method ``name`` of ``cls`` was defined, if not in the class that holds it; else empty."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    place = described(vars(owner)[name])
    return "" if place == f"{owner.__module__}.{owner.__qualname__}.{name}" else place


def _is_harmless(wrapper: Any) -> bool:
    return str(getattr(wrapper, "__globals__", {}).get("__name__")).startswith(_HARMLESS)


def may_attend(cls: type, name: str = "forward") -> bool:
    """Whether the bytecode of method ``name`` of ``cls``, or of what it calls, names an attention function.

    It follows methods of the class, functions of the same module, and functions in closures (a patch's original).
    """
    functions: list[Any] = [getattr(cls, name, None)]
    for wrapped in functions:
        function = inspect.unwrap(wrapped)
        if not isinstance(function, types.FunctionType):
            continue
        called = [content(cell) for cell in closure_cells(function).values()]
        for named in {named for code in _codes(function.__code__) for named in code.co_names + code.co_varnames}:
            value = function.__globals__.get(named)
            if _ATTENTION.fullmatch(named) or value is F.scaled_dot_product_attention:
                return True
            called.append(inspect.getattr_static(cls, named, None))
            if getattr(value, "__globals__", None) is function.__globals__:
                called.append(value)
        functions += [each for each in called if isinstance(each, types.FunctionType) and each not in functions]
    return False


#: The keys are code and file: two files may hold equal code, one of them without its source. A function is no key:
#: notebooks that reload an edited file replace the code of its functions.
_SOURCES: dict[tuple[types.CodeType, str], tuple[ast.Module, ast.FunctionDef]] = {}


def _source(function: types.FunctionType) -> tuple[ast.Module, ast.FunctionDef]:
    key = (function.__code__, function.__code__.co_filename)
    if key not in _SOURCES:
        _SOURCES[key] = _find_source(function)
    return _SOURCES[key]


def _find_source(function: types.FunctionType) -> tuple[ast.Module, ast.FunctionDef]:
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not text:
        raise RewritingError(f"has no Python source to read: {_why_without_source(function)}")
    outermost, wanted = code.co_qualname.partition(".")[0], _without_places(code)
    found = []
    for statement in (statements := _statements(text)):
        if not _defines(statement, outermost):
            continue
        # The imports are kept: the compiler gives other bytecode for calls of an imported name's attributes.
        kept = [other for other in statements if other is statement or not isinstance(other, _DEFINITIONS)]
        module = ast.Module(kept, type_ignores=[])
        own = {made.co_firstlineno for made in _made_by(module, function) if _without_places(made) == wanted}
        definitions = [node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef)]
        found += [(module, node) for node in definitions if node.name == code.co_name and _first_line(node) in own]
    if not found:
        raise RewritingError(
            f"runs other code than its source says ({code.co_filename}): the file was edited after it was imported, or "
            "something changed the code on its way. Start Python anew, or upgrade first"
        )
    # Equal definitions may occur twice, as in both branches of a condition. The line number decides.
    return next((pair for pair in found if _first_line(pair[1]) == code.co_firstlineno), found[0])


def _why_without_source(function: types.FunctionType) -> str:
    name, loader = function.__code__.co_filename, function.__globals__.get("__loader__")
    if "ipykernel" in name or "ipython-input" in name:
        return "it was defined in a notebook whose cell is gone"
    if name.startswith("<"):
        return f"it was made by exec, or typed in, as {name}"
    if isinstance(loader, zipimporter):
        return f"it was imported from an archive that holds its bytecode alone ({name})"
    if isinstance(loader, SourcelessFileLoader):
        return f"it was imported from a .pyc file alone, without {name}"
    return f"there is no {name}"


@functools.lru_cache(maxsize=4)
def _statements(text: str) -> list[ast.stmt]:
    with warnings.catch_warnings(action="ignore"):
        try:
            return ast.parse(text).body
        except (SyntaxError, ValueError):
            return []


def _defines(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, _DEFINITIONS):
        return statement.name == name
    return any(isinstance(node, _DEFINITIONS) and node.name == name for node in ast.walk(statement))


def _made_by(module: ast.Module, function: types.FunctionType) -> Iterator[types.CodeType]:
    yield from _codes(_compile(module, function.__code__))
    if _PYTEST in function.__globals__ and "_pytest.assertion.rewrite" in sys.modules:
        from _pytest.assertion.rewrite import rewrite_asserts

        with_pytest = copy.deepcopy(module)
        rewrite_asserts(with_pytest, b"")
        yield from _codes(_compile(with_pytest, function.__code__))


def _compile(module: ast.Module, like: types.CodeType) -> types.CodeType:
    with warnings.catch_warnings(action="ignore"):
        made: types.CodeType = compile(
            module, like.co_filename, "exec", flags=like.co_flags & _FUTURE, dont_inherit=True
        )
    return made


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _without_places(code: types.CodeType) -> types.CodeType:
    """``code`` without its file and lines, under its qualified name: equal code is then the same code."""
    constants = tuple(_without_places(each) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    return code.replace(
        co_name=code.co_qualname, co_filename="", co_firstlineno=1, co_linetable=b"", co_consts=constants
    )


def _first_line(definition: ast.FunctionDef) -> int:
    return min((decorator.lineno for decorator in definition.decorator_list), default=definition.lineno)


def closure_cells(function: types.FunctionType) -> dict[str, types.CellType]:
    """The cells of the variables that ``function`` takes from the function around it, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def content(cell: types.CellType) -> Any:
    """The content of ``cell``; ``None`` if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _like(
    function: types.FunctionType, code: types.CodeType, cells: dict[str, types.CellType], **attributes: Any
) -> types.FunctionType:
    closure = tuple(cells[name] for name in code.co_freevars)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function)
    del made.__wrapped__  # type: ignore[attr-defined]
    made.__dict__.update(attributes)
    return made


_numbers = itertools.count(1)


def _readable(code: types.CodeType, definition: ast.FunctionDef) -> types.CodeType:
    """``code`` under a new file name, whose content for tracebacks and ``inspect`` is ``definition`` alone."""
    text = ast.unparse(definition) + "\n"
    name = f"<exsel {next(_numbers)}: {code.co_qualname} of {code.co_filename}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return code.replace(co_filename=name, co_firstlineno=1)
