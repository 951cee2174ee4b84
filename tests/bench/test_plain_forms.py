from __future__ import annotations

import pytest
import torch

from exsel import reference
from exsel.bench.attention import dot_form, normalize_form, scale_form
from exsel.bench.model_contenders import PlainExclusive, PlainTemperature


@pytest.mark.parametrize("form", [normalize_form, dot_form, PlainExclusive()])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_plain_forms_are_the_reference(form: object, kv_heads: int) -> None:
    y, v = torch.randn(2, 4, 9, 16, dtype=torch.float64), torch.randn(2, kv_heads, 9, 16, dtype=torch.float64)
    expected = reference.exclude(y, v, None, 1e-12)
    torch.testing.assert_close(form(y, v), expected, rtol=0, atol=1e-12)  # type: ignore[operator]


def test_the_plain_temperature_is_the_reference() -> None:
    temperature = PlainTemperature(4, 16)
    torch.nn.init.normal_(temperature.weight)
    features, position = torch.randn(2, 4, 9, 16), torch.arange(1, 10).expand(2, 9)
    expected = reference.inverse_temperature(features, temperature.weight, position, temperature.position_logit)
    torch.testing.assert_close(temperature(features, position), expected, rtol=1e-5, atol=1e-5)
    assert scale_form(features, expected).shape == features.shape
