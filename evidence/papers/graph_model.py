"""The SSA paper's graph task: the next token is the last one or one of its neighbours, all alike.

A sequence holds every one of 8 tokens once, in a random order, without positions. So attention sees the same 8 tokens
each time, only the last one, which asks, differs, and loss and gradient are exact over the 8 last tokens: there is no
sampling. One layer, one head: P = softmax(τ ⊙ E W Eᵀ) over unit-norm embeddings E, W from 0, Adam 1e-4. τ is 1 (plain),
one free number (constant), or one for each group of nodes of equal degree (selective), from 1.

What the paper leaves open, and what is done here:

* *The prediction* is the map itself, p = P (a linear head that undoes the embeddings, the loss −log p): then the map is
  what cross-entropy trains. The *softmax head*, p = softmax(C Σ P E) with a learned C, is a row of the table: its map
  need not be the true one, and is not.
* *ℓ1 error* sums over the 8 × 8 map. It cannot be a mean over rows: with p = P a row of excess KL is at most √(2 KL)
  from the true one (Pinsker), which is 0.16 at 0.0126, and 0.543 is published.
* *The graphs* are random, connected, of two degrees or more; the embeddings random of 8 dimensions, and fixed. Each
  seed draws several of both. Other graphs and dimensions are rows of the table.
* *Steps*: the paper names none, and all losses go on falling; the curves show the way there, the findings the end.
* *One temperature for all* is ours: with any τ the product τW moves faster under Adam, whatever it depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.functional import attention
from exsel.training.progress import Progress

NODES = 8
DIMENSION = 8
LEARNING_RATE = 1e-4
# Of an edge, in the random graphs.
_EDGE_PROBABILITY = 0.3

Variant = Literal["plain", "constant temperature", "selective"]
VARIANTS: tuple[Variant, ...] = ("plain", "constant temperature", "selective")


#: Graphs by their edges.
GRAPHS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "path": tuple((node, node + 1) for node in range(NODES - 1)),
    "star": tuple((0, node) for node in range(1, NODES)),
    "clique of 5 with a tail": (*((i, j) for i in range(5) for j in range(i)), (4, 5), (5, 6), (6, 7)),
}


def adjacency(edges: Sequence[tuple[int, int]]) -> Tensor:
    """``[8, 8]``, 1 where two nodes are neighbours."""
    matrix = torch.zeros(NODES, NODES)
    for i, j in edges:
        matrix[i, j] = matrix[j, i] = 1.0
    return matrix


def random_graph(generator: torch.Generator) -> Tensor:
    """The adjacency of a connected graph with two degrees or more."""
    while True:
        drawn = torch.rand(NODES, NODES, generator=generator) < _EDGE_PROBABILITY
        matrix = drawn.float().triu(1)
        matrix = matrix + matrix.T
        reached = torch.linalg.matrix_power(matrix + torch.eye(NODES), NODES - 1) > 0
        if reached.all() and len(set(matrix.sum(-1).tolist())) > 1:
            return matrix


def true_map(graphs: Tensor) -> Tensor:
    """P*: uniform over a node and its neighbours; ``[..., 8, 8]`` of adjacencies."""
    closed = graphs + torch.eye(NODES)
    return closed / closed.sum(-1, keepdim=True)


def excess(target: Tensor, log_prediction: Tensor) -> Tensor:
    """Cross-entropy less entropy, Σ P* log(P*/p), averaged over the 8 last tokens: ``[..., 8, 8]`` to ``[...]``."""
    return F.kl_div(log_prediction, target, reduction="none").sum(-1).mean(-1)


def map_error(target: Tensor, attention_map: Tensor) -> Tensor:
    """Σ |P − P*| over the map: ``[..., 8, 8]`` to ``[...]``."""
    return (attention_map - target).abs().sum((-2, -1))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a row of the table is about.

    Args:
        graph: of :data:`GRAPHS`; ``None``: random ones.
        dimension: of the embeddings.
        is_orthonormal: whether they are; else they are random.
        has_softmax_head: whether the prediction is softmax(C Σ P E); else it is the map.
    """

    graph: str | None = None
    dimension: int = DIMENSION
    is_orthonormal: bool = False
    has_softmax_head: bool = False

    @property
    def name(self) -> str:
        """In words."""
        kind = "orthonormal, " if self.is_orthonormal else ""
        head = ", softmax head" if self.has_softmax_head else ""
        return f"{self.graph or 'random graphs'}, {kind}{self.dimension} dimensions{head}"


