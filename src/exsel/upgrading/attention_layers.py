"""Find a model's attention layers and what an upgrade can do to each, before anything is changed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from exsel.nn.projections import PACKINGS, Geometry, Projections
from exsel.upgrading import architectures as known
from exsel.upgrading import code_paths, diffusers_processors, multihead, packing_trial, upgraded_class
from exsel.upgrading.architectures import NO_OWN_VALUES, look_up
from exsel.upgrading.rewriting import CallSites, find_sites
from exsel.upgrading.sources import RewritingError, may_attend, replacement
from exsel.upgrading.upgraded_class import original_class

_CROSS = re.compile(
    r"cross|encoder_attn|encdec|enc_dec|encoder_decoder|x_attn|token_to_image|image_to_token|perceiverattention",
    re.IGNORECASE,
)
_POOLING = re.compile(r"pool", re.IGNORECASE)
_ATTENTION = re.compile(r"attention|attn|[MG][HP]SA", re.IGNORECASE)
#: Attention classes of these packages attend in their own methods, or are in the tables of ``architectures.py``.
_KNOWN_PACKAGES = ("transformers", "timm", "diffusers")


@dataclass(frozen=True)
class Target:
    """What is known of one attention module."""

    name: str  # in the model, as ``named_modules`` has it
    cls: str
    exclusive: str = ""  # why it cannot have the mechanism; empty if it can
    selective: str = ""
    left_alone: bool = False  # it is not self-attention: not counted, and no reason to refuse a model
    projections: Projections | None = None
    geometry: Geometry | None = None
    hidden_size: int = 0  # of its input, if known
    by_name: bool = False  # only its class's name says that it is attention: it may be a module around attention
    methods: tuple[str, ...] = ("forward",)  # of the class, that an upgrade rewrites

    def refused(self, reason: str, *, left_alone: bool = False) -> Target:
        """The same module, refused for both mechanisms with ``reason``."""
        return Target(self.name, self.cls, reason, reason, left_alone=left_alone, by_name=self.by_name)


def targets(model: nn.Module) -> list[Target]:
    """Every attention module of ``model``, in the model's order."""
    modules, sites_of = dict(model.named_modules()), functools.cache(_sites)
    found = [
        target
        for name, module in modules.items()
        if (target := _target(name, module, modules.get(name.rpartition(".")[0]), sites_of)) is not None
    ]
    around = {
        ".".join(target.name.split(".")[:length])
        for target in found
        if not target.left_alone and target.name
        for length in range(target.name.count(".") + 1)
    }
    # A module around attention, like BertAttention or a whole model, is not attention itself.
    return [
        _as_instance(target, modules[target.name]) for target in found if not (target.name in around and target.by_name)
    ]


def counted_layers(model: nn.Module) -> list[Target]:
    """The attention modules that ``layers=…`` counts: all but those that are left alone."""
    return [target for target in targets(model) if not target.left_alone]


def own_layers(model: nn.Module) -> list[Target]:
    """The attention modules of exsel's own models. An upgrade refuses them; diagnostics and experiments use them."""
    return [
        _with_projections(Target(name, type(module).__name__), module, projections)
        for name, module in model.named_modules()
        if (projections := look_up(known.OWN, original_class(module))) is not None
    ]


def _with_projections(target: Target, module: nn.Module, projections: Projections) -> Target:
    geometry = _geometry(module, projections)
    return replace(target, projections=projections, geometry=geometry, hidden_size=_width(module, projections))


def _as_instance(target: Target, module: nn.Module) -> Target:
    reason = "" if target.left_alone or target.exclusive else upgraded_class.class_refusal(module, target.methods)
    return replace(target.refused(reason), by_name=False) if reason else target


def _sites(cls: type) -> CallSites | RewritingError:
    try:
        return find_sites(cls)
    except RewritingError as error:
        return error


