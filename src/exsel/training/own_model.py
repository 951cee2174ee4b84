"""A model of the user's own, built by a function that they wrote: called, checked and saved as training needs it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from exsel.errors import ExselError, explained
from exsel.files import file_sha256, write_json

#: Builds a model; it is called with those of ``vocab_size`` and ``seq_len`` that it takes, and draws from torch's seed.
Factory = Callable[..., nn.Module]

_WEIGHTS, _DESCRIPTION = "model.safetensors", "own_model.json"


def is_factory(model: str) -> bool:
    """Whether ``--model`` names a function: ``package.module:name`` or ``file.py:name``, and is no file."""
    return ":" in model and not Path(model).exists()


def find_factory(model: str) -> Factory:
    """The function that ``--model`` names; its module is imported, from the current folder too."""
    place, _, name = model.rpartition(":")
    with explained(f"--model {model} cannot be imported"):
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise ExselError(f"no such file: {place}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            if str(path.parent) not in sys.path:
                sys.path.insert(0, str(path.parent))  # for what the file imports from beside it
            if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path):
                module = sys.modules[path.stem]
            else:
                module = importlib.util.module_from_spec(spec)
                sys.modules[path.stem] = module  # where source code is looked up when the model is upgraded
                spec.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                raise ExselError(f"no module {error.name!r}") from error
        factory = getattr(module, name, None)
    if not callable(factory):
        raise ExselError(f"--model {model}: {place} has no function {name!r}")
    return factory  # type: ignore[no-any-return]


def factory_name(factory: Factory) -> str:
    """``module:name`` of a function, for the record."""
    return f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__qualname__)}"


def source_sha256(factory: Factory) -> str | None:
    """SHA-256 of the file that defines a function, in hexadecimal; ``None`` if it is in none, as in a notebook."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:
        return None
    if path is None or not Path(path).is_file():
        return None
    return file_sha256(Path(path))


def call_factory(factory: Factory, *, vocab_size: int, seq_len: int) -> nn.Module:
    """A new module of the user's; an error of their function is explained."""
    offered = {"vocab_size": vocab_size, "seq_len": seq_len}
    signature, name = inspect.signature(factory), factory_name(factory)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    given = {key: value for key, value in offered.items() if takes_all or key in signature.parameters}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ExselError(
            f"{name}: {error}: it may take vocab_size and seq_len, and needs defaults for others"
        ) from error
    with explained(f"{name} cannot build its model"):
        module = factory(**given)
    if not isinstance(module, nn.Module):
        raise ExselError(f"{name} must return a torch.nn.Module, and returned {type(module).__name__}")
    return module


class OwnModel(nn.Module):
    """A module of the user's, called as transformers' models are.

    Its ``forward`` takes token ids first, and may take ``labels`` (the ids again, −100 where nothing is predicted; it
    shifts them itself) or ``targets`` (the next ids), and ``position_ids``. It gives logits ``[B, T, V]`` alone, in a
    tuple or a mapping, or as the attribute ``logits``. With ``labels`` its own loss is trained, if it gives one.
    Otherwise the loss is the mean cross-entropy of the next token.

    Args:
        module: the user's.
        description: what its checkpoints say of it, as JSON types.
    """

    def __init__(self, module: nn.Module, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.description = module, description
        parameters = inspect.signature(module.forward).parameters
        self._takes = {"labels", "targets", "position_ids"} & parameters.keys()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
    ) -> CausalLMOutput:
        """The logits and, with ``labels``, the loss."""
        inputs: dict[str, Tensor] = {}
        if position_ids is not None:
            if "position_ids" not in self._takes:
                raise ExselError(f"{self._name} takes no position_ids, which keep documents apart: use --pack concat")
            inputs["position_ids"] = position_ids
        if "labels" in self._takes:
            inputs["labels"] = input_ids if labels is None else labels
        elif "targets" in self._takes:
            inputs["targets"] = input_ids.roll(-1, dims=1)  # nanoGPT gives all logits only where there are targets
        logits, own = _parts(self.module(input_ids, **inputs))
        if logits is None or logits.shape[:2] != input_ids.shape:
            shape = None if logits is None else list(logits.shape)
            raise ExselError(
                f"{self._name} must give logits of [B, T, V] for ids of {list(input_ids.shape)}; got {shape}"
            )
        loss = None
        if labels is not None:
            loss = own if own is not None and "labels" in self._takes else next_token_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def check_loss(self, tokens: Tensor) -> None:
        """Refuse a loss of the module's own that compares each token with itself, not with the next."""
        if "labels" not in self._takes:
            return
        output = self(tokens, labels=tokens)
        copying = F.cross_entropy(output.logits.flatten(0, 1).float(), tokens.flatten())
        predicting = next_token_loss(output.logits, tokens)
        if abs(output.loss - copying) < abs(output.loss - predicting) and torch.isclose(
            output.loss, copying, rtol=1e-3
        ):
            raise ExselError(
                f"the loss of {self._name} compares each token with itself, and labels are the ids that it is given: "
                "shift them in forward, or return the logits alone"
            )

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Save the weights of the user's module, under its own names, and what it is."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_model(self.module, str(Path(folder, _WEIGHTS)), metadata={"format": "pt"})
        write_json(Path(folder, _DESCRIPTION), self.description)

    def load(self, folder: str | Path) -> None:
        """Read the weights that :meth:`save_pretrained` wrote."""
        load_model(self.module, Path(folder, _WEIGHTS))


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ``labels[:, 1:]`` in nats, where they are not −100; in float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def _parts(output: Any) -> tuple[Tensor | None, Tensor | None]:
    """The logits and the loss in what a module returned."""
    if isinstance(output, Mapping) or hasattr(output, "logits"):
        values = output if isinstance(output, Mapping) else vars(output)
        return values.get("logits"), values.get("loss")
    tensors = [part for part in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(part, Tensor)]
    return next((one for one in tensors if one.ndim == 3), None), next((one for one in tensors if one.ndim == 0), None)
