"""Check a built wheel and source distribution: what is in them, and that the wheel works with torch alone.

    python -m build && python tests/check_package.py dist

The wheel goes into an empty environment, outside the checkout, where the README's first example must run. ``make
package`` does all of it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from readme import ROOT, python_examples

# Kinds of files beside Python's that the package reads: each is there.
SUFFIXES = {".typed", ".cpp", ".css", ".js", ".j2"}
UNWANTED = ("evidence", "tests", "docs", "examples")


def check_contents(wheel: Path, source: Path) -> None:
    """Every file of ``src/exsel`` is in the wheel with the licence, and nothing else; the source has what builds it."""
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = ROOT / "src"
    wanted = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in wanted} >= SUFFIXES
    assert wanted <= inside, f"{wheel.name} lacks {sorted(wanted - inside)}"
    information = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info/"
    others = {name for name in inside - wanted if not name.startswith(information)}
    assert not others, f"{wheel.name} has {sorted(others)}"
    assert f"{information}licenses/LICENSE" in inside, f"{wheel.name} has no licence"
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", *(f"src/{name}" for name in wanted)}
    assert needed <= names, f"{source.name} lacks {sorted(needed - names)}"
    unwanted = sorted(name for name in names if name.split("/")[0] in UNWANTED)
    assert not unwanted, f"{source.name} has {unwanted}"


def check_example(wheel: Path) -> None:
    """The README's first example runs with the wheel, torch and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=folder)
        is_installed = "import exsel, sys; assert exsel.__file__.startswith(sys.prefix), exsel.__file__\n"
        # -I: neither the working folder nor PYTHONPATH; what is not in the environment is not found.
        subprocess.run([python, "-I", "-c", is_installed + python_examples()[0]], check=True, cwd=folder)
        said = subprocess.run(
            [str(environment / "bin" / "exsel"), "--version"], check=True, cwd=folder, capture_output=True, text=True
        )
        assert said.stdout == f"exsel {wheel.name.split('-')[1]}\n", said.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one file of a pattern."""
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{folder} has {len(found)} files {pattern}: empty it, and build again"
    return found[0].resolve()


if __name__ == "__main__":
    dist = Path(sys.argv[1])
    wheel = only(dist, "*.whl")
    check_contents(wheel, only(dist, "*.tar.gz"))
    check_example(wheel)
    print(f"{wheel.name}: whole, and works with torch alone")
