"""The transformers model: attention implementations, training features, and what each mechanism adds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from exsel import ExclusiveConfig, ExselForCausalLM, SelectiveConfig
from exsel.models import modeling
from models.small_models import VARIANTS, small_config, small_model
from upgrading.architectures import FLEX


def token_ids(batch: int = 2, tokens: int = 11) -> Tensor:
    return torch.randint(61, (batch, tokens), generator=torch.Generator().manual_seed(1))


def gradients(model: ExselForCausalLM, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    ids = token_ids()
    model(ids, labels=ids, **inputs).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys(), "every parameter has a gradient"
    return found


class TestAttentionImplementations:
    @pytest.mark.parametrize("padded", [False, True])
    def test_eager_equals_sdpa(self, variant: dict[str, Any], shape: dict[str, Any], padded: bool) -> None:
        sdpa = small_model(**variant, **shape)
        eager = small_model(attn_implementation="eager", **variant, **shape)
        real = torch.ones(2, 11, dtype=torch.long)
        if padded:
            real[1, :4] = 0
        got, expected = (model(token_ids(), attention_mask=real).logits for model in (eager, sdpa))
        counted = real.bool()
        torch.testing.assert_close(got[counted], expected[counted], rtol=1e-5, atol=1e-5)
        one, other = gradients(eager), gradients(sdpa)
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers' own
    @torch.no_grad()
    @pytest.mark.parametrize("implementation", [FLEX])
    def test_flex_equals_sdpa(self, implementation: str) -> None:
        torch.compiler.reset()
        options = VARIANTS["both"]
        flex = small_model(attn_implementation=implementation, **options)
        assert flex.config._attn_implementation == implementation
        torch.testing.assert_close(
            flex(token_ids()).logits, small_model(**options)(token_ids()).logits, rtol=1e-5, atol=1e-5
        )

    @torch.no_grad()
    def test_attentions_are_returned(self) -> None:
        outputs = small_model(attn_implementation="eager", **VARIANTS["both"])(
            token_ids(), output_attentions=True, output_hidden_states=True
        )
        assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 11, 11)] * 3
        torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 11))
        assert len(outputs.hidden_states) == 4

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @torch.no_grad()
    def test_one_call_a_layer(
        self,
        variant: dict[str, Any],
        shape: dict[str, Any],
        implementation: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Serving engines replace this one call; a second one, or none, and they would compute something else."""
        layers: list[int] = []
        original = (
            modeling_llama.eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS["sdpa"]
        )

        def count(module: Any, *args: Any, **kwargs: Any) -> Any:
            layers.append(module.layer_idx)
            return original(module, *args, **kwargs)

        if implementation == "eager":
            monkeypatch.setattr(modeling, "eager_attention_forward", count)
        else:
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", count)
        small_model(attn_implementation=implementation, **variant, **shape)(token_ids())
        assert layers == [0, 1, 2]

    def test_projections_are_separate_linears_and_nothing_hooks(self, variant: dict[str, Any]) -> None:
        model = small_model(**variant)
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                assert type(getattr(layer.self_attn, name)) is torch.nn.Linear
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.layers.modules())


