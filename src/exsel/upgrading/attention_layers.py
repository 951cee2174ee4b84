"""What an upgrade would do to each attention layer of a model, decided before anything is touched."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from exsel.nn.projections import PACKINGS, Geometry
from exsel.upgrading import (
    architectures,
    architectures_vision,
    code_paths,
    diffusers_processors,
    multihead,
    trial,
    upgraded_class,
)
from exsel.upgrading.architectures import Layout
from exsel.upgrading.rewriting import Sites, find_sites
from exsel.upgrading.sources import RewritingError, may_attend, replacement
from exsel.upgrading.upgraded_class import original_class

_CROSS = re.compile(
    r"cross|encoder_attn|encdec|enc_dec|encoder_decoder|x_attn|token_to_image|image_to_token|perceiverattention",
    re.IGNORECASE,
)
_POOLING = re.compile(r"pool", re.IGNORECASE)
_ATTENTION = re.compile(r"attention|attn|[MG][HP]SA", re.IGNORECASE)
#: Whose classes are known by name, or attend in methods of their own.
_KNOWN_PACKAGES = ("transformers", "timm", "diffusers")
_NO_OWN_VALUES = "cross-attention has no own values"


@dataclass(frozen=True)
class Target:
    """What is known of one attention module.

    Args:
        name: its name in the model, as ``named_modules`` has it.
        cls: the class's name.
        exclusive, selective: why not; empty where it can be.
        left_alone: whether it is no self-attention: not counted among the layers, and no reason to refuse a model.
        layout: where its projections are, if that is known.
        geometry: its heads, if they are known.
        hidden_size: the width of its input, if that is known.
        by_name: whether its class's name alone says that it is attention: it may be a module around one.
        methods: those of the class that an upgrade rewrites.
    """

    name: str
    cls: str
    exclusive: str = ""
    selective: str = ""
    left_alone: bool = False
    layout: Layout | None = None
    geometry: Geometry | None = None
    hidden_size: int = 0
    by_name: bool = False
    methods: tuple[str, ...] = ("forward",)


def targets(model: nn.Module) -> list[Target]:
    """Every attention module of ``model``, in its order."""
    modules = dict(model.named_modules())
    sites = functools.cache(_sites)  # for this time: a class may be patched before the next
    found = [
        target
        for name, module in modules.items()
        if (target := _target(name, module, modules.get(name.rpartition(".")[0]), sites)) is not None
    ]
    wrappers = {
        ".".join(target.name.split(".")[:length])
        for target in found
        if not target.left_alone and target.name
        for length in range(target.name.count(".") + 1)
    }
    # A wrapper around attention modules, like BertAttention or a whole model, is not one itself.
    kept = [target for target in found if not (target.name in wrappers and target.by_name)]
    return [_as_instance(target, modules[target.name]) for target in kept]


def counted_layers(model: nn.Module) -> list[Target]:
    """The attention modules that ``layers=…`` counts: all but those that are left alone."""
    return [target for target in targets(model) if not target.left_alone]


def own_layers(model: nn.Module) -> list[Target]:
    """The attention modules of exsel's own models, for what watches them or tries things out: not for an upgrade."""
    return [
        Target(
            name,
            type(module).__name__,
            layout=layout,
            geometry=_geometry(module, layout),
            hidden_size=_width(module, layout),
        )
        for name, module in model.named_modules()
        if (layout := architectures.OWN.get(architectures.key(original_class(module)))) is not None
    ]


def _as_instance(target: Target, module: nn.Module) -> Target:
    reason = "" if target.left_alone or target.exclusive else upgraded_class.refusal(module, target.methods)
    return Target(target.name, target.cls, reason, reason) if reason else target


