"""The metrics by their definitions, in float64, with every matrix there and one token after the other."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

Places = list[list[tuple[int, int]]]  # by row and column: the sequence (0: padding) and n


@dataclass
class Call:
    """One layer's call: weights ``[B, H, T, T]``, y ``[B, H, T, D]``, v ``[B, Hkv, T, D]``, who may be seen."""

    weights: Tensor
    y: Tensor
    value: Tensor
    may_see: Tensor  # [B, T, T]


def one_sequence(batch: int, num_tokens: int) -> Places:
    return [[(row + 1, n + 1) for n in range(num_tokens)] for row in range(batch)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def by_token(call: Call, places: Places) -> dict[str, dict[tuple[int, int, int], float]]:
    """By metric, by (row, head, column)."""
    weights, y, value = call.weights.double(), call.y.double(), call.value.double()
    group = y.shape[1] // value.shape[1]
    found: dict[str, dict[tuple[int, int, int], float]] = defaultdict(dict)
    for row, columns in enumerate(places):
        members: dict[int, list[int]] = defaultdict(list)
        for column, (sequence, _) in enumerate(columns):
            members[sequence].append(column)
        for column, (sequence, n) in enumerate(columns):
            if sequence == 0:
                continue
            for head in range(y.shape[1]):
                at = (row, head, column)
                own, output = value[row, head // group, column], y[row, head, column]
                found["similarity"][at] = cosine(output, own)
                others = [j for j in members[sequence] if j != column]
                if others:
                    cosines = [cosine(own, value[row, head // group, j]) for j in others]
                    found["value_similarity"][at] = sum(cosines) / len(cosines)
                mean = torch.stack([value[row, head // group, j] for j in members[sequence]]).mean(0)
                m = mean / mean.norm()
                left, own_left = output - (output @ m) * m, own - (own @ m) * m
                is_nothing = own_left.norm() < 1e-12 * own.norm() or left.norm() < 1e-12 * output.norm()
                found["centred_similarity"][at] = 0.0 if is_nothing else cosine(left, own_left)
                p = weights[row, head, column]
                found["self_weight"][at] = float(p[column])
                if n > 1:
                    found["sink_mass"][at] = float(p[members[sequence][0]])
                p = p / p.sum()
                length = int(call.may_see[row, column].sum())
                found["spikiness"][at] = float(p.abs().sum() / (p.square().sum() * length))
                entropy = -sum(x * math.log(x) for x in p.tolist() if x > 0)
                found["entropy"][at] = entropy
                found["effective_tokens"][at] = math.exp(entropy)
    return found


def aggregated(values: dict[tuple[int, int, int], float], places: Places) -> dict[str, object]:
    """Of one metric: ``mean``, ``least``, ``most``, ``heads`` and ``head_buckets`` as a diagnosis has them."""
    num_heads = 1 + max(head for _, head, _ in values)
    longest = max(n for row in places for _, n in row)
    by_head = [[x for (_, h, _), x in values.items() if h == head] for head in range(num_heads)]
    cells: list[list[list[float]]] = [[[] for _ in range(longest.bit_length())] for _ in range(num_heads)]
    for (row, head, column), x in values.items():
        cells[head][places[row][column][1].bit_length() - 1].append(x)
    return {
        "mean": sum(values.values()) / len(values),
        "least": min(values.values()),
        "most": max(values.values()),
        "heads": [sum(xs) / len(xs) for xs in by_head],
        "head_buckets": [[sum(xs) / len(xs) if xs else None for xs in row] for row in cells],
    }
