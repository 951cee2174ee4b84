"""Diagnose a model: watch its attention on some data, and measure it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.layer_metrics import LayerMetrics
from exsel.diagnostics.observing import Attended, Layer, Observer
from exsel.diagnostics.sequences import Streams, Tokens
from exsel.diagnostics.watching import watch
from exsel.errors import ExselError
from exsel.lengths import check_positions, context_of
from exsel.model_folder import UNSAVED
from exsel.nn.exclusive import Exclusive
from exsel.version import __version__

#: Longer sequences in a model that materialises its attention matrices are worth a note.
_MANY_TOKENS = 4096
#: Arguments that save memory, for models that take them.
_MEMORY_SAVERS = {"use_cache": False, "logits_to_keep": 1}


def diagnose(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any] | Sequence[Any] | Tensor],
    *,
    tokenizer: Any = None,
    pictured_tokens: int = 256,
    on_batch: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Measure what every self-attention layer of a model does with some data.

    For each layer, head and position: how far the output y_i points along the own value v_i (the attention similarity
    bias), how alike values are, how attention weights are spread, what temperatures there are, and how strongly
    W = W_q W_kᵀ selects: the metrics of :data:`exsel.diagnostics.metrics.METRICS`. Weights are recomputed block by
    block and compared with what the layer gave; where they do not give its output, or are not to be seen, the metric
    is a labelled gap.

    Args:
        model: what :func:`exsel.upgrade` takes: a model of transformers, plain, upgraded or adapted,
            :class:`exsel.ExselForCausalLM`, or a PyTorch module with attention layers in it; on any devices. It
            computes what it always does, and is left as it was.
        batches: what the model's forward takes: a mapping (a dictionary, a ``BatchEncoding``) is passed as keyword
            arguments, a tuple or list as positional ones, a tensor as the only one. Of ``input_ids`` ``[B, T]``,
            ``attention_mask`` ``[B, T]`` says which tokens are padding: they do not count; and where ``position_ids``
            do not go on by 1 a sequence begins. Without ``input_ids`` every row of an attention layer is a sequence.
        tokenizer: for the pictures' words; without one, ids.
        pictured_tokens: how many tokens of the first sequence are measured one by one; 0: none.
        on_batch: called after every batch with the number of batches and of tokens that were read.

    Returns:
        The diagnosis; ``write(folder)`` makes a report of it.

    Raises:
        TypeError: a batch of another type.
        ExselError: no batch, a batch without tokens, more tokens than a model with learned positions has, NaN or Inf
            (naming the layer), or a model without self-attention that could be watched (saying why).

    Source: Zhai, arXiv:2603.09078 (2026), Section 2, for the similarities; Zhang et al., NeurIPS 2024,
    arXiv:2411.12892, Section 3, for spikiness and ‖Wᵀx‖. Entropy, effective tokens, sink mass and the similarity
    without the common direction are ours.
    """
    config = getattr(model, "config", None)
    has_encoder = bool(getattr(config, "is_encoder_decoder", False))
    measurer = _Measurer(pictured_tokens)
    notes: dict[str, None] = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    options = {name: value for name, value in _MEMORY_SAVERS.items() if name in _signature(model).parameters}
    count = 0
    with torch.no_grad(), watch(model, measurer) as (layers, left_out):
        for given in batches:
            positional, named = _arguments(given, count)
            batch = _by_name(model, positional, named)
            streams = Streams(batch, has_encoder=has_encoder)
            notes |= dict.fromkeys(_checked(model, batch, streams, count))
            measurer.begin(streams, is_first=count == 0)
            model(*(_on(device, value) for value in positional), **_on(device, {**named, **options}))
            measurer.end()
            count += 1
            if on_batch is not None:
                on_batch(count, measurer.num_tokens)
    if count == 0:
        raise ExselError("batches holds no batch: give at least one, of at least one token")
    reasons = [(target, target.exclusive) for target in left_out]
    reasons += [(layer.target, reason) for layer in layers if (reason := measurer.reason(layer))]
    measured = [measurer.layers[layer.index] for layer in layers if not measurer.reason(layer)]
    if not measured:
        said = "; ".join(dict.fromkeys(f"{target.cls}: {reason}" for target, reason in reasons))
        raise ExselError(f"no self-attention of this {type(model).__name__} could be watched ({said})")
    num_buckets = measurer.longest.bit_length()
    return Diagnosis(
        exsel_version=__version__,
        model={
            "name": str(getattr(config, "name_or_path", "")).removesuffix(UNSAVED) or type(model).__name__,
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "context": context_of(config),
        },
        data={
            "description": f"{count} batch{'es' if count > 1 else ''}",
            "sequences": measurer.num_sequences,
            "tokens": measurer.num_tokens,
            "longest": measurer.longest,
        },
        buckets=[{"first": 2**bucket, "last": 2 ** (bucket + 1) - 1} for bucket in range(num_buckets)],
        layers=[layer.result(num_buckets) for layer in measured],
        left_out=[{"name": target.name, "class": target.cls, "reason": reason} for target, reason in reasons],
        notes=list(notes),
        pictures=measurer.pictures(measured, tokenizer),
    )


