"""The experiments that train variants side by side at one size and learning rate: what each trains and contrasts."""

from __future__ import annotations

from evidence.papers.comparing import Comparison, Contrast, claimed_gain, contrast_of_contrasts, gain, run_comparison
from evidence.papers.model_variants import (
    BASELINE,
    BOTH,
    COMMON_DIRECTION,
    CONSTANT,
    EXCLUSIVE,
    FREQUENCY,
    FULL_WIDTH,
    KEYS,
    LEARNED_STRENGTH,
    MASKED_DIAGONAL,
    MLP,
    OUTPUT_GATE,
    POSITION,
    QUERIES,
    QUERIES_KEYS_VALUES,
    SCALABLE_SOFTMAX,
    SELECTIVE,
    TOKEN,
    TOKEN_STRENGTH,
    VALUES,
    YARN,
    ZERO_OUTPUT,
    exclusive_in,
    sinks,
)
from evidence.papers.outcome import Job, Outcome
from evidence.papers.variant_runs import SIZES

# Published: steps that selective attention needs, in a fine-tuned Llama on Wikitext.
_PUBLISHED_SPEED_UP = 1.45


def run_training(job: Job) -> Outcome:
    """Is the loss lower all through training?"""
    return run_comparison(
        job,
        Comparison(
            contrasts=tuple(claimed_gain(EXCLUSIVE, share=share) for share in (1.0, 0.75, 0.5, 0.25)),
            drawn=(BASELINE, EXCLUSIVE),
            timed=(EXCLUSIVE,),
        ),
    )


def run_sinks(job: Job) -> Outcome:
    """The gain with 0, 1 and 4 learned sinks."""
    bases = (BASELINE, sinks(1), sinks(4))
    variants = (EXCLUSIVE, *(base.with_exclusive() for base in bases[1:]))
    margins = [claimed_gain(variant, base) for variant, base in zip(variants, bases, strict=True)]
    return run_comparison(
        job,
        Comparison(
            contrasts=(*margins, _change(margins[2], margins[0], "4 sinks"), gain(sinks(1)), gain(sinks(4))),
            drawn=(*bases, *variants),
        ),
    )


def run_speed_up(job: Job) -> Outcome:
    """How many steps selective attention saves."""
    return run_comparison(
        job,
        Comparison(
            contrasts=(claimed_gain(SELECTIVE),),
            drawn=(BASELINE, SELECTIVE),
            timed=(SELECTIVE,),
            published_speed_up=_PUBLISHED_SPEED_UP,
        ),
    )


def run_ablations(job: Job) -> Outcome:
    """Temperatures of queries, keys and values, of token and position, and three forms of f."""
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                claimed_gain(SELECTIVE),
                claimed_gain(QUERIES),
                claimed_gain(VALUES),
                gain(KEYS),
                gain(QUERIES_KEYS_VALUES, SELECTIVE),
                claimed_gain(SELECTIVE, TOKEN),
                claimed_gain(SELECTIVE, POSITION),
                gain(MLP, SELECTIVE),
                gain(FREQUENCY, SELECTIVE),
            ),
            drawn=(BASELINE, SELECTIVE, QUERIES, VALUES),
        ),
    )


def run_baselines(job: Job) -> Outcome:
    """Temperatures that know nothing of the token."""
    others = (CONSTANT, SCALABLE_SOFTMAX, YARN)
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                *(claimed_gain(SELECTIVE, other) for other in (*others, BASELINE)),
                *(gain(other) for other in others),
            ),
            drawn=(BASELINE, SELECTIVE, *others),
        ),
    )


def run_strength(job: Job) -> Outcome:
    """A learned strength, of each head or of each token and head, against 1."""
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                claimed_gain(LEARNED_STRENGTH, EXCLUSIVE),
                gain(TOKEN_STRENGTH, EXCLUSIVE),
                gain(TOKEN_STRENGTH, LEARNED_STRENGTH),
                gain(EXCLUSIVE),
                gain(LEARNED_STRENGTH),
                gain(TOKEN_STRENGTH),
            ),
            drawn=(BASELINE, EXCLUSIVE, LEARNED_STRENGTH, TOKEN_STRENGTH),
            timed=(EXCLUSIVE, LEARNED_STRENGTH),
        ),
    )


