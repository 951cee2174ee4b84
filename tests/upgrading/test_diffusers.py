"""diffusers' attention layers, whose processors do the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exsel
from exsel import ExclusiveConfig
from exsel.upgrading.attention_layers import targets
from exsel.upgrading.upgraded_class import check_whole
from upgrading.layer_checks import check_alike, check_model, run

pytest.importorskip("diffusers")
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _dit() -> tuple[nn.Module, dict[str, Any]]:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    labels = torch.tensor([1, 2])
    return model, {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": labels, "class_labels": labels}


def _unet() -> tuple[nn.Module, dict[str, Any]]:
    model = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    return model, {"sample": torch.randn(2, 4, 8, 8), "timestep": 1, "encoder_hidden_states": torch.randn(2, 64, 12)}


def _unet_without_text() -> tuple[nn.Module, dict[str, Any]]:
    model = UNet2DModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, norm_num_groups=4,
    )  # fmt: skip
    return model, {"sample": torch.randn(2, 3, 8, 8), "timestep": 1}


def _pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12, norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([1, 2]),
        "encoder_hidden_states": torch.randn(2, 16, 12),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip


def _cogvideo() -> tuple[nn.Module, dict[str, Any]]:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=8, num_layers=2, sample_width=8, sample_height=8, sample_frames=5, patch_size=2,
        max_text_seq_length=5,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 2, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 8),
        "timestep": torch.tensor([1]),
    }  # fmt: skip


def _sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 32),
        "pooled_projections": torch.randn(2, 64), "timestep": torch.tensor([1.0, 2.0]),
    }  # fmt: skip


def _flux() -> tuple[nn.Module, dict[str, Any]]:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 32),
        "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([1.0]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def _randomised(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> tuple[nn.Module, dict[str, Any]]:
    """With weights that let every layer take part: some start at zero."""
    model, inputs = build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval(), inputs


@pytest.mark.parametrize("build", [_dit, _unet, _unet_without_text, _pixart, _cogvideo])
def test_both_mechanisms(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    model, inputs = _randomised(build)
    check_model(model, lambda: model(**inputs, return_dict=False))


@pytest.mark.parametrize("build", [_sd3, _flux])
def test_joint_attention_is_exclusive_only(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    model, inputs = _randomised(build)
    check_model(model, lambda: model(**inputs, return_dict=False), selective=False)
    with pytest.raises(ValueError, match="projections"):
        exsel.upgrade(model, selective=True)


@pytest.mark.parametrize("build", [_dit, _unet, _pixart])
def test_tokens_alike_leave_nothing(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    model, _ = _randomised(build)
    name = next(target.name for target in targets(model) if not target.left_alone)
    layer = model.get_submodule(name)
    check_alike(model, layer, (2, 7, layer.to_q.in_features))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("build", [_sd3, _flux])
def test_own_values_of_text_and_image(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    """Each output is orthogonal to the value of its own token, which the test reads off the projections."""
    model, _ = _randomised(build)
    layer: Any = model.get_submodule("transformer_blocks.0.attn")
    image, text = torch.randn(2, 7, layer.to_q.in_features), torch.randn(2, 3, layer.add_q_proj.in_features)
    exsel.upgrade(model, exclusive=True)
    mixed: dict[str, Tensor] = {}
    layer.to_out[0].register_forward_pre_hook(lambda _, inputs: mixed.update(image=inputs[0]))
    layer.to_add_out.register_forward_pre_hook(lambda _, inputs: mixed.update(text=inputs[0]))
    layer(image, encoder_hidden_states=text)
    for own_value, z in ((layer.to_v(image), mixed["image"]), (layer.add_v_proj(text), mixed["text"])):
        own_value, z = (states.unflatten(-1, (layer.heads, -1)) for states in (own_value, z))
        along = (F.normalize(own_value, dim=-1) * z).sum(-1)
        assert along.abs().max() < 1e-5 * z.abs().max()


@pytest.mark.parametrize("build", [_unet, _pixart])
def test_cross_attention_is_left_alone(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    model, _ = _randomised(build)
    exsel.upgrade(model, exclusive=True)
    layers = {name: module for name, module in model.named_modules() if name.endswith(("attn1", "attn2"))}
    assert layers
    for name, module in layers.items():
        assert hasattr(module, "exsel") == name.endswith("attn1")
        assert (type(module) is Attention) == name.endswith("attn2")


def test_a_processor_that_writes_attention_out_is_refused() -> None:
    model, _ = _randomised(_unet)
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="AttnProcessor calls an attention function 0 times"):
        exsel.upgrade(model, exclusive=True)


def test_a_processor_set_later() -> None:
    model, inputs = _randomised(_unet)
    exsel.upgrade(model, exclusive=True)
    (expected,) = run(lambda: model(**inputs, return_dict=False))

    class Same(AttnProcessor2_0):
        pass

    model.set_attn_processor(Same())
    assert torch.equal(run(lambda: model(**inputs, return_dict=False))[0], expected)
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(RuntimeError, match="AttnProcessor calls an attention function 0 times"):
        model(**inputs)
    exsel.downgrade(model)
    model(**inputs)


def test_a_patched_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = _randomised(_dit)
    exsel.upgrade(model, exclusive=True)
    model(**inputs)
    original = AttnProcessor2_0.__call__

    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(AttnProcessor2_0, "__call__", timed)
    for error, used in ((RuntimeError, lambda: model(**inputs)), (exsel.UpgradeError, lambda: check_whole(model))):
        with pytest.raises(error, match=r"wrapped by \S+\.timed"):
            used()
    with pytest.raises(exsel.UpgradeError, match=r"wrapped by \S+\.timed"):
        exsel.upgrade(exsel.downgrade(model), exclusive=True)


def test_a_self_attention_called_with_a_context() -> None:
    model, _ = _randomised(_dit)
    exsel.upgrade(model, exclusive=True)
    layer = model.get_submodule("transformer_blocks.0.attn1")
    x = torch.randn(2, 7, layer.to_q.in_features)  # type: ignore[union-attr, arg-type]
    layer(x)
    with pytest.raises(RuntimeError, match="cross-attention has no own values"):
        layer(x, encoder_hidden_states=torch.randn_like(x))


def test_added_keys_and_values_are_refused() -> None:
    layer = Attention(16, heads=2, dim_head=8, added_kv_proj_dim=16, processor=AttnAddedKVProcessor2_0())
    with pytest.raises(ValueError, match="adds keys and values of other tokens"):
        exsel.upgrade(nn.ModuleList([layer]), exclusive=True)


def test_compiles_whole() -> None:
    model, _ = _randomised(_dit)
    exsel.upgrade(model, exclusive=ExclusiveConfig(strength="learned"), selective=True)
    block: Any = model.get_submodule("transformer_blocks.0.attn1")
    x = torch.randn(2, 7, block.to_q.in_features)
    with torch.no_grad():
        assert torch.allclose(torch.compile(block, fullgraph=True, backend="eager")(x), block(x), atol=1e-6)


def test_diffusers_own_saving_is_refused(tmp_path: Path) -> None:
    """It would load as the plain model. The state dict fits a model that is upgraded alike, and no other."""
    model, inputs = _randomised(_unet)
    exsel.upgrade(model, exclusive=True)
    with pytest.raises(exsel.UpgradeError, match="would load a plain UNet2DConditionModel"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    other, _ = _unet()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fixed_strength"):
        other.load_state_dict(model.state_dict())
    exsel.upgrade(other, exclusive=True)
    other.load_state_dict(model.state_dict())
    (expected,) = run(lambda: model(**inputs, return_dict=False))
    assert torch.equal(run(lambda: other.eval()(**inputs, return_dict=False))[0], expected)
    exsel.downgrade(model).save_pretrained(tmp_path / "folder")
