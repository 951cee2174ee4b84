from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, SelectiveConfig
from exsel.data import collate, load_evaluation_data, load_tokenizer
from exsel.evaluation import Evaluation, evaluate_loss
from training.small_runs import MODEL, write_corpus

CPU = torch.device("cpu")


def small_model() -> ExselForCausalLM:
    values = {key: value for key, value in MODEL.items() if key != "model_type"}
    config = ExselConfig(
        vocab_size=259, initializer_range=0.3, exclusive=ExclusiveConfig(), selective=SelectiveConfig(), **values
    )
    return ExselForCausalLM(config)


def token_losses(model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One row at a time in float64: the loss of each prediction and whether it counts, ``[rows, T - 1]``."""
    exact = model.double().eval()
    losses, counts = [], []
    for row in rows:
        batch = collate([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            scores = exact(**batch, use_cache=False).logits[0, :-1].log_softmax(-1)
        count = labels != -100
        losses.append(-scores.gather(1, labels.clamp_min(0)[:, None])[:, 0] * count)
        counts.append(count)
    return torch.stack(losses), torch.stack(counts)


@pytest.mark.parametrize("pack", ["concat", "isolate"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_equals_float64_by_hand(tmp_path: Path, pack: str, batch_size: int) -> None:
    corpus = write_corpus(tmp_path / "corpus", documents=3, words=20)
    blocks, _ = load_evaluation_data(str(corpus), tokenizer=load_tokenizer("bytes"), seq_len=24, pack=pack)
    assert len(blocks) > 4
    model = small_model()
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_loss(
        model, blocks, batch_size=batch_size, device=CPU, on_batch=lambda done, total: seen.append((done, total))
    )
    losses, counts = token_losses(model, list(blocks))
    assert evaluation.loss == pytest.approx(float(losses.sum() / counts.sum()), rel=1e-6)
    assert evaluation.count.tolist() == [0, *counts.sum(0).tolist()]
    torch.testing.assert_close(evaluation.loss_sum[1:], losses.sum(0), rtol=1e-5, atol=1e-5)
    if pack == "isolate":
        assert int(evaluation.count.sum()) < len(blocks) * 23
    assert seen[-1] == (len(blocks), len(blocks))
    assert len(seen) == -(-len(blocks) // batch_size)


def test_any_language_model_will_do() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    rows = [{"input_ids": torch.randint(0, 259, (20,)).tolist()} for _ in range(3)]
    evaluation = evaluate_loss(model, rows, batch_size=2, device=CPU)
    losses, counts = token_losses(model, rows)
    assert evaluation.loss == pytest.approx(float(losses.sum() / counts.sum()), rel=1e-6)


def test_leaves_the_model_as_it_was() -> None:
    model = small_model()
    rows = [{"input_ids": torch.randint(0, 259, (8,)).tolist()}]
    for training in (True, False):
        model.train(training)
        evaluate_loss(model, rows, batch_size=1, device=CPU)
        assert model.training == training
        assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=32, n_embd=16, n_layer=1, n_head=2)).train()
    rows = [{"input_ids": torch.randint(0, 259, (20,)).tolist()}]
    first, second = (evaluate_loss(model, rows, batch_size=1, device=CPU).loss for _ in range(2))
    assert first == second


def test_bfloat16_is_computed_in_bfloat16() -> None:
    model = small_model()
    rows = [{"input_ids": torch.randint(0, 259, (20,)).tolist()}]
    single = evaluate_loss(model, rows, batch_size=1, device=CPU).loss
    half = evaluate_loss(model, rows, batch_size=1, device=CPU, dtype=torch.bfloat16).loss
    assert half != single
    assert half == pytest.approx(single, rel=0.05)


def test_buckets_double_and_add_up() -> None:
    count = torch.tensor([0, *range(10, 29)])
    loss_sum = torch.rand(20, dtype=torch.float64)
    evaluation = Evaluation(loss_sum=loss_sum, count=count)
    buckets = evaluation.by_position()
    assert [(first, end) for first, end, _ in buckets] == [(1, 2), (2, 4), (4, 8), (8, 16), (16, 20)]
    total = sum(loss * int(count[first:end].sum()) for first, end, loss in buckets)
    assert total / int(count.sum()) == pytest.approx(float(loss_sum[1:].sum()) / int(count.sum()), rel=1e-12)
    for first, end, loss in buckets:
        assert loss == pytest.approx(float(loss_sum[first:end].sum()) / int(count[first:end].sum()))


def test_buckets_without_predictions_are_left_out() -> None:
    evaluation = Evaluation(loss_sum=torch.tensor([0.0, 0.0, 2.0]), count=torch.tensor([0, 0, 1]))
    assert evaluation.by_position() == [(2, 3, 2.0)]


def test_closed_forms() -> None:
    evaluation = Evaluation(loss_sum=torch.tensor([0.0, 3.0, 5.0], dtype=torch.float64), count=torch.tensor([0, 2, 2]))
    assert evaluation.loss == 2.0
    assert evaluation.perplexity == pytest.approx(math.exp(2.0))
    assert evaluation.bits_per_byte(4.0) == pytest.approx(2.0 / math.log(2) / 4.0)
    # A uniform model over 256 bytes needs 8 bits a byte.
    uniform = Evaluation(loss_sum=torch.tensor([math.log(256)]), count=torch.tensor([1]))
    assert uniform.bits_per_byte(1.0) == pytest.approx(8.0)


def test_a_huge_loss_has_a_finite_perplexity() -> None:
    assert math.isfinite(Evaluation(loss_sum=torch.tensor([1e6]), count=torch.tensor([1])).perplexity)


def test_uniform_logits_cost_log_vocabulary() -> None:
    model = small_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    rows = [{"input_ids": torch.randint(0, 259, (20,)).tolist()}]
    assert evaluate_loss(model, rows, batch_size=1, device=CPU).loss == pytest.approx(math.log(259), rel=1e-6)