class TestTraining:
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # newer than 5.17
    def test_gradient_checkpointing(self, variant: dict[str, Any], shape: dict[str, Any]) -> None:
        model = small_model(**variant, **shape).train()
        expected = gradients(model)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls: list[None] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
        for name, gradient in gradients(model, use_cache=False).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
        assert len(calls) == 2, "forward, and again for the backward"

    @pytest.mark.parametrize(
        "variant",
        [pytest.param(name, marks=[] if name == "both" else pytest.mark.slow) for name in VARIANTS],
        indirect=True,
    )
    @pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
    def test_compiled_equals_eager(self, variant: dict[str, Any], shape: dict[str, Any], compiler: str) -> None:
        layers = {"num_hidden_layers": 2, "layer_types": shape["layer_types"][:2] if "layer_types" in shape else None}
        model = small_model(**{**variant, **shape, **layers}).train()
        expected = gradients(model, use_cache=False)
        torch.compiler.reset()
        model.forward = torch.compile(model.forward, fullgraph=True, backend=compiler)
        for name, gradient in gradients(model, use_cache=False).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

    def test_loss_is_the_mean_over_the_next_tokens(self) -> None:
        model, ids = small_model(**VARIANTS["both"]), token_ids()
        labels = ids.clone()
        labels[0, 5:] = -100
        outputs = model(ids, labels=labels)
        log_probability = outputs.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(outputs.loss, -log_probability[labels[:, 1:] != -100].mean())

    @pytest.mark.parametrize("token", ["shared", "mlp", "linear", "frequency", "constant", "none"])
    def test_every_new_parameter_receives_a_gradient_and_counts(self, token: Any) -> None:
        options = {
            "exclusive": ExclusiveConfig(strength="learned"),
            "selective": SelectiveConfig(token=token, key=True, position_init=0.05),
        }
        baseline = {name for name, _ in ExselForCausalLM(small_config()).named_parameters()}
        model = small_model(**options)
        if token == "frequency":
            model.model.set_token_counts(torch.arange(61))
        new = {name: parameter for name, parameter in model.named_parameters() if name not in baseline}
        # One learned strength and three temperatures a layer.
        assert len(new) == 3 * (1 + 3 * {"mlp": 3, "none": 1}.get(token, 2))
        found = gradients(model)
        with torch.no_grad():
            before = model(token_ids()).logits
            for name, parameter in new.items():
                assert found[name].abs().max() > 1e-7, name
                original = parameter.clone()
                parameter.add_(torch.randn_like(parameter))
                assert (model(token_ids()).logits - before).abs().max() > 1e-4, name
                parameter.copy_(original)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_dtypes(self, variant: dict[str, Any], shape: dict[str, Any], dtype: torch.dtype) -> None:
        model, ids = small_model(**variant, **shape), token_ids()
        expected = model(ids).logits
        got = model.to(dtype)(ids).logits
        assert got.dtype == dtype
        assert (got.float() - expected).norm() < (0.1 if dtype == torch.bfloat16 else 1e-5) * expected.norm()

    # torch's nn.RMSNorm, once a process: under autocast its input is bfloat16 and its weight float32.
    @pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
    def test_autocast(self, variant: dict[str, Any], shape: dict[str, Any]) -> None:
        model, ids = small_model(**variant, **shape), token_ids()
        expected = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(ids, labels=ids)
        assert (outputs.logits.float() - expected).norm() < 0.1 * expected.norm()
        outputs.loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


