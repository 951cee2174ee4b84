"""What a model takes on many GPUs, on paper: memory, communication and time of a step, from its configuration alone.

Nothing here is measured. Each assumption is a field of :class:`Gpu` or a line of :func:`step_on_paper`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exsel.models import SIZES, ExselConfig, ExselForCausalLM
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.settings import DEFAULTS

GB = 1e9
# Bytes a parameter in float32: itself, its gradient and Adam's two averages. DistributedDataParallel has one more, its
# buckets. From the forward pass to the backward, autocast holds each weight in bfloat16.
STATE, BUCKETS, CASTS = 16, 4, 2
# Bytes of activations a token, layer and unit of width, in 16 bits and without attention weights: Korthikanti et al.
# (arXiv:2205.05198), equation 1. Bytes a token and word of the vocabulary: logits in bfloat16 and float32, a gradient.
ACTIVATIONS, LOGITS = 34, 10
# Numbers that the passes of both mechanisms read and write a token, head and number of its size, forward and backward,
# if each is a pass of its own: exclusive 3 + 5, selective 4 + 6.
MECHANISM_TRAFFIC = 18
# Bytes that they keep for the backward a token and head: the scaled query and value in 16 bits, and what else the CPU's
# measurement has (docs/performance.md: 649 in float32 with a head of 64).
KEPT_STATES, KEPT_BESIDE = 4, 649 - 2 * 4 * 64


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as it is sold (H100 SXM, NVIDIA's data sheet), in machines of eight, and what training gets of it."""

    memory: float = 80 * GB
    usable: float = 0.9
    flops: float = 989e12
    utilisation: float = 0.4
    memory_bandwidth: float = 3.35e12
    inside: float = 450 * GB
    """Bytes a second that it sends to the others of its machine: NVLink."""
    outside: float = 50 * GB
    """Bytes a second that it sends to other machines: a 400 Gbit/s port."""
    machine: int = 8


@dataclass(frozen=True, kw_only=True)
class StepOnPaper:
    """A step of a run on some GPUs; bytes and seconds are those of one GPU."""

    gpus: int
    is_sharded: bool
    sequences: int
    at_a_time: int
    states: float
    activations: float
    of_mechanisms: float
    """Of the activations, what the mechanisms keep."""
    sent_inside: float
    sent_outside: float
    compute: float
    mechanisms: float
    communication: float


def model(size: str, vocab_size: int) -> ExselForCausalLM:
    """A named size with both mechanisms, without memory for its weights."""
    config = ExselConfig.from_dict({**SIZES[size], "vocab_size": vocab_size, "exclusive": True, "selective": True})
    with torch.device("meta"):
        return ExselForCausalLM(config)


