"""``exsel diagnose``: see what attention does inside a model, on some text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.cli.checkpoint import check_ids, load_checkpoint, read_context
from exsel.cli.flags import MODEL, add_data_arguments, add_device_argument, add_past_context_argument, whole
from exsel.cli.model_line import say_model
from exsel.cli.outputs import check_out, command_line
from exsel.errors import ExselError, explained, require_all
from exsel.lengths import check_context
from exsel.training.output_folder import is_comparison, is_run

if TYPE_CHECKING:
    from exsel.diagnostics import Diagnosis
    from exsel.diagnostics.diagnosis_report.diagnosed_models import DiagnosedModel

# The sequence length if neither the flags nor the model give one.
_SEQ_LEN = 512
_HEADINGS = {
    "similarity": "cos(y, v)",
    "similarity_after": "cos(z, v)",
    "centred_similarity": "centred",
    "self_weight": "self-weight",
    "effective_tokens": "eff. tokens",
    "sink_mass": "sink",
    "query_temperature": "τ query",
    "value_temperature": "τ value",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "model", metavar="MODEL", help=f"{MODEL}, with a causal mask or without; or the folder of an adapter of PEFT"
    )
    parser.add_argument("--against", metavar="MODEL", help="another model on the same text, shown side by side")
    text = parser.add_argument_group("text", "by default the held-out part of the Python standard library's source")
    text.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="these texts instead of --data")
    add_data_arguments(text)
    text.add_argument(
        "--seq-len", type=whole(2), metavar="N", help=f"tokens a sequence ({_SEQ_LEN}; of --text, the model's context)"
    )
    text.add_argument(
        "--max-sequences", type=whole(1), default=8, metavar="N", help="at most so many sequences (%(default)s)"
    )
    parser.add_argument("--batch-size", type=whole(1), default=1, metavar="N", help="sequences at a time (%(default)s)")
    add_past_context_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of the weights; auto: as saved"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs", "diagnose"), help="where everything goes (%(default)s)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace the diagnosis in --out")


def run(arguments: argparse.Namespace) -> int:
    """Check the flags, diagnose one model after the other, print, write."""
    require_all("train")
    from exsel.diagnostics.diagnosis_report.diagnosis_folder import is_diagnosis

    if arguments.text and arguments.data:
        raise ExselError("--text gives the text itself and --data says where it is: give one of them")
    if any(not text.strip() for text in arguments.text):
        raise ExselError("--text is empty: give some text to read")

    def is_ours(folder: Path) -> bool:
        return is_diagnosis(folder) and not (is_run(folder) or is_comparison(folder))

    check_out(arguments, is_ours, "`exsel diagnose`")
    names = [arguments.model, *([] if arguments.against is None else [arguments.against])]
    folders = {name: say_model(name) for name in names}

    from exsel.cli.display import warn
    from exsel.diagnostics.diagnosis_report.diagnosed_models import diagnosed_models, diagnosis_headline, qualifications
    from exsel.diagnostics.diagnosis_report.diagnosis_folder import AGAINST, FIGURES, REPORT, RESULTS, TOKENS
    from exsel.machine import resolve_device

    device = resolve_device(arguments.device)
    # Both models read the same text, in sequences that are short enough for either.
    context = min((length for folder in folders.values() if (length := read_context(folder)) is not None), default=None)
    if arguments.seq_len is not None and not arguments.past_context:
        check_context(context, arguments.seq_len)
    found = [_diagnose(arguments, name, folders[name], context, device) for name in names]
    models = diagnosed_models(*(each.to_dict() for each in found))
    for model in models:
        _print(model)
    print(f"{diagnosis_headline(models)}\n{qualifications(models)}\n\nDrawing the figures …", flush=True)
    folder = found[0].write(arguments.out, *found[1:]).parent
    for name in (REPORT, TOKENS, RESULTS, AGAINST, FIGURES):
        if (folder / name).exists():
            print(folder / name)
    for each in found:
        for note in each.notes:
            warn(f"{each.model['name']}: {note}")
    return 0


def _diagnose(arguments: argparse.Namespace, name: str, folder: str, context: int | None, device: str) -> Diagnosis:
    """Diagnose the model in a folder, and add what the command knows of it and of the text."""
    import torch

    from exsel.cli.display import evaluation_progress
    from exsel.diagnostics import diagnose
    from exsel.float32_products import fast_products
    from exsel.machine import describe_machine

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    model, tokenizer = load_checkpoint(folder, device, causal=False, dtype=dtype)
    rows, description, notes = _sequences(arguments, tokenizer, context)
    check_ids(model, rows)
    batches = _batches(rows, arguments.batch_size, is_pair=bool(model.config.is_encoder_decoder))
    what = f"{name} cannot be diagnosed"
    with evaluation_progress("diagnosing") as on_batch, explained(what), fast_products(device):
        tell = None if on_batch is None else lambda done, _: on_batch(done, len(batches))
        found = diagnose(model, batches, tokenizer=tokenizer, on_batch=tell)
    return replace(
        found,
        model={**found.model, "name": name},
        data={**found.data, "description": description},
        machine=describe_machine(device),
        command=command_line(arguments.given),
        notes=[*notes, *found.notes],
    )


def _sequences(
    arguments: argparse.Namespace, tokenizer: Any, context: int | None
) -> tuple[list[list[int]], str, list[str]]:
    """The ids of each sequence, the name of their source, and notes for the report."""
    # A tokenizer without a limit gives a huge number.
    context = min(
        (length for length in (context, tokenizer.model_max_length) if length and length < 10**9), default=None
    )
    limit: int = arguments.max_sequences
    notes: list[str] = []
    if arguments.text:
        length = arguments.seq_len or context
        texts = [tokenizer(text, verbose=False)["input_ids"] for text in arguments.text]
        rows = [ids[at : at + (length or len(ids))] for ids in texts for at in range(0, len(ids), length or len(ids))]
        description = "text of the command line"
        if length is not None and any(len(ids) > length for ids in texts):
            notes.append(f"the text was cut into sequences of {length} tokens at most")
        if len(rows) > limit:
            notes.append(f"of {len(rows)} sequences the first {limit} were read (--max-sequences)")
        rows = rows[:limit]
    else:
        from exsel.data import load_evaluation_data

        if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
            tokenizer.eos_token = tokenizer.sep_token  # without an end-of-text token, a separator ends a text
        blocks, described = load_evaluation_data(
            arguments.data,
            tokenizer=tokenizer,
            seq_len=arguments.seq_len or min(_SEQ_LEN, context or _SEQ_LEN),
            text_field=arguments.text_field,
            max_blocks=limit,
        )
        rows = [block["input_ids"].tolist() for block in blocks]
        description = described.name
    return rows, description, notes


def _batches(rows: Sequence[Sequence[int]], size: int, *, is_pair: bool) -> list[dict[str, Any]]:
    """Sequences of one length together, in their order, so that none needs padding."""
    import torch

    names = ["input_ids", "decoder_input_ids"] if is_pair else ["input_ids"]
    equal = [list(group) for _, group in groupby(rows, key=len)]
    return [
        dict.fromkeys(names, torch.tensor(group[at : at + size]))
        for group in equal
        for at in range(0, len(group), size)
    ]


def _print(model: DiagnosedModel) -> None:
    from exsel.cli.display import print_table
    from exsel.diagnostics.diagnosis_report.diagnosed_models import measured, shown

    name, data = model.record["model"]["name"], model.record["data"]
    print(f"{name} on {data['description']}: {data['sequences']:,} × ≤ {data['longest']:,} tokens\n")
    names = measured([model], _HEADINGS)
    rows = [{"layer": "all", **{name: shown(model.mean(name)) for name in names}}]
    for layer in reversed(model.layers):
        found = {name: model.metric(layer, name) for name in names}
        means = {name: shown(metric and metric["mean"]) for name, metric in found.items()}
        rows.insert(0, {"layer": str(layer["layer"]), **means})
    print_table(rows, {"layer": "Layer", **_HEADINGS})
    for module in model.record["left_out"]:
        print(f"left out: {module['name']} ({module['class']}): {module['reason']}")
    print()