def _target(
    name: str, module: nn.Module, parent: nn.Module | None, sites_of: Callable[[type], Sites | RewritingError]
) -> Target | None:
    cls: Any = original_class(module)
    if isinstance(module, nn.MultiheadAttention):
        return _multihead_target(name, module, cls, parent)
    if diffusers_processors.has_processor(cls):
        return _processed_target(name, module, cls)
    if cls.__module__.startswith(("torch.", "exsel.")) or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return None
    known = _known_layout(module, cls)
    sites = sites_of(cls)
    calls_function = sites.all_attention() > 0 if isinstance(sites, Sites) else may_attend(cls)
    is_attention = _ATTENTION.search(cls.__name__) and any(True for _ in module.parameters())
    if known is None and not calls_function and not is_attention:
        if cls.__module__.split(".")[0] in _KNOWN_PACKAGES or not may_attend(cls):
            return None
        calls = replacement(cls, "forward") or "a function that is no method of it"
        reason = f"{cls.__name__} attends in {calls}, into which no call can be put"
        return Target(name, cls.__name__, reason, reason)
    by_name = known is None and not calls_function

    def refused(reason: str) -> Target:
        return Target(name, cls.__name__, reason, reason, by_name=by_name)

    if architectures.key(cls) in architectures.REFUSED_CLASSES:
        return refused(architectures.REFUSED_CLASSES[architectures.key(cls)])
    # The module's name within its layer: layers.0.crossattention.self is one, cross_encoder.layers.0.self_attn not.
    names = f"{re.split(r'[.][0-9]+[.]', name)[-1]} {cls.__name__} {type(parent).__name__}"
    reason = architectures.LEFT_ALONE.get(architectures.key(cls), "")
    is_across = architectures.key(cls) in architectures_vision.ACROSS or _is_true(module, "is_cross_attention")
    if is_across or _CROSS.search(names) or _POOLING.search(names):
        reason = _NO_OWN_VALUES
    if reason:
        return Target(name, cls.__name__, reason, reason, left_alone=True)
    for child, reason in architectures.REFUSED_CHILDREN.items():
        if hasattr(module, child):
            return refused(reason)
    for flag, reason in architectures.REFUSED_FLAGS.items():
        if _is_true(module, flag):
            return refused(reason)
    if isinstance(sites, RewritingError):
        return refused(f"{cls.__name__} {sites}")
    assert isinstance(sites, Sites)
    writes_out = known is not None and known.output is not None
    if (patch := replacement(cls, "forward")) and (writes_out or not calls_function):
        return refused(f"its forward was replaced by {patch}, which calls no attention function: take that back first")
    if not writes_out and not calls_function:
        return refused(f"{cls.__name__} calls no attention function")
    if not writes_out and (reason := code_paths.refusal(module, cls, sites, architectures_vision.switches(cls))):
        return refused(reason)
    methods = ("forward", *sites.names())
    layout = known or _layout(module)
    if layout is None:
        reason = f"the projections of {cls.__name__} are not known here"
        return Target(name, cls.__name__, selective=reason, methods=methods)
    geometry = _geometry(module, layout)
    if geometry is None:
        reason = f"the heads of {cls.__name__} are not known here"
        return Target(name, cls.__name__, selective=reason, methods=methods)
    tried = layout if known is not None else _tried(module, cls, layout)
    if tried is None:
        reason = f"in which order {cls.__name__} packs its fused projection could not be found by trying it"
        return Target(name, cls.__name__, selective=reason, methods=methods)
    layout = tried
    return Target(
        name,
        cls.__name__,
        selective=architectures.REFUSED_SELECTIVE.get(architectures.key(cls), ""),
        layout=layout,
        geometry=geometry,
        hidden_size=_width(module, layout),
        methods=methods,
    )


def _multihead_target(
    name: str, module: nn.MultiheadAttention, cls: type[nn.Module], parent: nn.Module | None
) -> Target:
    own_name = name.rsplit(".", 1)[-1]
    # In PyTorch's decoder layer, and in copies of it.
    is_decoders = own_name == "multihead_attn" and isinstance(getattr(parent, "self_attn", None), nn.Module)
    across = is_decoders or multihead.is_across(module) or _POOLING.search(type(parent).__name__)
    if across or _CROSS.search(own_name) or _CROSS.search(type(parent).__name__):
        return Target(name, cls.__name__, _NO_OWN_VALUES, _NO_OWN_VALUES, left_alone=True)
    if reason := multihead.refusal(cls):
        return Target(name, cls.__name__, reason, reason)
    geometry = multihead.geometry(module)
    return Target(name, cls.__name__, layout=multihead.LAYOUT, geometry=geometry, hidden_size=module.embed_dim)


def _processed_target(name: str, module: nn.Module, cls: type[nn.Module]) -> Target:
    if diffusers_processors.is_across(module) or _CROSS.search(name.rpartition(".")[2]):
        return Target(name, cls.__name__, _NO_OWN_VALUES, _NO_OWN_VALUES, left_alone=True)
    exclusive, selective = diffusers_processors.refusals(module, cls)
    geometry = diffusers_processors.geometry(module)
    return Target(
        name,
        cls.__name__,
        exclusive,
        selective,
        layout=None if geometry is None else diffusers_processors.LAYOUT,
        geometry=geometry,
        hidden_size=_features(getattr(module, "to_q", None) or nn.Identity(), "in") or 0,
    )