class _Measurer(Observer):
    """Measures each layer, and counts the tokens of the batches."""

    def __init__(self, pictured_tokens: int) -> None:
        self.pictured_tokens = pictured_tokens
        self.layers: dict[int, LayerMetrics] = {}
        self.num_sequences = self.num_tokens = self.longest = 0
        self.streams = Streams({})
        #: The tokens that are counted: those of the text, or without a text those that the first layer saw.
        self.counted: Tokens | None = None
        self.is_first = False
        #: The text of the pictured tokens and its shape, their columns in it, their places, and their ids.
        self.pictured_text: tuple[str | None, torch.Size] | None = None
        self.pictured_columns = slice(0)
        self.pictured_numbers: list[int] = []
        self.pictured_ids: list[int] | None = None

    def begin(self, streams: Streams, *, is_first: bool) -> None:
        self.streams, self.is_first = streams, is_first
        self.counted = next(iter(self.streams.tokens.values()), None)

    def end(self) -> None:
        if self.counted is not None:
            is_real = self.counted.is_real
            self.num_sequences += len(self.counted.sequence[is_real].unique())
            self.num_tokens += int(is_real.sum())

    def attended(self, layer: Layer, attended: Attended) -> None:
        stream, tokens = self._tokens(layer, attended.y)
        self.counted = self.counted or tokens
        self.longest = max(self.longest, int(tokens.number.max()))
        metrics = self._metrics(layer)
        metrics.pictured = self._pictured(stream, tokens) if self.is_first and self.pictured_tokens > 0 else None
        metrics.attended(attended, tokens)

    def excluded(self, layer: Layer, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor) -> None:
        if not self._metrics(layer).lost:
            self._metrics(layer).excluded(exclusive, y, own_value, z, self._tokens(layer, y)[1])

    def lost(self, layer: Layer, reason: str) -> None:
        self._metrics(layer).lost = self._metrics(layer).lost or reason

    def reason(self, layer: Layer) -> str:
        """Why a layer is left out; empty if it is not."""
        metrics = self.layers.get(layer.index)
        return "the data does not reach it" if metrics is None else metrics.lost

    def pictures(self, layers: list[LayerMetrics], tokenizer: Any) -> list[dict[str, Any]]:
        """The first tokens of the first sequence, one by one."""
        shown = [{"layer": each.layer.index, "values": values} for each in layers if (values := each.picture_values())]
        if not shown or not self.pictured_numbers:
            return []
        ids = self.pictured_ids
        words = list(map(str, self.pictured_numbers)) if ids is None else _words(ids, tokenizer)
        return [{"tokens": words, "positions": self.pictured_numbers, "layers": shown}]

    def _metrics(self, layer: Layer) -> LayerMetrics:
        return self.layers.setdefault(layer.index, LayerMetrics(layer))

    def _tokens(self, layer: Layer, y: Tensor) -> tuple[str | None, Tokens]:
        """The text that a layer reads, and the places of its tokens in a call with output ``y``."""
        stream, tokens = self.streams.of_layer(layer.target.name, (y.shape[0], y.shape[2]))
        return stream, tokens.to(y.device)

    def _pictured(self, stream: str | None, tokens: Tokens) -> slice | None:
        """The columns of the pictured tokens, which the first layer decides; ``None`` for a layer that reads others."""
        text = (stream, tokens.number.shape)
        if self.pictured_text is None:
            self.pictured_text = text
            row = tokens.number[0]
            start = int(row.gt(0).long().argmax())
            is_own = (tokens.sequence[0] == tokens.sequence[0, start]) & row.gt(0)
            stop = start + min(self.pictured_tokens, int(is_own[start:].long().cumprod(0).sum()))
            self.pictured_columns = slice(start, stop)
            self.pictured_numbers = row[start:stop].tolist()
            if stream is not None:
                self.pictured_ids = self.streams.ids[stream][0, start:stop].tolist()
        return self.pictured_columns if text == self.pictured_text else None


def _arguments(batch: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that a batch gives the model's forward."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise TypeError(
        f"batch {index} is {type(batch).__name__}: give a mapping (keyword arguments of the model's forward), a tuple "
        "(positional ones) or a tensor"
    )


def _signature(model: Any) -> inspect.Signature:
    # PEFT's model around it takes any arguments.
    return inspect.signature((model.get_base_model() if hasattr(model, "get_base_model") else model).forward)


def _by_name(model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by the names of the forward's parameters."""
    try:
        return {**_signature(model).bind_partial(*positional, **named).arguments, **named}
    except TypeError:
        return dict(named)  # the model's own error will say what is wrong


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {name: _on(device, each) for name, each in value.items()} if isinstance(value, dict) else value


def _checked(model: nn.Module, batch: Mapping[str, Any], streams: Streams, index: int) -> list[str]:
    """Check a batch before the model reads it; returns notes for the reader.

    Raises:
        ExselError: no tokens, or more than the model has positions for.
    """
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.numel() == 0:
            raise ExselError(f"batch {index} is empty: its {name} is {tuple(value.shape)}; give it at least one token")
    if not batch:
        raise ExselError(f"batch {index} is empty: give the model something to read")
    if not streams.tokens:
        return []
    longest = max(int(tokens.number.max()) for tokens in streams.tokens.values())
    if longest == 0:
        raise ExselError(f"batch {index} is empty: its attention_mask hides every token")
    config = getattr(model, "config", None)
    context = context_of(config)
    notes = []
    if longest > _MANY_TOKENS and getattr(config, "_attn_implementation", "") == "eager":
        notes.append("this model attends with whole matrices (attn_implementation='eager'): sdpa takes less memory")
    if context is not None:
        position_ids = batch.get("position_ids")
        reach = max(ids.shape[1] for ids in streams.ids.values())  # padding has positions too
        if isinstance(position_ids, Tensor) and position_ids.ndim <= 2:
            reach = int(position_ids.max()) + 1
        check_positions(model, reach)
        if longest > context:
            notes.append(f"a sequence of {longest} tokens is longer than the model's context of {context}")
    return notes


def _words(ids: list[int], tokenizer: Any) -> list[str]:
    """The part of the text that each token stands for."""
    if tokenizer is None:
        return list(map(str, ids))
    words, before = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        # The next token may complete a character and so change the text before it.
        words.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[count - 1 : count]))
        before = text
    return words