def step_on_paper(
    network: ExselForCausalLM, *, gpus: int, sequences: int, seq_len: int, is_sharded: bool
) -> StepOnPaper:
    """What a step takes of so many sequences, as many at a time as fit into the memory.

    Raises:
        ValueError: not one sequence fits, or the GPUs cannot share them.
    """
    gpu, config = Gpu(), network.config
    own, rest = divmod(sequences, gpus)
    if rest or not own:
        raise ValueError(f"{gpus} GPUs cannot share {sequences} sequences")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    layer = sum(parameter.numel() for parameter in network.model.layers[0].parameters())
    outside_layers = parameters - layer * config.num_hidden_layers
    machines = max(1, gpus // gpu.machine)
    members = min(gpus, gpu.machine)
    if is_sharded:
        # What is outside the layers stays whole for the step, and two layers at once: one works, one comes.
        states = STATE * parameters / members + 4 * (outside_layers + 2 * layer) + CASTS * parameters
    else:
        states = float((STATE + BUCKETS + CASTS) * parameters)
    head_dim: int = config.head_dim or config.hidden_size // config.num_attention_heads
    heads = config.num_hidden_layers * config.num_attention_heads
    kept = seq_len * heads * (KEPT_STATES * head_dim + KEPT_BESIDE)
    plain = seq_len * (ACTIVATIONS * config.num_hidden_layers * config.hidden_size + LOGITS * config.vocab_size)
    per_sequence = plain + kept
    fitting = [
        count
        for count in range(1, own + 1)
        if own % count == 0 and states + count * per_sequence <= gpu.memory * gpu.usable
    ]
    if not fitting:
        raise ValueError(f"one sequence does not fit into {gpu.memory / GB:.0f} GB")
    at_a_time = fitting[-1]
    passes = own // at_a_time
    weights, share = 4.0 * parameters, (members - 1) / members
    between = 2 * (machines - 1) / machines * weights / members
    # Divided: each pass puts the weights together twice and adds the gradients up once. Copies: gradients, once a step.
    inside = 3 * share * weights * passes if is_sharded else 2 * share * weights
    tokens = own * seq_len
    # Six operations a parameter and token, and in attention six for each earlier token: Chowdhery et al.
    # (arXiv:2204.02311), appendix B, halved because the mask is causal.
    operations = (6 * parameters + 6 * heads * head_dim * seq_len) * tokens
    return StepOnPaper(
        gpus=gpus,
        is_sharded=is_sharded,
        sequences=sequences,
        at_a_time=at_a_time,
        states=states,
        activations=at_a_time * per_sequence,
        of_mechanisms=at_a_time * kept,
        sent_inside=inside,
        sent_outside=between,
        compute=operations / (gpu.flops * gpu.utilisation),
        mechanisms=MECHANISM_TRAFFIC * 2 * heads * head_dim * tokens / gpu.memory_bandwidth,
        communication=inside / gpu.inside + between / gpu.outside,
    )


def text(size: str = "2.7b", vocab_size: int = 50_257) -> str:
    """The estimates of a size on 8, 64 and 512 GPUs, as a part of ``docs/scale.md``."""
    network, defaults, gpu = model(size, vocab_size), DEFAULTS[size], Gpu()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    new = sum(parameter.numel() for parameter in mechanism_parameters(network).values())
    lines = [
        f"The {size} model with both mechanisms and a vocabulary of {vocab_size:,}: {parameters / 1e9:.2f} billion "
        f"parameters, {new:,} of them the mechanisms'. Sequences of {defaults.seq_len} tokens, {defaults.batch_size} a "
        f"step as in the paper, and as many as GPUs where that is more. A GPU has {gpu.memory / GB:.0f} GB, computes "
        f"{gpu.flops / 1e12:.0f} TFLOP/s in bfloat16, of which training gets {gpu.utilisation:.0%}, and sends "
        f"{gpu.inside / GB:.0f} GB/s inside a machine of {gpu.machine} and {gpu.outside / GB:.0f} GB/s to others. "
        "Weights, gradients and averages are float32, and travel as float32.",
        "",
        "| GPUs | model | sequences a step | at a time, each | states, GB | activations, GB | of the mechanisms, GB | "
        "sent inside, GB | sent outside, GB | compute, s | of the mechanisms, s | communication, s | a step, s |",
        f"|---:|---|{'---:|' * 11}",
    ]
    for gpus in (8, 64, 512):
        for is_sharded in (False, True):
            one = step_on_paper(
                network,
                gpus=gpus,
                sequences=max(defaults.batch_size, gpus),
                seq_len=defaults.seq_len,
                is_sharded=is_sharded,
            )
            compute = one.compute + one.mechanisms
            cells = [
                f"{gpus}",
                "`--shard`" if is_sharded else "copies",
                f"{one.sequences}",
                f"{one.at_a_time}",
                f"{one.states / GB:.1f}",
                f"{one.activations / GB:.1f}",
                f"{one.of_mechanisms / GB:.1f}",
                f"{one.sent_inside / GB:.1f}",
                f"{one.sent_outside / GB:.1f}",
                f"{one.compute:.2f}",
                f"{one.mechanisms:.2f}",
                f"{one.communication:.2f}",
                f"{max(compute, one.communication):.2f} to {compute + one.communication:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "A step takes from the longer of computing and communicating, if they overlap, to their sum, if they do not.",
    ]
    return "\n".join(lines)