def run_layers(job: Job) -> Outcome:
    """All layers against the last one, the last half and the first half."""
    count = SIZES[job.budget].layers
    half = count // 2
    some = (
        exclusive_in("last:1", "exclusive in the last layer"),
        exclusive_in(f"last:{half}", f"exclusive in the last {half} of {count} layers"),
        exclusive_in(f"first:{half}", f"exclusive in the first {half} of {count} layers"),
    )
    # Half of few layers may be one.
    distinct = tuple({variant.name: variant for variant in reversed(some)}.values())[::-1]
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                *(claimed_gain(EXCLUSIVE, variant) for variant in distinct),
                gain(EXCLUSIVE),
                *(gain(variant) for variant in distinct),
            ),
            drawn=(BASELINE, EXCLUSIVE, *distinct),
        ),
    )


def run_diagonal(job: Job) -> Outcome:
    """Projecting against not attending to oneself."""
    return run_comparison(
        job,
        Comparison(
            contrasts=(claimed_gain(EXCLUSIVE, MASKED_DIAGONAL), gain(EXCLUSIVE), gain(MASKED_DIAGONAL)),
            drawn=(BASELINE, EXCLUSIVE, MASKED_DIAGONAL),
            timed=(EXCLUSIVE,),
        ),
    )


def run_redundancy(job: Job) -> Outcome:
    """The gain where there is an output gate, or sinks."""
    bases = (OUTPUT_GATE, sinks(4))
    variants = tuple(base.with_exclusive() for base in bases)
    margins = [claimed_gain(variant, base) for variant, base in zip(variants, bases, strict=True)]
    alone = gain(EXCLUSIVE)
    changes = (
        _change(margin, alone, label) for margin, label in zip(margins, ("an output gate", "4 sinks"), strict=True)
    )
    return run_comparison(
        job,
        Comparison(
            contrasts=(*margins, alone, *changes, *(gain(base) for base in bases)),
            drawn=(BASELINE, EXCLUSIVE, *bases, *variants),
        ),
    )


def run_together(job: Job) -> Outcome:
    """Both mechanisms against each, and their gain against the sum of the two gains."""
    alone = (gain(EXCLUSIVE), gain(SELECTIVE))
    more = gain(BOTH, SELECTIVE)
    beyond = contrast_of_contrasts(
        more,
        alone[0],
        subject="the gain of both less the sum of the two gains",
        quantity="gain of both less the sum of the two gains, nats",
        above="more than the sum",
        below="less than the sum",
        between="not told apart from the sum",
    )
    return run_comparison(
        job,
        Comparison(
            contrasts=(claimed_gain(BOTH, EXCLUSIVE), claimed_gain(BOTH, SELECTIVE), gain(BOTH), *alone, beyond),
            drawn=(BASELINE, EXCLUSIVE, SELECTIVE, BOTH),
            timed=(BOTH,),
        ),
    )


def run_common_direction(job: Job) -> Outcome:
    """Removing the common direction against removing the own value's."""
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                claimed_gain(COMMON_DIRECTION),
                gain(EXCLUSIVE, COMMON_DIRECTION, expected="not above 0", sign=-1),
                gain(EXCLUSIVE),
            ),
            drawn=(BASELINE, EXCLUSIVE, COMMON_DIRECTION),
        ),
    )


def run_full_width(job: Job) -> Outcome:
    """Projecting each head against projecting all heads at once, and both."""
    both = FULL_WIDTH.with_exclusive()
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                claimed_gain(EXCLUSIVE, FULL_WIDTH),
                gain(both, EXCLUSIVE),
                gain(EXCLUSIVE),
                gain(FULL_WIDTH),
                gain(both),
            ),
            drawn=(BASELINE, EXCLUSIVE, FULL_WIDTH, both),
        ),
    )


def run_zero_output(job: Job) -> Outcome:
    """The gain where attention begins by adding nothing."""
    exclusive_too = ZERO_OUTPUT.with_exclusive()
    margin, alone = claimed_gain(exclusive_too, ZERO_OUTPUT), gain(EXCLUSIVE)
    return run_comparison(
        job,
        Comparison(
            contrasts=(
                margin,
                alone,
                _change(margin, alone, "a zero output projection"),
                gain(ZERO_OUTPUT),
                gain(EXCLUSIVE, ZERO_OUTPUT),
            ),
            drawn=(BASELINE, EXCLUSIVE, ZERO_OUTPUT, exclusive_too),
        ),
    )


def _change(margin: Contrast, alone: Contrast, beside: str) -> Contrast:
    return contrast_of_contrasts(
        margin,
        alone,
        subject=f"with {beside}",
        quantity=f"change of exclusive attention's gain with {beside}, nats",
        above="the gain of exclusive attention is larger",
        below="the gain of exclusive attention is smaller",
        between="the gain of exclusive attention is not told apart from what it is without",
    )
