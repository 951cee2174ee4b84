"""Give a saved model's folder its modelling code, so that it loads where exsel is not installed."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import tempfile
import textwrap
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from exsel.errors import ExselError, explained
from exsel.files import read_object, reseal, write_json, write_text
from exsel.kernels import cpp
from exsel.model_folder import PREFIX
from exsel.models.modeling import ExselPreTrainedModel
from exsel.standalone.bundling import Place, bundle, import_statements
from exsel.upgrading.diffusers_processors import has_processor
from exsel.upgrading.loading import from_pretrained, quiet_transformers
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.transformers_models import UpgradedFields, auto_mappings
from exsel.upgrading.upgraded_class import Upgraded
from exsel.version import __version__

#: The module of a folder that holds its code.
MODULE = "modeling_exsel"
_STAND_INS = "exsel.standalone.plain_operators"
_HEADER = '''"""{name}: a model with exclusive or selective attention, in one file.

exsel {version} wrote this file from its own source, for transformers {transformers}. It loads by
{auto_class}.from_pretrained(folder, trust_remote_code=True), without exsel. exsel runs the same model faster.
Licence: Apache-2.0, as exsel.
"""
'''
#: The arguments of :class:`exsel.nn.mechanisms.Mechanisms` that the code of an upgraded model gives.
_ARGUMENTS = ("geometry", "projections", "hidden_size", "has_window")
#: What is wrong with a layer comes first, and this after it.
_REMEDY = "its code cannot stand alone in one file, so load this model where exsel is installed"
_OWN: Mapping[str, Place] = {
    "AutoConfig": ("exsel.models.configuration", "ExselConfig"),
    "AutoModel": ("exsel.models.modeling", "ExselModel"),
    "AutoModelForCausalLM": ("exsel.models.modeling", "ExselForCausalLM"),
}
_FOLDER_CLASSES = [("exsel.standalone.folder_classes", name) for name in ("FolderConfig", "FolderModel", "FolderLayer")]


def export_standalone(folder: str | PathLike[str]) -> Path:
    """Write a saved model's code into its folder, which then loads where exsel is not installed.

    The folder gets one file of Python and a line in its ``config.json``; its weights stay as they are. Before anything
    is written the code is run beside exsel on made-up tokens, and must give the same bits. Where exsel is imported, the
    folder loads by exsel as before.

    Args:
        folder: a folder that ``save_pretrained`` wrote: exsel's own model, or an upgraded one of transformers' classes.

    Returns:
        The file with the code.

    Raises:
        ExselError: a plain model, a model whose code is not in transformers, layers whose rewritten code does not stand
            alone, or a model that is not computed from token ids.
        LoadError: as :func:`exsel.from_pretrained`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ExselError(f"{folder} holds no saved model: name a folder with config.json")
    with quiet_transformers():
        model: Any = from_pretrained(folder)
    code, auto_map = _code_of(model, folder)
    values = {**read_object(folder / "config.json"), "auto_map": auto_map}
    _check(model, code, values)
    path = folder / f"{MODULE}.py"
    write_text(path, code)
    write_json(folder / "config.json", values)
    model.config.write_card(folder)
    reseal(folder, [path for path in (path, folder / "config.json", folder / "README.md") if path.is_file()])
    return path


def _code_of(model: Any, folder: Path) -> tuple[str, dict[str, str]]:
    """The text of the module for a model, and by Auto class which of its classes to take."""
    if isinstance(model, ExselPreTrainedModel):
        classes = {auto_class: name for auto_class, (_, name) in _OWN.items()}
        code = bundle(list(_OWN.values()), _STAND_INS)
    elif isinstance(model.config, UpgradedFields):
        classes = _auto_classes(model)
        code = _upgraded_code(model)
    else:
        raise ExselError(f"{folder} has no mechanisms: transformers loads it without exsel as it is")
    name = type(model).__name__
    auto_class = next(
        auto_class for auto_class, found in reversed(classes.items()) if found.removeprefix(PREFIX) == name
    )
    header = _HEADER.format(
        name=name, version=__version__, transformers=transformers.__version__, auto_class=auto_class
    )
    return header + code, {auto_class: f"{MODULE}.{found}" for auto_class, found in classes.items()}


def _auto_classes(model: Any) -> dict[str, str]:
    model_class, config_class = type(model), type(model.config).plain_class
    if not (model_class.__module__.startswith("transformers.") and config_class.__module__.startswith("transformers.")):
        raise ExselError(
            f"{model_class.__name__} is no class of transformers: its own code would have to be in the folder too. "
            "Load it where its package and exsel are installed"
        )
    names = [
        auto_class.__name__
        for auto_class, mapping in auto_mappings(_BaseAutoModelClass)
        if getattr(mapping.get(config_class, None), "__name__", "") == model_class.__name__
    ]
    if not names:
        raise ExselError(f"{model_class.__name__} belongs to no Auto class, which is what loads a folder's own code")
    names.sort(key=lambda name: name == "AutoModelForCausalLM")
    return {
        "AutoConfig": PREFIX + config_class.__name__,
        **dict.fromkeys(names, PREFIX + model_class.__name__),
    }