def _target(
    name: str, module: nn.Module, parent: nn.Module | None, sites_of: Callable[[type], CallSites | RewritingError]
) -> Target | None:
    cls: Any = original_class(module)
    target = Target(name, cls.__name__)
    if isinstance(module, nn.MultiheadAttention):
        return _multihead_target(target, module, parent)
    if diffusers_processors.has_processor(cls):
        return _processed_target(target, module, cls)
    if cls.__module__.startswith(("torch.", "exsel.")) or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return None
    in_table = _known_projections(module, cls)
    sites = sites_of(cls)
    calls_function = sites.all_attention() > 0 if isinstance(sites, CallSites) else may_attend(cls)
    has_name = _ATTENTION.search(cls.__name__) and any(True for _ in module.parameters())
    if in_table is None and not calls_function and not has_name:
        if cls.__module__.split(".")[0] in _KNOWN_PACKAGES or not may_attend(cls):
            return None
        calls = replacement(cls, "forward") or "a function that is no method of it"
        return target.refused(f"{cls.__name__} attends in {calls}, into which no call can be put")
    target = replace(target, by_name=in_table is None and not calls_function)
    if reason := look_up(known.REFUSED, cls):
        return target.refused(reason)
    # Only the name within the layer counts: layers.0.crossattention matches, cross_encoder.layers.0.self_attn does not.
    names = f"{re.split(r'[.][0-9]+[.]', name)[-1]} {cls.__name__} {type(parent).__name__}"
    reason = look_up(known.LEFT_ALONE, cls)
    if getattr(module, "is_cross_attention", None) is True or _CROSS.search(names) or _POOLING.search(names):
        reason = NO_OWN_VALUES
    if reason:
        return replace(target.refused(reason, left_alone=True), by_name=False)
    for attribute, reason in known.REFUSED_ATTRIBUTES.items():
        if (found := getattr(module, attribute, None)) is True or isinstance(found, nn.Module):
            return target.refused(reason)
    if isinstance(sites, RewritingError):
        return target.refused(f"{cls.__name__} {sites}")
    if reason := _reason_of_code(module, cls, sites, in_table):
        return target.refused(reason)
    target = replace(target, by_name=False, methods=("forward", *sites.all_methods()))
    projections = in_table or _usual_projections(module)
    if projections is None:
        return replace(target, selective=f"the projections of {cls.__name__} are not known here")
    if _geometry(module, projections) is None:
        return replace(target, selective=f"the heads of {cls.__name__} are not known here")
    if in_table is None:
        projections = _tried(module, cls, projections)
    if projections is None:
        reason = f"in which order {cls.__name__} packs its fused projection could not be found by trying it"
        return replace(target, selective=reason)
    target = replace(
        target, selective=look_up(known.REFUSED_SELECTIVE, cls) or _projection_refusal(module, projections)
    )
    return _with_projections(target, module, projections)


def _reason_of_code(module: nn.Module, cls: type, sites: CallSites, in_table: Projections | None) -> str:
    """Why calls in the class's methods cannot go through the mechanisms; empty if they can."""
    writes_out = in_table is not None and in_table.output is not None
    calls_function = sites.all_attention() > 0
    if (patch := replacement(cls, "forward")) and (writes_out or not calls_function):
        return f"its forward was replaced by {patch}, which calls no attention function: take that back first"
    if writes_out:
        return ""
    if not calls_function:
        return f"{cls.__name__} calls no attention function"
    return code_paths.code_path_refusal(module, cls, sites, known.switches(cls))


def _multihead_target(target: Target, module: nn.MultiheadAttention, parent: nn.Module | None) -> Target:
    own_name = target.name.rsplit(".", 1)[-1]
    # PyTorch's decoder layer, and copies of it, call their cross-attention multihead_attn.
    is_decoders = own_name == "multihead_attn" and isinstance(getattr(parent, "self_attn", None), nn.Module)
    has_other_keys = module.kdim != module.embed_dim
    names = f"{own_name} {type(parent).__name__}"
    if is_decoders or has_other_keys or _POOLING.search(type(parent).__name__) or _CROSS.search(names):
        return target.refused(NO_OWN_VALUES, left_alone=True)
    if reason := multihead.multihead_refusal(original_class(module)):
        return target.refused(reason)
    geometry = Geometry(module.num_heads, module.num_heads, module.head_dim)
    return replace(target, projections=multihead.PROJECTIONS, geometry=geometry, hidden_size=module.embed_dim)


def _processed_target(target: Target, module: nn.Module, cls: type[nn.Module]) -> Target:
    if getattr(module, "is_cross_attention", None) is True or _CROSS.search(target.name.rpartition(".")[2]):
        return target.refused(NO_OWN_VALUES, left_alone=True)
    exclusive, selective = diffusers_processors.refusals(module)
    if _geometry(module, diffusers_processors.PROJECTIONS) is None:
        selective = selective or f"the heads of {cls.__name__} are not known here"
    else:
        target = _with_projections(target, module, diffusers_processors.PROJECTIONS)
    return replace(target, exclusive=exclusive, selective=selective)


