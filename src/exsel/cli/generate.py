"""``exsel generate``: continue a prompt."""

from __future__ import annotations

import argparse

from exsel.cli.arguments import add_device_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or one that holds a saved model")
    parser.add_argument("--prompt", required=True, help="the text to continue; - reads standard input")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="(%(default)s)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="of sampling (%(default)s)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="X", help="of sampling (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (%(default)s)")
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load, and print the prompt with its continuation as it comes."""
    import sys

    from exsel.errors import ExselError, require_all

    require_all("models")
    if arguments.max_new_tokens < 1:
        raise ExselError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    if not arguments.greedy and not (arguments.temperature > 0 and 0 < arguments.top_p <= 1):
        raise ExselError("--temperature must be positive and --top-p lie in (0, 1]; --greedy takes the likeliest token")
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not 0 <= arguments.seed < 2**32:
        raise ExselError(f"--seed must lie between 0 and 2**32 - 1, got {arguments.seed}")
    if not prompt:
        raise ExselError("--prompt is empty: give some text to continue")

    import torch
    from transformers import TextStreamer, set_seed

    from exsel.cli.checkpoint import check_length, load_checkpoint
    from exsel.training.environment import resolve_device

    device = resolve_device(arguments.device)
    model, tokenizer = load_checkpoint(arguments.checkpoint, device)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(device)
    check_length(model, inputs["input_ids"].shape[1] + arguments.max_new_tokens)
    sampling: dict[str, bool | float] = {"do_sample": False}
    if not arguments.greedy:
        sampling = {"do_sample": True, "temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": 0}
    set_seed(arguments.seed)
    with torch.inference_mode():
        model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=arguments.max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_special_tokens=True),
            **sampling,
        )
    return 0
