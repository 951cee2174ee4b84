"""``torch.export`` and ONNX take our model and upgraded ones as they are, with free shapes, and with a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig

from exsel.models.modeling import CACHE_NAME
from models.small_models import VARIANTS, small_model
from upgrading.upgraded_models import gpt2, llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning",
        "ignore:While compiling, we found certain side effects:UserWarning",  # of transformers' own output recorder
    ),
]
MODELS = {"own": lambda: small_model(**VARIANTS["both"]), "llama": llama, "gpt2": gpt2}
FREE = torch.export.Dim.DYNAMIC
EXAMPLE, OTHER = torch.arange(18).reshape(2, 9), torch.arange(42).reshape(3, 14)


class Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@torch.no_grad()
def test_torch_export_takes_other_batches_and_lengths(model: Any) -> None:
    program = torch.export.export(Logits(model), (EXAMPLE,), dynamic_shapes=({0: FREE, 1: FREE},))
    torch.testing.assert_close(program.module()(OTHER), Logits(model)(OTHER), rtol=0, atol=1e-5)


@torch.no_grad()
def test_transformers_exporter_takes_it_with_a_static_cache(model: Any) -> None:
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    model.config.use_cache = True
    cache = {"batch_size": 1, "max_cache_len": 16}
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static", cache_config=cache)
    exportable = TorchExportableModuleForDecoderOnlyLM(model, **cache)
    first = {"input_ids": EXAMPLE[:1, :1], "cache_position": torch.tensor([0])}
    step = exportable.export(**first).module()
    tokens = OTHER[2:]
    found = [
        step(input_ids=tokens[:, index : index + 1], cache_position=torch.tensor([index]))
        for index in range(tokens.shape[1])
    ]
    torch.testing.assert_close(torch.cat(found, dim=1), Logits(model)(tokens), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:onnx_ir")
def test_onnx_runtime_computes_the_same(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        Logits(model), (EXAMPLE,), dynamo=True, verbose=False, dynamic_shapes=({0: FREE, 1: FREE},)
    )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: OTHER.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Logits(model)(OTHER), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:onnx_ir")
def test_onnx_runtime_generates_on_a_growing_cache(model: Any, tmp_path: Path) -> None:
    """By transformers' exporter: one graph reads the prompt, one a token after it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from transformers.exporters.base import ExportedModel
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model.config.use_cache = True
    prompt = {"input_ids": EXAMPLE, "attention_mask": torch.ones_like(EXAMPLE)}
    OnnxExporter().export_for_generation(
        model.eval(), prompt, OnnxConfig(dynamic=True), generation_config=GenerationConfig(max_new_tokens=4)
    ).save_pretrained(tmp_path)
    graphs = ExportedModel.from_pretrained(tmp_path).runners
    batch, length = OTHER.shape

    def run(graph: str, begin: int, end: int, cache: Cache) -> Any:
        return graphs[graph](
            input_ids=OTHER[:, begin:end],
            attention_mask=torch.ones(batch, end, dtype=torch.long),
            position_ids=torch.arange(begin, end).expand(batch, -1),
            **{CACHE_NAME: cache},
        )

    found = [run("prefill", 0, 9, DynamicCache(config=model.config))]
    for index in range(9, length):
        found.append(run("decode", index, index + 1, getattr(found[-1], CACHE_NAME)))
    logits = torch.cat([each.logits for each in found], dim=1)
    torch.testing.assert_close(logits, Logits(model)(OTHER), rtol=0, atol=1e-5)