MAIN = Setting()
SETTINGS = (
    MAIN,
    Setting(dimension=4),
    Setting(dimension=16),
    Setting(is_orthonormal=True),
    *(Setting(graph=name) for name in GRAPHS),
    Setting(has_softmax_head=True),
)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Independent models that train at once: adjacencies ``[N, 8, 8]``, embeddings and softmax heads ``[N, 8, D]``."""

    graphs: Tensor
    embeddings: Tensor
    heads: Tensor

    @classmethod
    def join(cls, parts: Sequence[Tasks]) -> Tasks:
        """One after another."""
        return cls(
            graphs=torch.cat([part.graphs for part in parts]),
            embeddings=torch.cat([part.embeddings for part in parts]),
            heads=torch.cat([part.heads for part in parts]),
        )


def draw_tasks(setting: Setting, count: int, generator: torch.Generator, *, width: int) -> Tasks:
    """``count`` graphs with embeddings of norm 1, with zeros up to ``width`` dimensions, which change nothing."""
    graphs, embeddings, heads = [], [], []
    for _ in range(count):
        graphs.append(random_graph(generator) if setting.graph is None else adjacency(GRAPHS[setting.graph]))
        raw = torch.randn(NODES, setting.dimension, generator=generator)
        unit = torch.linalg.qr(raw)[0] if setting.is_orthonormal else F.normalize(raw, dim=-1)
        head = torch.randn(NODES, setting.dimension, generator=generator) / setting.dimension**0.5
        embeddings.append(F.pad(unit, (0, width - setting.dimension)))
        heads.append(F.pad(head, (0, width - setting.dimension)))
    return Tasks(graphs=torch.stack(graphs), embeddings=torch.stack(embeddings), heads=torch.stack(heads))


@dataclass(frozen=True, kw_only=True)
class History:
    """What was seen at some steps of N models, and the temperatures at the last.

    Args:
        steps: of each record.
        excess, map_error, norm: cross-entropy excess, ℓ1 error of the map, ‖W‖; ``[records, N]``.
        tau: inverse temperature of each node, ``[N, 8]``.
    """

    steps: tuple[int, ...]
    excess: Tensor
    map_error: Tensor
    norm: Tensor
    tau: Tensor


def train_models(
    tasks: Tasks, variants: Sequence[Variant], *, has_softmax_head: bool, steps: int, progress: Progress
) -> History:
    """Full-batch Adam on the exact loss of each model by itself.

    Args:
        tasks: N graphs, embeddings and heads.
        variants: of each of them.
        has_softmax_head: see :class:`Setting`.
        steps: of Adam.
        progress: to show it.
    """
    graphs, embeddings = tasks.graphs, tasks.embeddings
    count, _, width = embeddings.shape
    target, degree = true_map(graphs), graphs.sum(-1).long()
    weight = torch.zeros(count, width, width, requires_grad=True)
    groups = torch.ones(count, NODES, requires_grad=True)
    is_learned = torch.tensor([variant != "plain" for variant in variants]).unsqueeze(-1)
    is_by_degree = torch.tensor([variant == "selective" for variant in variants]).unsqueeze(-1)
    group = torch.where(is_by_degree, degree, 0)
    parameters = [weight, groups]
    head = tasks.heads.clone().requires_grad_(has_softmax_head)
    if has_softmax_head:
        parameters.append(head)
    values = embeddings if has_softmax_head else torch.eye(NODES).expand(count, -1, -1)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    every = max(1, steps // 40)
    records: list[tuple[Tensor, Tensor, Tensor]] = []
    started = time.monotonic()
    progress.start("graph task" + (", softmax head" if has_softmax_head else ""), steps, 0)
    try:
        for step in range(steps + 1):
            tau = torch.where(is_learned, groups.gather(1, group), 1.0)
            # The models are attention's heads.
            attend = _attend(embeddings @ weight, embeddings, tau)
            mixed = attend(values)
            log_prediction = (mixed @ head.mT).log_softmax(-1) if has_softmax_head else mixed.log()
            loss = excess(target, log_prediction)
            if step % every == 0 or step == steps:
                with torch.no_grad():
                    seen = attend(torch.eye(NODES).expand(count, -1, -1)) if has_softmax_head else mixed
                    norm = torch.linalg.matrix_norm(weight, 2)
                    records.append((loss.detach(), map_error(target, seen.detach()), norm))
                rate = count * NODES * step / (time.monotonic() - started)
                progress.advance(step, float(loss.detach().mean()), None, rate)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    finally:
        progress.finish()
    losses, errors, norms = (torch.stack(each) for each in zip(*records, strict=True))
    seen_at = tuple(dict.fromkeys((*range(0, steps + 1, every), steps)))
    return History(steps=seen_at, excess=losses, map_error=errors, norm=norms, tau=tau.detach())


def _attend(query: Tensor, key: Tensor, tau: Tensor) -> Callable[[Tensor], Tensor]:
    def attend(value: Tensor) -> Tensor:
        return attention(query, key, value, scale=1.0, query_scale=tau, backend="reference")

    return attend


def slope_by_degree(graphs: Tensor, tau: Tensor) -> Tensor:
    """By how much the groups' τ grows with a neighbour more, least squares: ``[N, 8, 8]``, ``[N, 8]`` to ``[N]``.

    Each degree that a graph has counts once.
    """
    slopes = []
    for degrees, temperatures in zip(graphs.sum(-1), tau, strict=True):
        by_degree = dict(zip(degrees.tolist(), temperatures.tolist(), strict=True))
        x, y = (torch.tensor(list(each), dtype=torch.float64) for each in (by_degree.keys(), by_degree.values()))
        x = x - x.mean()
        slopes.append((x * y).sum() / x.square().sum())
    return torch.stack(slopes)
