"""Text that a model makes up after a prompt out of held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, what the model goes on with, and what the text itself goes on with."""

    prompt: str
    continuation: str
    text: str


@torch.no_grad()
def sample_texts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Any,
    *,
    count: int,
    prompt_tokens: int,
    new_tokens: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[Sample]:
    """Go on with the beginnings of some blocks, uncompiled, in evaluation mode.

    Every model draws with the same random numbers: what differs between two of them is theirs.

    Args:
        model: a model on ``device``, called as transformers' are.
        tokenizer: of the blocks.
        blocks: rows of ``input_ids``, each of ``prompt_tokens + new_tokens`` or more.
        count: how many blocks, evenly spread.
        prompt_tokens: of each block.
        new_tokens: to draw, at most: a sample ends with its document.
        device: where the model is.
        dtype: of the computation (autocast, if it is not float32).
        temperature: the logits are divided by it.
        seed: of the random numbers.
    """
    count = min(count, len(blocks))
    chosen = [np.asarray(blocks[(2 * index + 1) * len(blocks) // (2 * count)]["input_ids"]) for index in range(count)]
    ids = torch.from_numpy(np.stack([row[:prompt_tokens] for row in chosen]).astype(np.int64)).to(device)
    words, generator = len(tokenizer), torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    with torch.compiler.set_stance("force_eager"):
        for _ in range(new_tokens):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, -1]
            shares = (logits[:, :words].float() / temperature).softmax(-1).cpu()
            ids = torch.cat((ids, torch.multinomial(shares, 1, generator=generator).to(device)), dim=1)
    model.train(was_training)

    def decoded(tokens: Any) -> str:
        return str(tokenizer.decode(list(map(int, tokens)), skip_special_tokens=True))

    return [
        Sample(
            prompt=decoded(row[:prompt_tokens]),
            continuation=decoded(_document(drawn[prompt_tokens:].tolist(), tokenizer)),
            text=decoded(_document(row[prompt_tokens : prompt_tokens + new_tokens].tolist(), tokenizer)),
        )
        for row, drawn in zip(chosen, ids, strict=True)
    ]


def _document(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens before the one that ends a document."""
    end = tokenizer.eos_token_id
    return tokens[: tokens.index(end)] if end in tokens else tokens
