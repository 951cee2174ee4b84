"""The C++ passes as a library: compiled once, kept, checked, and done without."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import exsel
from exsel.kernels import cpp

NEEDS_COMPILER = pytest.mark.skipif(not cpp.available(), reason=cpp.why_not() or "there is a compiler")


def next_process() -> None:
    """Forget what was found."""
    cpp._found = None


@pytest.fixture
def short_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compiles in no time."""
    path = tmp_path / "short.cpp"
    path.write_text(" ".join(f'extern "C" void {name}(void*) {{}}' for name in cpp._SYMBOLS))
    monkeypatch.setattr(cpp, "_SOURCE", path)
    return path


def compiler_script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return shlex.quote(str(path))


def use_compiler(monkeypatch: pytest.MonkeyPatch, path: Path, body: str) -> str:
    """Let $CXX be a script that answers --version and does what the body says."""
    script = compiler_script(path, f'[ "$1" = --version ] && exit 0\n{body}')
    monkeypatch.setenv("CXX", script)
    return script


def is_alive(process: Path) -> bool:
    """Whether the process of this folder of /proc runs: neither gone nor a zombie."""
    try:
        return "zombie" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestWithoutCompiler:
    def test_none(self, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert not cpp.available()
        assert cpp.why_not() == "no C++ compiler was found (c++, g++ or clang++; CXX can name another)"

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("no-such-compiler -v", "CXX names the C++ compiler 'no-such-compiler', which is not there"),
            ('g++ "-O2', "CXX='g++ \"-O2' cannot be read: No closing quotation"),
        ],
    )
    def test_named_in_vain(self, value: str, reason: str, fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", value)
        assert not cpp.available()
        assert cpp.why_not() == reason

    def test_broken(
        self,
        fresh_build: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The operators work without it, and one warning says why they are slower."""
        failing = 'echo warming up >&2; echo "fatal error: no disk" >&2; exit 1'
        use_compiler(monkeypatch, tmp_path / "cc", failing)
        reason = f"the C++ compiler {tmp_path / 'cc'} said: fatal error: no disk"
        y = torch.randn(1, 2, 3, 4)
        for _ in range(2):
            torch.testing.assert_close(exsel.exclude(y, y), torch.zeros_like(y), rtol=0, atol=1e-6)
        assert cpp.why_not() == reason
        assert [record.levelname for record in caplog.records if reason in record.message] == ["WARNING"]
        assert not list(fresh_build.iterdir()), "nothing half-made is left"

    @pytest.mark.parametrize(
        "content",
        ["echo text", pytest.param("echo | g++ -x c++ -shared -fPIC - -o /dev/stdout", id="no symbols")],
    )
    def test_writes_no_library_of_ours(
        self, content: str, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_compiler(monkeypatch, tmp_path / "cc", f'for last; do :; done; {content} > "$last"')
        assert not cpp.available()
        assert "does not load" in cpp.why_not()

    def test_is_no_program(self, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "cc").write_text("no program")
        (tmp_path / "cc").chmod(0o700)
        monkeypatch.setenv("CXX", shlex.quote(str(tmp_path / "cc")))
        assert not cpp.available()
        assert "does not start" in cpp.why_not()

    @pytest.mark.parametrize("when", ["asked for its version", "compiling"])
    def test_hangs(self, when: str, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is stopped, with the programs that it has started."""
        pid = tmp_path / "pid"
        hang = f"sleep 1000 & echo $! > '{pid}'; wait"
        if when == "compiling":
            use_compiler(monkeypatch, tmp_path / "cc", hang)
            monkeypatch.setattr(cpp, "_COMPILE_SECONDS", 0.5)
        else:
            monkeypatch.setenv("CXX", compiler_script(tmp_path / "cc", hang))
            monkeypatch.setattr(cpp, "_ANSWER_SECONDS", 0.5)
        assert not cpp.available()
        assert cpp.why_not().endswith("took more than 0.5 s")
        child = Path(f"/proc/{pid.read_text().strip()}")
        # A killed program ends when the kernel next runs it, which on a busy machine is a moment later.
        deadline = time.monotonic() + 30
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(child)

    def test_asks_nobody(self, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program that reads what is typed finds the end of it at once."""
        monkeypatch.setenv("CXX", compiler_script(tmp_path / "cc", "cat; exit 1"))
        assert not cpp.available()

    def test_switched_off(self, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", compiler_script(tmp_path / "cc", f"touch '{tmp_path / 'ran'}'"))
        exsel.use_cpp(False)
        try:
            y = torch.randn(1, 2, 3, 4, requires_grad=True)
            exsel.exclude(y, y).sum().backward()
            assert "since exsel.use_cpp(False) says so" in exsel.explain_backend(y, y, y, exclusive=True)
        finally:
            exsel.use_cpp(True)
        assert not (tmp_path / "ran").exists()

    def test_explaining_runs_no_compiler(
        self, fresh_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", compiler_script(tmp_path / "cc", f"touch '{tmp_path / 'ran'}'"))
        y = torch.randn(1, 2, 3, 4)
        text = exsel.explain_backend(y, y, y, exclusive=True)
        assert "one loop in C++, which the first call compiles or finds compiled" in text
        assert not (tmp_path / "ran").exists()


@NEEDS_COMPILER
class TestBuild:
    def libraries(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("**/*.so"))

    def test_kept_for_the_next_process(
        self, fresh_build: Path, short_source: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "exsel")
        assert cpp.available()
        (library,) = fresh_build.iterdir()
        assert fresh_build.stat().st_mode & 0o777 == 0o700
        made = library.stat().st_ino
        next_process()
        assert cpp.available()
        assert library.stat().st_ino == made
        (said,) = [record.message for record in caplog.records]
        assert said.startswith("compiling the CPU's passes with ")
        assert str(fresh_build) in said
        assert "exsel.use_cpp(False)" in said

    def test_made_anew_for_another_source(self, fresh_build: Path, short_source: Path) -> None:
        assert cpp.available()
        short_source.write_text(short_source.read_text() + "\n")
        next_process()
        assert cpp.available()
        assert len(self.libraries(fresh_build)) == 2

    @pytest.mark.parametrize("damage", [lambda content: content[:3000], lambda content: content[::-1]])
    def test_made_anew_if_damaged(
        self, damage: Callable[[bytes], bytes], fresh_build: Path, short_source: Path
    ) -> None:
        """To load a library that was cut would end the process with SIGBUS."""
        assert cpp.available()
        (library,) = self.libraries(fresh_build)
        whole = library.read_bytes()
        library.unlink()  # this process has it in memory
        library.write_bytes(damage(whole))
        next_process()
        assert cpp.available()
        assert library.read_bytes() == whole

    def test_what_is_old_is_removed(self, fresh_build: Path, short_source: Path) -> None:
        def leave(name: str, age: float) -> Path:
            path = fresh_build / name
            path.mkdir() if name.startswith("build-") else path.touch()
            os.utime(path, (0, time.time() - age))
            return path

        fresh_build.mkdir(mode=0o700, parents=True)
        day = 24 * 3600
        old = [leave("passes-a-b.so", 40 * day), leave("passes-c.so", 40 * day), leave("build-x", 2 * 3600)]
        recent = [leave("passes-d-e.so", 20 * day), leave("build-y", 60), leave("somebody-elses", 40 * day)]
        assert cpp.available()
        assert not any(path.exists() for path in old)
        assert all(path.exists() for path in recent)

    def test_a_home_for_reading_alone(
        self, fresh_build: Path, short_source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was kept there is used; where nothing was, the library is built elsewhere and not kept."""
        run, commands = cpp._run, []
        monkeypatch.setattr(cpp, "_run", lambda command, seconds: (commands.append(command), run(command, seconds))[1])
        assert cpp.available()
        assert len(commands) == 2
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != fresh_build and access(path, mode))
        next_process()
        assert cpp.available()
        assert len(commands) == 3
        self.libraries(fresh_build)[0].unlink()
        next_process()
        assert cpp.available(), cpp.why_not()
        assert not list(fresh_build.iterdir())

    @pytest.mark.parametrize("refused", ["-fopenmp", "-march=native", "-fopenmp -march=native -fopenmp-simd"])
    def test_flags_that_are_refused(
        self, refused: str, fresh_build: Path, short_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler = " ".join(cpp._find_compiler())
        checks = "\n".join(
            f'for flag; do [ "$flag" = {flag} ] && {{ echo "error: unknown $flag" >&2; exit 1; }}; done'
            for flag in refused.split()
        )
        monkeypatch.setenv("CXX", compiler_script(tmp_path / "cc", f'{checks}\nexec {compiler} "$@"'))
        assert cpp.available(), cpp.why_not()

    def test_no_folder_to_keep_it_in(self, fresh_build: Path, short_source: Path) -> None:
        fresh_build.parent.write_text("a file where the folder should be")
        assert cpp.available(), cpp.why_not()

    def test_folder_that_others_can_write_to(self, fresh_build: Path, short_source: Path) -> None:
        fresh_build.mkdir(parents=True)
        fresh_build.chmod(0o777)
        assert cpp.available(), cpp.why_not()
        assert not self.libraries(fresh_build)

    def test_library_of_somebody_else(
        self, fresh_build: Path, short_source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert cpp.available()
        (library,) = self.libraries(fresh_build)
        next_process()
        owner, load, loaded = os.geteuid(), ctypes.CDLL, []
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        monkeypatch.setattr(ctypes, "CDLL", lambda path: (loaded.append(Path(path)), load(path))[1])
        assert cpp.available(), cpp.why_not()
        assert [path.name for path in loaded] == [library.name]
        assert loaded[0].parent != fresh_build

    def test_threads_build_once(
        self, fresh_build: Path, short_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, compiler = tmp_path / "log", " ".join(cpp._find_compiler())
        script = compiler_script(tmp_path / "cc", f'echo "$1" >> "{log}"; exec {compiler} "$@"')
        monkeypatch.setenv("CXX", script)
        answers: list[bool] = []
        threads = [threading.Thread(target=lambda: answers.append(cpp.available())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 4
        assert log.read_text().split() == ["--version", cpp._FLAGS[0][0]]

    def test_two_processes_at_once(self, fresh_build: Path, short_source: Path) -> None:
        """Threads without the lock that threads have."""
        found: list[cpp._Outcome] = []
        threads = [threading.Thread(target=lambda: found.append(cpp._find())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [outcome.why_not for outcome in found] == ["", ""]
        assert len(list(fresh_build.iterdir())) == 1
