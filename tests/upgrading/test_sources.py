from __future__ import annotations

import functools
import importlib.util
import inspect
import linecache
import py_compile
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.deprecation import deprecate_kwarg

import exsel
from exsel.nn.projections import Projections
from exsel.upgrading.rewriting import find_sites, rewrite
from exsel.upgrading.sources import RewritingError

if TYPE_CHECKING:
    from nowhere import Heads  # type: ignore[import-not-found]

SOURCE = """
import torch.nn.functional as F
from torch import nn

class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value).squeeze(1)
"""
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def module_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The name of a module that may be put into ``tmp_path``, or into an archive there."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "archive.zip")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "exsel_own_attention"
    sys.modules.pop("exsel_own_attention", None)


def _import(name: str) -> Any:
    importlib.invalidate_caches()
    return importlib.import_module(name).OwnAttention()


def _is_upgraded(layer: Any) -> bool:
    """Whether the first token, which would see itself alone, gives nothing: exclusive attention does that."""
    exsel.upgrade(layer, exclusive=True)
    return bool(layer(X[:, :1]).abs().max() < 1e-6)


@pytest.mark.parametrize(
    ("edit", "is_refused"),
    [
        (lambda text: text.replace("(query, key, value)", "(query, key, 2 * value)"), True),
        (lambda text: text.replace("unsqueeze(1)", "unsqueeze(True)"), True),
        (lambda text: text.replace("chunk(3, -1)", "split(8, -1)"), True),
        (lambda text: "", True),
        (lambda text: "def broken(:", True),
        (lambda text: '"""Now it says what it is."""\n' + text, False),
        (lambda text: text + "\nclass OwnAttentionToo(OwnAttention):\n    def forward(self, x): return x\n", False),
    ],
)
def test_a_file_edited_after_it_was_imported(
    edit: Callable[[str], str], is_refused: bool, module_name: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{module_name}.py"
    file.write_text(SOURCE)
    layer = _import(module_name)
    file.write_text(edit(SOURCE))
    if is_refused:
        with pytest.raises(exsel.UpgradeError, match=r"other code than its source says|no Python source"):
            exsel.upgrade(layer, exclusive=True)
    else:
        assert _is_upgraded(layer)


def test_a_function_whose_code_is_exchanged(module_name: str, tmp_path: Path) -> None:
    """As notebooks do that load an edited file again."""
    file = tmp_path / f"{module_name}.py"
    file.write_text(SOURCE)
    layer = _import(module_name)
    exsel.upgrade(layer, exclusive=True)
    file.write_text(SOURCE.replace(".squeeze(1)", ".squeeze(1) + 1"))
    namespace: dict[str, Any] = {"__name__": module_name}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    original = type(layer).exsel_original.forward
    original.__code__ = namespace["OwnAttention"].forward.__code__
    with pytest.raises(RuntimeError, match="was replaced"):
        layer(X)
    exsel.upgrade(exsel.downgrade(layer), exclusive=True)
    assert torch.equal(layer(X[:, :1]).round(decimals=4), torch.ones(2, 1, 8))


def _made_by_exec(name: str, folder: Path) -> Any:
    return _executed("<string>")


def _executed(filename: str) -> Any:
    namespace: dict[str, Any] = {"__name__": "somewhere"}
    exec(compile(SOURCE, filename, "exec"), namespace)
    return namespace["OwnAttention"]()


def _from_a_closed_notebook(name: str, folder: Path) -> Any:
    return _executed("/tmp/ipykernel_17/2718281828.py")


def _from_bytecode_alone(name: str, folder: Path) -> Any:
    (folder / f"{name}.py").write_text(SOURCE)
    py_compile.compile(str(folder / f"{name}.py"), cfile=str(folder / f"{name}.pyc"))
    (folder / f"{name}.py").unlink()
    return _import(name)


def _from_an_archive_of_bytecode(name: str, folder: Path) -> Any:
    source = folder / "elsewhere.py"
    source.write_text(SOURCE)
    py_compile.compile(str(source), cfile=str(folder / "code"), dfile=f"/built/{name}.py")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.write(folder / "code", f"{name}.pyc")
    return _import(name)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (_made_by_exec, "it was made by exec"),
        (_from_a_closed_notebook, "a notebook whose cell is gone"),
        (_from_bytecode_alone, r"a \.pyc file alone"),
        (_from_an_archive_of_bytecode, "an archive that holds its bytecode alone"),
    ],
)
def test_where_no_source_is(made: Callable[[str, Path], Any], reason: str, module_name: str, tmp_path: Path) -> None:
    layer = made(module_name, tmp_path)
    with pytest.raises(exsel.UpgradeError, match=f"OwnAttention has no Python source to read: .*{reason}"):
        exsel.upgrade(nn.Sequential(layer), exclusive=True)


