"""``exsel generate``: continue a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from exsel.cli.checkpoint import check_ids, find_model, load_checkpoint
from exsel.cli.flags import MODEL, add_device_argument, add_past_context_argument, real, seed, whole
from exsel.errors import ExselError, explained, first_line, require_all
from exsel.lengths import check_length, context_of

_MOST_TOKENS = 200
# Outside these, logits divided by the temperature overflow, or all tokens become equally likely.
_COLDEST, _HOTTEST = 1e-4, 1e4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--prompt", required=True, help="the text to continue; - reads standard input")
    most = f"({_MOST_TOKENS}, or as many as the model's context leaves)"
    parser.add_argument("--max-new-tokens", type=whole(1), metavar="N", help=most)
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=real, default=0.8, metavar="X", help="of sampling (%(default)s)")
    parser.add_argument("--top-p", type=real, default=0.95, metavar="X", help="of sampling (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of sampling (%(default)s)")
    add_past_context_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the prompt, load, and print its continuation as it comes."""
    require_all("models")
    if not arguments.greedy and not (_COLDEST <= arguments.temperature <= _HOTTEST):
        raise ExselError(
            f"--temperature must lie between {_COLDEST:g} and {_HOTTEST:g}, got {arguments.temperature}; --greedy "
            "takes the likeliest token"
        )
    if not arguments.greedy and not 0 < arguments.top_p <= 1:
        raise ExselError(f"--top-p must lie in (0, 1], got {arguments.top_p}")
    try:
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
        prompt.encode()
    except UnicodeError as error:
        raise ExselError(f"--prompt is not UTF-8 text: {first_line(error)}") from error
    if not prompt:
        raise ExselError("--prompt is empty: give some text to continue")

    folder = find_model(arguments.model)
    print(prompt, end="", flush=True)
    try:
        _continue(arguments, folder, prompt)
    except BaseException:
        print()
        raise
    return 0


def _continue(arguments: argparse.Namespace, folder: str, prompt: str) -> None:
    """Print what the model adds to a prompt."""
    import torch
    from transformers import LogitsProcessorList, TextStreamer

    from exsel.machine import resolve_device

    known = 0

    def check_logits(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if logits.isnan().any() or logits.isposinf().any():
            raise ExselError("it gives logits that are no numbers: its weights are of no use")
        return logits

    class Continuation(TextStreamer):  # type: ignore[misc]
        """Prints what follows the prompt, which stands there already."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            nonlocal known
            super().on_finalized_text(text[known:], stream_end)
            known = max(0, known - len(text))

    device = resolve_device(arguments.device)
    model, tokenizer = load_checkpoint(folder, device)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, verbose=False).to(device)
    given = inputs["input_ids"].shape[1]
    known = len(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
    check_ids(model, inputs["input_ids"].tolist())
    most = arguments.max_new_tokens
    if most is None:
        context = None if arguments.past_context else context_of(model.config)
        most = _MOST_TOKENS if context is None else min(_MOST_TOKENS, max(1, context - given))
    check_length(model, given + most, past_context=arguments.past_context)
    sampling: dict[str, Any] = {"do_sample": not arguments.greedy}
    if not arguments.greedy:
        sampling |= {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": 0}
    torch.manual_seed(arguments.seed)
    with explained(f"{arguments.model} cannot go on with this"), torch.inference_mode():
        model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=most,
            streamer=Continuation(tokenizer, skip_special_tokens=True),
            logits_processor=LogitsProcessorList([check_logits]),
            **sampling,
        )
