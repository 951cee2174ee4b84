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
from exsel.nn.exclusive import Exclusive
from exsel.upgrading.apply import UNSAVED
from exsel.version import __version__

#: From here on a layer that materialises its attention matrix is worth a note.
_MANY_TOKENS = 4096


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
    has_encoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    measurer = _Measurer(pictured_tokens, has_encoder=has_encoder)
    notes: list[str] = []
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    options = _options(model)
    count = 0
    with torch.no_grad(), watch(model, measurer) as watched:
        for given in batches:
            positional, named = _arguments(given, count)
            batch = _by_name(model, positional, named)
            _check(model, batch, count, notes)
            measurer.begin(batch, is_first=count == 0)
            model(*(_on(device, value) for value in positional), **_on(device, {**named, **options}))
            measurer.end()
            count += 1
            if on_batch is not None:
                on_batch(count, measurer.tokens)
    if count == 0:
        raise ExselError("batches holds no batch: give at least one, of at least one token")
    left_out = [
        {"name": target.name, "class": target.cls, "reason": target.exclusive} for target in watched.left_out
    ] + [
        {"name": layer.target.name, "class": layer.target.cls, "reason": reason}
        for layer in watched.layers
        if (reason := measurer.reason(layer))
    ]
    measures = [measurer.measures[layer.index] for layer in watched.layers if not measurer.reason(layer)]
    if not measures:
        reasons = "; ".join(dict.fromkeys(f"{each['class']}: {each['reason']}" for each in left_out))
        raise ExselError(f"no self-attention of this {type(model).__name__} could be watched ({reasons})")
    source = str(getattr(getattr(model, "config", None), "name_or_path", "")).removesuffix(UNSAVED)
    return Diagnosis(
        exsel_version=__version__,
        model={
            "name": source or type(model).__name__,
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "context": context_of(getattr(model, "config", None)),
        },
        data={
            "description": f"{count} batch{'es' if count > 1 else ''}",
            "sequences": measurer.sequences,
            "tokens": measurer.tokens,
            "longest": measurer.longest,
        },
        buckets=[
            {"first": 2**bucket, "last": 2 ** (bucket + 1) - 1} for bucket in range(measurer.longest.bit_length())
        ],
        layers=[measure.result(measurer.longest.bit_length()) for measure in measures],
        left_out=left_out,
        notes=notes,
        pictures=measurer.pictures(measures, tokenizer),
    )


class _Measurer(Observer):
    """A measure for each layer, and whose tokens they are."""

    def __init__(self, pictured_tokens: int, *, has_encoder: bool) -> None:
        self.pictured_tokens = pictured_tokens
        self.has_encoder = has_encoder
        self.measures: dict[int, LayerMetrics] = {}
        self.reasons: dict[int, str] = {}
        self.sequences = self.tokens = self.longest = 0
        self.streams = Streams({})
        self.counted: Tokens | None = None
        self.is_first = False
        #: Of the pictured tokens: in words or ids, and their places.
        self.pictured_ids: Tensor | None = None
        self.pictured_numbers: list[int] = []
        self.pictured_stream: str | None = None
        self.places: dict[tuple[int, tuple[int, int]], tuple[str | None, Tokens]] = {}

    def begin(self, batch: Mapping[str, Any], *, is_first: bool) -> None:
        self.streams = Streams(batch, has_encoder=self.has_encoder)
        self.is_first = is_first
        self.counted = next(iter(self.streams.tokens.values()), None)
        self.places = {}

    def end(self) -> None:
        """Count the batch: its text, or where it has none what the first layer saw."""
        if self.counted is None:
            return
        is_real = self.counted.is_real
        self.sequences += len(self.counted.sequence[is_real].unique())
        self.tokens += int(is_real.sum())

    def attended(self, layer: Layer, attended: Attended) -> None:
        stream, tokens = self._tokens(layer, attended.y)
        if self.counted is None:
            self.counted = tokens
        self.longest = max(self.longest, int(tokens.number.max()))
        measure = self.measures.setdefault(layer.index, LayerMetrics(layer))
        measure.pictured = self._pictured(stream, tokens) if self.is_first else None
        measure.attended(attended, tokens)

    def excluded(self, layer: Layer, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor) -> None:
        measure = self.measures.get(layer.index)
        if measure is not None:
            measure.excluded(exclusive, y, own_value, z, self._tokens(layer, y)[1])

    def lost(self, layer: Layer, reason: str) -> None:
        self.reasons.setdefault(layer.index, reason)

    def reason(self, layer: Layer) -> str:
        """Why a layer is left out; empty: it is not."""
        if layer.index in self.reasons:
            return self.reasons[layer.index]
        measure = self.measures.get(layer.index)
        return "the data does not reach it" if measure is None else measure.lost

    def pictures(self, measures: list[LayerMetrics], tokenizer: Any) -> list[dict[str, Any]]:
        """The first tokens of the first sequence, one by one."""
        layers = [
            {"layer": measure.layer.index, "values": values}
            for measure in measures
            if (values := measure.picture_values())
        ]
        if not layers or not self.pictured_numbers:
            return []
        if self.pictured_ids is None:
            words = [str(number) for number in self.pictured_numbers]
        else:
            words = _words(self.pictured_ids.tolist(), tokenizer)
        return [{"tokens": words, "positions": self.pictured_numbers, "layers": layers}]

    def _tokens(self, layer: Layer, y: Tensor) -> tuple[str | None, Tokens]:
        shape = (y.shape[0], y.shape[2])
        key = (layer.index, shape)
        if key not in self.places:
            stream, tokens = self.streams.of_layer(layer.target.name, shape)
            self.places[key] = stream, tokens.to(y.device)
        return self.places[key]

    def _pictured(self, stream: str | None, tokens: Tokens) -> slice | None:
        """The columns of the pictured tokens in a call with these; ``None``: they are others."""
        if self.pictured_tokens < 1:
            return None
        if not self.pictured_numbers:
            self.pictured_stream = stream
            row = tokens.number[0]
            start = int(row.gt(0).long().argmax())
            own = tokens.sequence[0] == tokens.sequence[0, start]
            stop = start + min(self.pictured_tokens, int((own & row.gt(0))[start:].long().cumprod(0).sum()))
            self.columns = slice(start, stop)
            self.shape = tokens.number.shape
            self.pictured_numbers = row[start:stop].tolist()
            if stream is not None:
                self.pictured_ids = self.streams.ids[stream][0, start:stop]
        is_same = stream == self.pictured_stream and tokens.number.shape == self.shape
        return self.columns if is_same else None