def test_attention_by_another_name_is_not_overlooked() -> None:
    """Nothing but its bytecode says that the class attends."""
    namespace: dict[str, Any] = {"__name__": "somewhere"}
    exec(SOURCE.replace("OwnAttention", "Mixer"), namespace)
    model = nn.Sequential(namespace["Mixer"](), _executed_in_a_notebook())
    with pytest.raises(exsel.UpgradeError, match="Mixer has no Python source"):
        exsel.upgrade(model, exclusive=True)


def _executed_in_a_notebook() -> Any:
    linecache.cache["<cell 7>"] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), "<cell 7>")
    return _executed("<cell 7>")


def test_source_in_an_archive_and_in_a_notebook(module_name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr(f"{module_name}.py", SOURCE)
    assert _is_upgraded(_import(module_name))
    assert _is_upgraded(_executed_in_a_notebook())


def _noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs) * 2

    return noting


class Layer(nn.Module):
    """What a method may have that a copy of its text alone would lose."""

    LIMIT: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj, self.__out = (nn.Linear(8, 8) for _ in range(4))

    @deprecate_kwarg("states", new_name="x", version="99.0")
    @torch.no_grad()
    def forward(this, /, x: Tensor, limit: list[int] = LIMIT, *, text: str = "a\n    b") -> Tensor:  # noqa: N805
        assert text == "a\n    b"

        def heads(states: Tensor) -> Heads:
            return states.unflatten(-1, (2, 4)).transpose(1, 2)

        limit.append(len(x))
        y = this.mixed(heads(this.q_proj(x)), heads(this.k_proj(x)), heads(this.v_proj(x)))
        assert super().forward is not None
        return this.__out(y.transpose(1, 2).flatten(-2))

    def mixed(layer, /, *states: Tensor) -> Tensor:  # noqa: N805
        return F.scaled_dot_product_attention(*states)


def test_what_is_around_a_method_stays() -> None:
    layer: Any = Layer()
    plain = layer(X)
    Layer.LIMIT.clear()
    exsel.upgrade(layer, exclusive=True, selective=True)
    z = layer(X)
    assert not torch.allclose(z, plain)
    assert not z.requires_grad
    assert Layer.LIMIT == [2]
    with pytest.warns(FutureWarning, match="states"):
        assert torch.equal(layer(states=X), z)
    assert exsel.support(layer).refusals == ()


def test_the_source_that_runs_can_be_read() -> None:
    layer: Any = exsel.upgrade(Layer(), exclusive=True)
    source = inspect.getsource(layer.forward)
    assert "_exsel = this._exsel_begin()" in source
    assert "_exsel.project('q_proj', this.q_proj, x)" in source
    assert "_exsel.sdpa(F.scaled_dot_product_attention, *states)" in inspect.getsource(layer._exsel_mixed)
    assert inspect.signature(layer.forward).parameters.keys() == {"x", "limit", "text"}
    assert layer.forward.__code__.co_filename != __file__  # that of transformers' decorator
    assert rewrite(Layer, Projections({}))["_exsel_mixed"].__code__.co_filename == __file__


def test_an_unknown_wrapper_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "mixed", _noted(Layer.mixed))
    with pytest.raises(exsel.UpgradeError, match=r"a mixed wrapped by \S+test_sources\._noted\.<locals>\.noting"):
        exsel.upgrade(Layer(), exclusive=True)
    monkeypatch.undo()
    monkeypatch.setattr(Layer, "forward", _noted(Layer.forward))
    with pytest.raises(exsel.UpgradeError, match=r"a forward wrapped by \S+test_sources\._noted\.<locals>\.noting"):
        exsel.upgrade(Layer(), exclusive=True)


def test_a_wrapped_method_that_does_not_attend_stays_as_it_is() -> None:
    class Normed(Layer):
        @_noted
        def normed(self, x: Tensor) -> Tensor:
            return x

        def forward(self, x: Tensor) -> Tensor:
            return self.mixed(*(self.normed(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj)))

    layer = Normed()
    expected = layer(X[:, :1])
    assert torch.allclose(expected, 2 * layer.v_proj(X[:, :1]))
    exsel.upgrade(layer, exclusive=True)
    assert layer(X[:, :1]).abs().max() < 1e-6


@pytest.mark.parametrize("forward", [staticmethod(lambda x: x), lambda: None, functools.partial(print)])
def test_what_is_no_method_is_refused(forward: Any) -> None:
    cls = type("Odd", (nn.Module,), {"forward": forward})
    with pytest.raises(RewritingError):
        find_sites(cls)