def _upgraded_code(model: Any) -> str:
    kinds: dict[tuple[Any, str], dict[str, int | None]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Upgraded):
            mechanisms: Any = getattr(module, CHILD)
            arguments = {argument: getattr(mechanisms, argument) for argument in _ARGUMENTS}
            kinds.setdefault((type(module), repr(arguments)), {})[name] = mechanisms.layer_index
    bundled = bundle(_FOLDER_CLASSES, _STAND_INS)
    taken = {node.name for node in ast.parse(bundled).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    plain, config = type(model), type(model.config).plain_class
    imports = {cls.__name__: _import_of(cls.__name__, cls) for cls in (config, plain)}
    layer_classes = dict.fromkeys(layer_class for layer_class, _ in kinds)
    texts = [_layer_code(layer_class, imports, taken) for layer_class in layer_classes]
    layers = "".join(
        f"        (\n            {PREFIX}{layer_class.__name__},\n            {indices!r},\n            {arguments},\n"
        "        ),\n"
        for (layer_class, arguments), indices in kinds.items()
    )
    texts += [
        f'''class {PREFIX}{config.__name__}(FolderConfig, {config.__name__}):
    """The configuration of the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)''',
        f'''class {PREFIX}{plain.__name__}(FolderModel, {plain.__name__}):
    """The model: ``{plain.__name__}`` with these layers upgraded."""

    config_class = {PREFIX}{config.__name__}
    layers = (
{layers}    )''',
    ]
    return "\n\n\n".join(["\n".join([bundled.rstrip(), "", "", *import_statements(imports)]), *texts]) + "\n"


def _layer_code(layer_class: Any, imports: dict[str, str], taken: set[str]) -> str:
    """The text of an upgraded attention class; what it takes from the original's module is added to ``imports``."""
    original = layer_class.exsel_original
    name = original.__name__
    if issubclass(original, nn.MultiheadAttention) or has_processor(original):
        raise ExselError(f"{name} attends by code that many classes share: {_REMEDY}")
    if not original.__module__.startswith("transformers."):
        raise ExselError(f"{name} is no class of transformers: {_REMEDY}")
    imports[name] = _import_of(name, original)
    methods = []
    for method in layer_class.exsel_read:
        attribute = method if method == "forward" else f"_exsel_{method}"
        function = inspect.unwrap(vars(layer_class)[attribute])
        if function.__code__.co_freevars:
            raise ExselError(f"{name}.{method} uses {function.__code__.co_freevars[0]} around it: {_REMEDY}")
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(definition, ast.FunctionDef)
        definition.name = attribute
        for node in ast.walk(definition):
            if isinstance(node, ast.Name) and node.id in function.__globals__:
                line = _import_of(node.id, function.__globals__[node.id], function.__module__)
                if node.id in taken or imports.setdefault(node.id, line) != line:
                    raise ExselError(f"{node.id} of {name}.{method} has another meaning elsewhere: {_REMEDY}")
        methods.append(textwrap.indent(ast.unparse(definition), "    "))
    where = f"transformers {transformers.__version__}"
    return "\n\n".join(
        [
            f'class {PREFIX}{name}(FolderLayer, {name}):\n    """``{name}`` of {where}: its projections, cache and '
            'attention are called through a ``LayerPass``."""',
            *methods,
        ]
    )


def _import_of(name: str, value: Any, module: str = "") -> str:
    """The statement that imports ``value`` under a name: from where it was defined, or else from ``module``."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
    home = getattr(value, "__module__", None)
    if getattr(sys.modules.get(str(home)), name, None) is not value:
        home = module
    return f"from {home} import {name}"


@torch.no_grad()
def _check(model: Any, code: str, values: Mapping[str, Any]) -> None:
    """Check that the model of ``code`` and ``values`` computes the bits of ``model`` without its C++ passes."""
    name = type(model).__name__
    with tempfile.TemporaryDirectory() as scratch, _imported(Path(scratch), code) as module:
        write_json(Path(scratch) / "config.json", values)
        with explained(f"{name} cannot be built from its own code"):
            config = _class_of(module, "AutoConfig", values).from_pretrained(scratch)
            config._attn_implementation = "eager"
            auto_class = next(each for each in values["auto_map"] if values["auto_map"][each].endswith(name))
            other = _class_of(module, auto_class, values).from_pretrained(
                None, config=config, state_dict=model.state_dict(), dtype=model.dtype
            )
        model.set_attn_implementation("eager")
        with cpp.without(), explained(f"{name} cannot be tried on made-up tokens"):
            tokens = torch.arange(2 * 7).reshape(2, 7) % model.get_input_embeddings().weight.shape[0]
            inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})
            wanted, found = model(**inputs)[0], other(**inputs)[0]
        if not torch.equal(wanted, found):
            raise ExselError(f"the code written for {name} computes something else than exsel: nothing was changed")


def _class_of(module: types.ModuleType, auto_class: str, values: Mapping[str, Any]) -> Any:
    return getattr(module, values["auto_map"][auto_class].partition(".")[2])


@contextmanager
def _imported(folder: Path, code: str) -> Iterator[types.ModuleType]:
    """The module with this text, as long as the block runs."""
    path = folder / f"{MODULE}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[MODULE]