def _is_true(module: nn.Module, attribute: str) -> bool:
    return getattr(module, attribute, None) is True


def _sites(cls: type) -> Sites | RewritingError:
    try:
        return find_sites(cls)
    except RewritingError as error:
        return error


def _known_layout(module: nn.Module, cls: type) -> Layout | None:
    key = architectures.key(cls)
    if key in architectures_vision.FUSED_BY_FLAG:
        flag, packing, other_packing = architectures_vision.FUSED_BY_FLAG[key]
        return Layout({"qkv": packing if getattr(module, flag) else other_packing})
    layout = architectures.CLASSES.get(key)
    if layout is None or any(getattr(module, name, None) is None for name in layout.projections):
        return None
    return layout


def _tried(module: nn.Module, cls: type, layout: Layout) -> Layout | None:
    """``layout``, found by the names of children alone, with the packing that a fused projection has indeed."""
    projections = list(layout.projections.items())
    if len(projections) > 1 or cls.__module__.startswith("transformers."):
        return layout
    name = projections[0][0]
    candidates = []
    for packing in ("blocks", "heads", "groups"):
        geometry = _geometry(module, Layout({name: packing}))
        if geometry is not None and (packing != "groups" or geometry.num_heads != geometry.num_kv_heads):
            candidates.append((packing, geometry))
    packing_found = trial.packing_of(module, cls, name, _width(module, layout), candidates)
    return None if packing_found is None else Layout({name: packing_found})


def _layout(module: nn.Module) -> Layout | None:
    for layout in architectures.LAYOUTS:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in layout.projections):
            return layout
    return None


def _features(module: nn.Module, direction: str) -> int | None:
    """The number of outputs or inputs of a linear layer, quantised, adapted or transposed as it may be."""
    module = getattr(module, "base_layer", module)
    module = getattr(module, "linear", module)
    names = {"out": ("out_features", "nf"), "in": ("in_features", "nx")}[direction]
    for name in names:
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    return None


def _width(module: nn.Module, layout: Layout) -> int:
    return _features(getattr(module, next(iter(layout.projections))), "in") or 0


def _geometry(module: nn.Module, layout: Layout) -> Geometry | None:
    sizes = {name: _features(getattr(module, name, None) or nn.Identity(), "out") for name in layout.projections}
    if None in sizes.values():
        return None
    totals = {layout.projections[name]: int(size or 0) for name, size in sizes.items()}
    head_dim = _first_int(module, architectures.HEAD_DIMS)
    num_heads = _first_int(module, architectures.NUM_HEADS) or _first_int(
        getattr(module, "config", None), architectures.NUM_HEADS
    )
    first = next(iter(totals))
    if head_dim is None and num_heads is None:
        return None
    for kv_heads in _possible_kv_heads(module, num_heads, totals, head_dim):
        heads = num_heads
        if heads is None or (first == "query" and head_dim is not None):
            assert head_dim is not None
            heads = totals[first] // (head_dim * len(PACKINGS[first].slots(1, 1)))
            if num_heads not in (None, heads):
                return None  # there is more in the projection than queries
        slots = {kind: len(PACKINGS[kind].slots(heads, kv_heads)) for kind in totals}
        dim = head_dim or totals[first] // slots[first]
        if all(slots[kind] * dim == total for kind, total in totals.items()):
            return Geometry(heads, kv_heads, dim)
    return None


def _possible_kv_heads(
    module: nn.Module, num_heads: int | None, totals: Mapping[str, int], head_dim: int | None
) -> list[int]:
    possible = []
    if "value" in totals and head_dim:
        possible.append(totals["value"] // head_dim)
    for holder in (module, getattr(module, "config", None)):
        for name in ("num_key_value_heads", "num_kv_heads", "n_kv_heads"):
            value = _first_int(holder, (name,))
            possible += [] if value is None else [value]
    if num_heads is not None:
        possible.append(num_heads)
    return [kv_heads for kv_heads in possible if kv_heads > 0]


def _first_int(holder: Any, names: tuple[str, ...]) -> int | None:
    # What the object itself holds: a configuration's properties may speak for all layers, or refuse to.
    values = getattr(holder, "__dict__", {})
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