def _known_projections(module: nn.Module, cls: type) -> Projections | None:
    if (choice := look_up(known.PACKED_BY_FLAG, cls)) is not None:
        flag, packing, other_packing = choice
        return Projections({"qkv": packing if getattr(module, flag) else other_packing})
    found = look_up(known.PROJECTIONS, cls)
    if found is None or any(getattr(module, name, None) is None for name in found.packings):
        return None
    return found


def _usual_projections(module: nn.Module) -> Projections | None:
    for projections in known.USUAL:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in projections.packings):
            return projections
    return None


def _tried(module: nn.Module, cls: type, projections: Projections) -> Projections | None:
    """``projections``, as guessed from names; for a fused one, the packing that a trial run finds, if any."""
    if len(projections.packings) > 1 or cls.__module__.startswith("transformers."):
        return projections
    (name,) = projections.packings
    candidates = []
    for packing in ("blocks", "heads", "groups"):
        geometry = _geometry(module, Projections({name: packing}))
        if geometry is not None and (packing != "groups" or geometry.num_heads != geometry.num_kv_heads):
            candidates.append((packing, geometry))
    found = packing_trial.packing_of(module, cls, name, _width(module, projections), candidates)
    return None if found is None else Projections({name: found})


def _features(module: Any, direction: str) -> int | None:
    """The number of outputs or inputs of a linear layer, which may be quantised, adapted or transposed."""
    module = getattr(module, "base_layer", module)
    module = getattr(module, "linear", module)
    names = {"out": ("out_features", "nf"), "in": ("in_features", "nx")}[direction]
    return next((size for name in names if isinstance(size := getattr(module, name, None), int)), None)


def _projection_refusal(module: nn.Module, projections: Projections) -> str:
    """Why a projection's output may not be packed as the linear layer in it packs its own; empty if it is."""
    for name in projections.packings:
        child = getattr(module, name)
        if isinstance(getattr(child, "linear", None), nn.Module) and len(list(child.children())) > 1:
            return f"its {name} is more than a linear layer, and may return its heads in another shape"
    return ""


def _width(module: nn.Module, projections: Projections) -> int:
    return _features(getattr(module, next(iter(projections.packings))), "in") or 0


def _geometry(module: nn.Module, projections: Projections) -> Geometry | None:
    """The numbers and the size of heads that give all projections their widths; ``None`` if there are none."""
    totals = {}
    for name, kind in projections.packings.items():
        if (size := _features(getattr(module, name, None), "out")) is None:
            return None
        totals[kind] = size
    config = getattr(module, "config", None)
    head_dim = _first_int(module, known.HEAD_DIMS)
    num_heads = _first_int(module, known.NUM_HEADS) or _first_int(config, known.NUM_HEADS)
    first = next(iter(totals))
    if head_dim is None and num_heads is None:
        return None
    if head_dim is None and first == "query" and num_heads:
        head_dim = totals[first] // num_heads or None
    for kv_heads in _possible_kv_heads(module, num_heads, totals, head_dim):
        heads = num_heads
        if heads is None or (first == "query" and head_dim is not None):
            assert head_dim is not None
            heads = totals[first] // (head_dim * len(PACKINGS[first].slots(1, 1)))
            if num_heads not in (None, heads):
                return None  # the projection holds more than queries
        slots = {kind: len(PACKINGS[kind].slots(heads, kv_heads)) for kind in totals}
        dim = head_dim or totals[first] // slots[first]
        if all(slots[kind] * dim == total for kind, total in totals.items()):
            return Geometry(heads, kv_heads, dim)
    return None


def _possible_kv_heads(
    module: nn.Module, num_heads: int | None, totals: Mapping[str, int], head_dim: int | None
) -> list[int]:
    possible = [totals["value"] // head_dim if "value" in totals and head_dim else None]
    for holder in (module, getattr(module, "config", None)):
        possible += [_first_int(holder, (name,)) for name in known.NUM_KV_HEADS]
    return [kv_heads for kv_heads in [*possible, num_heads] if kv_heads is not None and kv_heads > 0]


def _first_int(holder: Any, names: tuple[str, ...]) -> int | None:
    # Only the object's own attributes: a configuration's properties may be about all layers, or raise.
    values = getattr(holder, "__dict__", {})
    found = (values.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)