class TestInitialWeights:
    @pytest.mark.parametrize(
        "mechanisms",
        [
            {"exclusive": ExclusiveConfig(strength="learned")},
            {"selective": SelectiveConfig(key=True)},
            {"selective": SelectiveConfig(token="frequency")},
            {"exclusive": ExclusiveConfig(), "selective": SelectiveConfig(token="none")},
        ],
        ids=["learned", "shared", "frequency", "none"],
    )
    def test_same_seed_same_shared_weights(self, mechanisms: dict[str, Any], shape: dict[str, Any]) -> None:
        def build(**options: Any) -> dict[str, Tensor]:
            torch.manual_seed(3)
            return ExselForCausalLM(small_config(**options, **shape)).state_dict()

        baseline, other = build(), build(**mechanisms)
        assert baseline.keys() <= other.keys()
        for name, weight in baseline.items():
            assert torch.equal(weight, other[name]), name

    @torch.no_grad()
    def test_learned_strength_starts_as_the_baseline(self, shape: dict[str, Any]) -> None:
        torch.manual_seed(3)
        baseline = ExselForCausalLM(small_config(**shape)).eval()
        learned = ExselForCausalLM(small_config(exclusive=ExclusiveConfig(strength="learned"), **shape)).eval()
        learned.load_state_dict(baseline.state_dict(), strict=False)
        torch.testing.assert_close(learned(token_ids()).logits, baseline(token_ids()).logits, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("token", ["shared", "mlp", "linear", "constant"])
    @torch.no_grad()
    def test_selective_without_position_starts_as_the_baseline(self, token: Any, shape: dict[str, Any]) -> None:
        torch.manual_seed(3)
        baseline = ExselForCausalLM(small_config(**shape)).eval()
        selective = SelectiveConfig(token=token, key=True, position=False, value_position=False)
        model = ExselForCausalLM(small_config(selective=selective, **shape)).eval()
        model.load_state_dict(baseline.state_dict(), strict=False)
        assert torch.equal(model(token_ids()).logits, baseline(token_ids()).logits), "exactly"

    @torch.no_grad()
    def test_selective_with_position_starts_near_the_baseline(self) -> None:
        """τ − 1 is at most 6e-4 log 11 = 1.4e-3 on queries and values."""
        torch.manual_seed(3)
        baseline = ExselForCausalLM(small_config()).eval()
        model = ExselForCausalLM(small_config(selective=SelectiveConfig())).eval()
        model.load_state_dict(baseline.state_dict(), strict=False)
        got, expected = model(token_ids()).logits, baseline(token_ids()).logits
        assert 0 < (got - expected).abs().max() < 0.01 * expected.abs().max()

    def test_standard_deviations(self) -> None:
        torch.manual_seed(0)
        model = ExselForCausalLM(small_config(hidden_size=128, head_dim=64, initializer_range=0.02))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                assert torch.equal(parameter, torch.ones_like(parameter)), name
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.02 / math.sqrt(6) if residual else 0.02
            assert abs(parameter.std().item() / expected - 1) < 0.05, name


class TestLayers:
    @pytest.mark.parametrize(
        "mechanisms",
        [{"exclusive": ExclusiveConfig(layers="last:1")}, {"selective": SelectiveConfig(layers="last:1")}],
        ids=["exclusive", "selective"],
    )
    @torch.no_grad()
    def test_last_layer_only(self, mechanisms: dict[str, Any]) -> None:
        baseline, model = small_model(), small_model(**mechanisms)
        model.load_state_dict(baseline.state_dict(), strict=False)
        *before, expected = baseline(token_ids(), output_hidden_states=True).hidden_states
        *same, changed = model(token_ids(), output_hidden_states=True).hidden_states
        assert len(same) == 3, "the embedding and two layers"
        for one, other in zip(before, same, strict=True):
            assert torch.equal(one, other)
        assert (changed - expected).abs().max() > 1e-2

    def test_by_index(self) -> None:
        model = small_model(exclusive=ExclusiveConfig(layers=(0, -1)), selective=SelectiveConfig(layers=(1,)))
        attentions = [layer.self_attn for layer in model.model.layers]
        assert [attention.exclusive is not None for attention in attentions] == [True, False, True]
        assert [len(attention.temperatures) for attention in attentions] == [0, 2, 0]


class TestFrequency:
    OPTIONS: dict[str, Any] = {"selective": SelectiveConfig(token="frequency")}  # noqa: RUF012

    @torch.no_grad()
    def test_without_counts_nothing_is_finite(self) -> None:
        assert torch.isnan(small_model(**self.OPTIONS)(token_ids()).logits).all()

    @torch.no_grad()
    def test_feature_is_standardised_and_counts(self) -> None:
        model, counts = small_model(**self.OPTIONS), torch.randint(1000, (61,))
        counts[0] = 0
        model.model.set_token_counts(counts)
        phi, weight = model.model.token_log_frequency, counts / counts.sum()
        assert phi is not None
        assert torch.isfinite(phi).all()
        torch.testing.assert_close((weight * phi).sum(), torch.tensor(0.0), rtol=0, atol=1e-5)
        torch.testing.assert_close((weight * phi.square()).sum(), torch.tensor(1.0))
        order = torch.argsort(counts, stable=True)
        assert (phi[order].diff() >= 0).all(), "more frequent, higher"
        logits = model(token_ids()).logits
        assert torch.isfinite(logits).all()
        model.model.set_token_counts(torch.arange(61).flip(0))
        assert (model(token_ids()).logits - logits).abs().max() > 1e-3

    @torch.no_grad()
    def test_all_tokens_equally_frequent(self) -> None:
        model = small_model(**self.OPTIONS)
        model.model.set_token_counts(torch.full((61,), 7))
        assert torch.isfinite(model(token_ids()).logits).all()

    def test_impossible_counts(self) -> None:
        model = small_model(**self.OPTIONS)
        with pytest.raises(ValueError, match="counts must hold 61 numbers"):
            model.model.set_token_counts(torch.ones(60))
        with pytest.raises(ValueError, match="not all 0"):
            model.model.set_token_counts(torch.zeros(61))
        with pytest.raises(ValueError, match="no frequency temperatures"):
            small_model().model.set_token_counts(torch.ones(61))

    def test_embeddings_alone_do_not_tell_the_tokens(self) -> None:
        with pytest.raises(ValueError, match="reads input_ids"):
            small_model(**self.OPTIONS)(inputs_embeds=torch.zeros(1, 3, 32))


@torch.no_grad()
def test_input_is_ids_or_embeddings(variant: dict[str, Any]) -> None:
    model, ids = small_model(**variant), token_ids()
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
