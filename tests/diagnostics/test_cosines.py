"""Cosines where the answer is known, and the places of tokens."""

from __future__ import annotations

import pytest
import torch

from exsel import exclude
from exsel.diagnostics.cosines import centred_similarity, similarity, similarity_after, value_similarity
from exsel.diagnostics.sequences import Streams, Tokens

T = 6


def test_orthonormal_values() -> None:
    value = torch.eye(T, dtype=torch.float64).view(1, 1, T, T)
    weights = torch.rand(1, 2, T, T, dtype=torch.float64).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    y = weights @ value
    tokens = Tokens.of(None, None, (1, T))
    expected = weights.diagonal(dim1=-2, dim2=-1) / weights.norm(dim=-1)
    torch.testing.assert_close(similarity(y, value), expected, rtol=1e-12, atol=1e-12)
    assert not value_similarity(value, tokens).any()


def test_values_that_share_everything() -> None:
    value = torch.randn(4).expand(1, 1, T, 4)
    tokens = Tokens.of(None, None, (1, T))
    torch.testing.assert_close(value_similarity(value, tokens), torch.ones(1, 1, T))
    assert not centred_similarity(value.expand(1, 2, T, 4), value, tokens).any()  # nothing is left


def test_a_value_of_nothing_has_no_direction() -> None:
    value = torch.zeros(1, 1, T, 4)
    assert not similarity(torch.randn(1, 2, T, 4), value).any()
    assert not value_similarity(value, Tokens.of(None, None, (1, T))).any()


def test_after_exclusion_rounding_is_no_direction() -> None:
    value = torch.randn(1, 1, 50, 4)
    y = 3 * value
    assert not similarity_after(exclude(y, value), y, value).any()


def test_places() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    position_ids = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 0, 1, 0, 0]])
    tokens = Tokens.of(mask, position_ids, (2, T))
    assert tokens.number.tolist() == [[0, 0, 1, 2, 3, 4], [1, 2, 1, 2, 0, 0]]
    assert tokens.first[0, 2:].tolist() == [2, 2, 2, 2]
    assert tokens.first[1, :4].tolist() == [0, 0, 2, 2]
    assert tokens.length.tolist() == [[0, 0, 4, 4, 4, 4], [2, 2, 2, 2, 0, 0]]
    assert len(set(tokens.sequence[tokens.is_real].tolist())) == 3


@pytest.mark.parametrize(("number", "bucket"), [(1, 0), (2, 1), (3, 1), (4, 2), (2**24 - 1, 23), (2**24, 24)])
def test_buckets(number: int, bucket: int) -> None:
    one = torch.tensor([[number]])
    assert Tokens(one, one, one).bucket.tolist() == [[bucket]]


def test_which_stream_a_layer_sees() -> None:
    ids = torch.ones(2, T, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    streams = Streams({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}, has_encoder=True)
    assert int(streams.of_layer("model.encoder.layers.0", (2, T))[1].number.min()) == 0
    assert int(streams.of_layer("model.decoder.layers.0", (2, T))[1].number.min()) == 1
    assert streams.of_layer("model.encoder.layers.0", (2, T + 1))[0] is None
    made_by_the_model = Streams({"input_ids": ids, "attention_mask": mask}, has_encoder=True)
    assert made_by_the_model.of_layer("model.decoder.layers.0", (2, T))[0] is None
    decoder_only = Streams({"input_ids": ids, "attention_mask": mask})
    assert decoder_only.of_layer("model.decoder.layers.0", (2, T))[0] == ""
    assert streams.of_layer("vision_tower.layers.0", (2, T))[0] is None
