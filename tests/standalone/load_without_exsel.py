"""Load folders by their own code in a process that cannot import exsel, and write what the models compute.

python load_without_exsel.py RESULTS.safetensors FOLDER…
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

IDS = torch.arange(18).reshape(2, 9) % 61
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0


def computed(model: Any) -> dict[str, Tensor]:
    """Logits, of left-padded rows too, a loss's gradient, and tokens generated with a cache, with their scores."""
    out = model(IDS, labels=IDS)
    out.loss.backward()
    norms = {name: value.grad.norm() for name, value in model.named_parameters() if value.grad is not None}
    with torch.no_grad():
        padded = model(IDS, attention_mask=MASK).logits
        options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        made = model.generate(IDS, attention_mask=MASK, max_new_tokens=6, pad_token_id=0, eos_token_id=None, **options)
    return {
        "logits": out.logits.detach(),
        "padded": padded,
        "gradients": torch.stack(list(norms.values())),
        "tokens": made.sequences,
        "scores": torch.stack(made.scores),
    }


class _NoExsel:
    """A finder that finds no exsel."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "exsel":
            raise ModuleNotFoundError("exsel must not be imported here", name=name)


def main(results: str, *folders: str) -> None:
    sys.meta_path.insert(0, _NoExsel())  # type: ignore[arg-type]
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tensors = {}
    for folder in folders:
        try:
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code=True" in str(error)  # noqa: PT017 (no pytest here)
        else:
            raise AssertionError(f"{folder} was loaded without trust")
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        model.save_pretrained(f"{folder}-again")
        model = AutoModelForCausalLM.from_pretrained(f"{folder}-again", trust_remote_code=True)
        tensors |= {f"{Path(folder).name}.{name}": value.contiguous() for name, value in computed(model).items()}
    assert "exsel" not in sys.modules
    save_file(tensors, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
