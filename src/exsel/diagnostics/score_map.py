"""W = W_q W_kᵀ of a layer, found by applying its projections to unit vectors, however the weights are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exsel.diagnostics.observing import Attended, Projected
from exsel.nn.projections import PACKINGS, Geometry
from exsel.reference import accumulation_dtype

#: Unit vectors that are projected at a time.
_ROWS = 512
#: The unit vectors' length: next to a large bias, a small weight would be lost in rounding.
_LENGTH = 1024.0
_NORM_OF = re.compile(r"(^|_)(q|k|qk|query|key)(_|$).*(norm|ln)|(norm|ln)(_|$).*(q|k|qk|query|key)$", re.IGNORECASE)


class NoMapError(Exception):
    """The reason why W says nothing about a layer's scores."""


@dataclass(frozen=True)
class ScoreMap:
    """W = W_q W_kᵀ of each head, in factors."""

    query: Tensor  #: W_q, ``[H, E, D]``, float64
    key_factor: Tensor  #: R of the QR decomposition of W_k, ``[Hkv, R, D]``: ‖W_k q‖ = ‖R q‖

    def operator_norms(self) -> Tensor:
        """The largest singular value of W, ``[H]``."""
        key_factor = self.key_factor.repeat_interleave(self.query.shape[0] // self.key_factor.shape[0], dim=0)
        query_factor = torch.linalg.qr(self.query, mode="r").R
        norms: Tensor = torch.linalg.matrix_norm(query_factor @ key_factor.transpose(-2, -1), ord=2)
        return norms

    def token_norms(self, hidden_states: Tensor) -> Tensor:
        """‖Wᵀx‖ = ‖W_k W_qᵀ x‖, ``[B, H, T]``, of each x in ``hidden_states`` ``[B, T, E]``."""
        x = hidden_states.to(accumulation_dtype(hidden_states.dtype))
        group = self.query.shape[0] // self.key_factor.shape[0]
        norms = []
        for head, query in enumerate(self.query):  # one head at a time saves memory
            through = query @ self.key_factor[head // group].transpose(-2, -1)
            norms.append((x @ through.to(x)).norm(dim=-1))
        return torch.stack(norms, dim=1)


def score_map(module: nn.Module, geometry: Geometry | None, attended: Attended) -> ScoreMap:
    """Find W of a layer from one of its calls.

    Raises:
        NoMapError: the projections are unknown or not linear, or something between them and the scores changes
            queries and keys token by token.
    """
    if geometry is None or not {"query", "key"} <= attended.projected.keys():
        raise NoMapError("its projections are not known here")
    if any(_NORM_OF.search(name) and not isinstance(child, nn.Identity) for name, child in module.named_children()):
        raise NoMapError("queries and keys are normalised: W alone does not give the scores")
    _check_unchanged(attended)
    query, key = (_matrix(attended.projected[kind], kind, geometry) for kind in ("query", "key"))
    return ScoreMap(query, torch.linalg.qr(key, mode="r").R)


def _check_unchanged(attended: Attended) -> None:
    """Rotations and one factor for all tokens may lie between projections and scores; nothing else may."""
    if attended.mixing is None:
        return
    for kind, states in (("query", attended.mixing.query), ("key", attended.mixing.key)):
        before = attended.projected[kind].states
        states = states[:, :: max(1, states.shape[1] // before.shape[1])]
        if states.shape != before.shape:
            raise NoMapError(f"what becomes of its {kind} projection is not known here")
        dtype = accumulation_dtype(before.dtype)
        expected = before.to(dtype).norm(dim=-1)
        if kind in attended.tau:
            expected = expected * attended.tau[kind].abs().to(dtype)
        ratio = states.to(dtype).norm(dim=-1) / expected
        ratio = ratio[expected > 1e-3 * expected.amax()]
        if ratio.numel() and ratio.amax() > (1 + _tolerance(before.dtype)) * ratio.amin():
            raise NoMapError(
                "between projection and scores queries or keys are normalised, cut, shifted or scaled token by token: "
                "W alone does not give the scores"
            )


def _tolerance(dtype: torch.dtype) -> float:
    return max(1e-3, 8 * torch.finfo(dtype).eps)


def _matrix(projected: Projected, kind: str, geometry: Geometry) -> Tensor:
    """The weights of a projection, ``[heads, E, D]``, in float64."""
    hidden_states = projected.hidden_states
    width = hidden_states.shape[-1]

    def applied(rows: Tensor) -> Tensor:
        packed = projected.apply(rows.to(hidden_states).unsqueeze(0))
        if packed.shape[:-1] != (1, rows.shape[0]):
            raise NoMapError("its projections cannot be applied by themselves")
        states: Mapping[str, Tensor] = PACKINGS[projected.packing].split(packed, geometry)
        return (states[kind][0].cpu() if packed.device.type == "mps" else states[kind][0]).double()

    bias = applied(torch.zeros(1, width))
    unit = torch.eye(width) * _LENGTH
    weight = torch.cat([applied(unit[start : start + _ROWS]) - bias for start in range(0, width, _ROWS)]) / _LENGTH
    # Compare with what the layer made of its first tokens: the projection may not be linear.
    tokens = hidden_states[:1, :4].double().to(weight.device)
    found = torch.einsum("bte,ehd->bhtd", tokens, weight) + bias.transpose(0, 1)
    own = projected.states[:1, :, :4].double().to(weight.device)
    scale = torch.einsum("bte,ehd->bhtd", tokens.abs(), weight.abs()) + bias.transpose(0, 1).abs()
    if ((found - own).abs() > 4 * _tolerance(hidden_states.dtype) * scale.clamp_min(1e-30)).any():
        raise NoMapError("its projections are not linear")
    return weight.transpose(0, 1)