def _arguments(batch: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What of a batch is passed by position, and what by name.

    Raises:
        TypeError: neither a mapping, nor a tuple or list, nor a tensor.
    """
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


def _by_name(model: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """A batch by the names of the forward's parameters, as far as they have some."""
    try:
        bound = inspect.signature(_whole(model).forward).bind_partial(*positional, **named)
    except TypeError:
        return dict(named)  # the model itself will say what is wrong
    return {**bound.arguments, **named}


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {name: _on(device, each) for name, each in value.items()} if isinstance(value, dict) else value


def _whole(model: Any) -> Any:
    """The model that takes the batches, without PEFT's around it, which takes anything."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _options(model: nn.Module) -> dict[str, Any]:
    """Arguments that save memory, where the model takes them."""
    names = inspect.signature(_whole(model).forward).parameters
    options = {"use_cache": False, "logits_to_keep": 1}
    return {name: value for name, value in options.items() if name in names}


def _check(model: nn.Module, batch: Mapping[str, Any], index: int, notes: list[str]) -> None:
    """Look at a batch before the model does.

    Raises:
        ExselError: no tokens, or more than the model has positions for.
    """
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.numel() == 0:
            raise ExselError(f"batch {index} is empty: its {name} is {tuple(value.shape)}; give it at least one token")
    if not batch:
        raise ExselError(f"batch {index} is empty: give the model something to read")
    streams = Streams(batch)
    longest = max((int(tokens.number.max()) for tokens in streams.tokens.values()), default=None)
    if longest is None:
        return
    if longest == 0:
        raise ExselError(f"batch {index} is empty: its attention_mask hides every token")
    if longest > _MANY_TOKENS and getattr(getattr(model, "config", None), "_attn_implementation", "") == "eager":
        _note(notes, "this model attends with whole matrices (attn_implementation='eager'): sdpa takes less memory")
    context = context_of(getattr(model, "config", None))
    if context is None:
        return
    position_ids = batch.get("position_ids")
    # Padding has positions too.
    reach = max(ids.shape[1] for ids in streams.ids.values())
    if isinstance(position_ids, Tensor) and position_ids.ndim <= 2:
        reach = int(position_ids.max()) + 1
    check_positions(model, reach)
    if longest > context:
        _note(notes, f"a sequence of {longest} tokens is longer than the model's context of {context}")


def _note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _words(ids: list[int], tokenizer: Any) -> list[str]:
    """Each token's part of the text."""
    if tokenizer is None:
        return [str(token) for token in ids]
    words, before = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        # Bytes that are not yet a character change with the next token.
        words.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[count - 1 : count]))
        before = text
    return words
