"""Every experiment there is, in the order of the page. Needs nothing but Python: an experiment's module is imported
when it is run.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from exsel.errors import ExselError

XSA = "Zhai 2026, arXiv:2603.09078"
SSA = "Zhang et al. 2024, arXiv:2411.12892"
READERS = "Beyond the papers"


@dataclass(frozen=True)
class Experiment:
    """An experiment on paper.

    Args:
        name: on the command line.
        group: the paper, or :data:`READERS`.
        place: figure, table or statement in the paper.
        title: in a few words.
        claim: what the paper says, or the question that is asked, in a sentence.
        module: in :mod:`evidence.papers`; its function ``run_NAME(job)``, with underscores, runs it.
    """

    name: str
    group: str
    place: str
    title: str
    claim: str
    module: str

    @property
    def function(self) -> str:
        """The function of its module that runs it."""
        return "run_" + self.name.replace("-", "_")

    @property
    def source(self) -> str:
        """The paper in short, and the place in it."""
        return f"{self.group.partition(',')[0]}, {self.place}" if self.place else self.group


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("bias", XSA, "Figure 1", "Attention similarity bias by layer",
        "Attention's output points along the token's own value: mean cos(yᵢ, vᵢ) is well above mean cos(vᵢ, vⱼ) and "
        "grows with depth, with a self-weight aᵢᵢ too small to explain it.", "bias"),
    Experiment("overhead", XSA, "Figure 2", "Overhead of one block",
        "The exclusive projection costs little of a block's time at every length.", "costs"),
    Experiment("training", XSA, "Figure 3", "Training and validation curves",
        "With exclusive attention the loss is lower all through training.", "side_by_side"),
    Experiment("learning-rate", XSA, "Figure 4", "Learning rates",
        "Exclusive attention is better at every learning rate, by a nearly constant margin.", "sweeps"),
    Experiment("length", XSA, "Figure 5", "Sequence lengths at constant tokens a step",
        "The gain of exclusive attention grows with the length of the sequences.", "sweeps"),
    Experiment("sinks", XSA, "Figure 6", "Learned sinks",
        "The gain stays with 0, 1 and 4 learned sinks.", "side_by_side"),
    Experiment("sizes", XSA, "Table 1", "The three models",
        "0.7B, 1.4B and 2.7B parameters without embeddings.", "costs"),
    Experiment("tasks", XSA, "Table 2", "Zero-shot tasks",
        "Exclusive attention raises the mean accuracy over eight tasks at all three sizes.", "costs"),
    Experiment("graph", SSA, "Figure 3", "Next token on a graph",
        "Query selectivity gives a better attention map (Claim 1) and a better prediction (Claim 2), with lower "
        "temperatures for nodes of fewer neighbours.", "graph_task"),
    Experiment("spikiness", SSA, "Figure 2", "Operator norms and spikiness",
        "Selective attention is spikier with smaller weights: the plain model's ‖Wᵀx‖ is about three times as large.",
        "spikiness"),
    Experiment("temperatures", SSA, "Figure 1", "Token temperatures",
        "Tokens choose temperatures of their own.", "temperatures"),
    Experiment("speed-up", SSA, "Figure 4", "Training speed-up",
        "Selective attention reaches the plain model's loss in fewer steps.", "side_by_side"),
    Experiment("denoising", SSA, "Value selectivity", "Denoising with four estimators",
        "Selecting values comes near the Bayes estimator, where plain attention is near the naive mean.",
        "denoising"),
    Experiment("passkey", SSA, "Passkey retrieval", "Passkey retrieval",
        "Fine-tuned with selective attention, a model finds more passkeys. And with exclusive attention?",
        "passkey_task"),
    Experiment("ablations", SSA, "Ablations", "Which temperatures, of what",
        "Queries and values both gain from temperatures, keys do not need one; token and position both help; weight "
        "sharing does as well as an MLP.", "side_by_side"),
    Experiment("baselines", SSA, "Baselines", "Other temperatures",
        "Token-aware temperatures do better than a constant one, Scalable-Softmax and YaRN's.", "side_by_side"),
    Experiment("lemma-1", SSA, "Lemma 1", "What two spikinesses cost in norm",
        "Unit a, b with ‖Wᵀa‖ ≥ L_a and ‖Wᵀb‖ ≤ L_b need ‖W‖ ≥ (L_a − L_b)/‖a − b‖; with temperatures max(L_a, L_b) is "
        "enough.", "theory"),
    Experiment("proposition-1", SSA, "Proposition 1", "What a map of two tokens costs in norm",
        "Approximating [[1−γ, γ], [0, 1]] to ε needs ‖W‖ that grows like log(1/ε) and with the similarity of the two "
        "tokens.", "theory"),
    Experiment("proposition-2", SSA, "Proposition 2", "Why log n",
        "The temperature that keeps a mixture as the context grows is const + p log n.", "theory"),
    Experiment("strength", READERS, "", "Fixed against learned strength",
        "Is a learned strength better than full strength, of each head or of each token and head?", "side_by_side"),
    Experiment("layers", READERS, "", "All layers against some",
        "Does exclusive attention need all layers, or the last ones alone?", "side_by_side"),
    Experiment("diagonal", READERS, "", "Projecting against masking the diagonal",
        "Is taking the own value's direction out of the output better than not attending to oneself?", "side_by_side"),
    Experiment("redundancy", READERS, "", "With an output gate, with sinks",
        "Does the gain remain where an output gate or sinks do a similar service?", "side_by_side"),
    Experiment("zero-output", READERS, "", "Attention that begins by adding nothing",
        "Is the gain that of a good start, which a zero output projection gives as well?", "side_by_side"),
    Experiment("full-width", READERS, "", "Projecting all heads at once",
        "Is one projection over all heads' values, BeliefFormer's, as good as one in each head?", "side_by_side"),
    Experiment("together", READERS, "", "Both mechanisms together",
        "Do the two add up?", "side_by_side"),
    Experiment("common-direction", READERS, "", "Removing the common direction alone",
        "Is the gain that of removing the direction that all values share?", "side_by_side"),
    Experiment("induction", READERS, "", "Repeating what was read",
        "Does a model without its own value repeat random tokens as well as a plain one?", "copying"),
    Experiment("recall", READERS, "", "Looking a value up by its key",
        "Does a model without its own value look keys up as well as a plain one?", "copying"),
    Experiment("fine-tuning", READERS, "", "A real model, few new parameters",
        "Does selective attention do more for a pretrained model than as few parameters elsewhere?", "fine_tuning"),
    Experiment("fine-tuning-controls", READERS, "", "A real model, other controls",
        "Does selective attention do more for a pretrained model than a LoRA, or than constants beside the norms?",
        "fine_tuning"),
    Experiment("fine-tuning-terms", READERS, "", "A real model, which terms",
        "Which of selective attention's terms does a pretrained model gain by?", "fine_tuning"),
    Experiment("fine-tuning-exclusive", READERS, "", "A real model without its own values",
        "Does a pretrained model gain by exclusive attention, and find passkeys as well?", "fine_tuning"),
    Experiment("fine-tuning-all", READERS, "", "A real model, all weights",
        "Do the mechanisms help a pretrained model where all of its weights are trained on?", "fine_tuning"),
)  # fmt: skip


def select(names: Sequence[str]) -> tuple[Experiment, ...]:
    """The experiments of these names, in their order; ``"all"`` is every one.

    Raises:
        ExselError: a name that no experiment has, or none at all.
    """
    if not names:
        raise ExselError("no experiment is named: give names with commas between, or all (--list)")
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name in names:
        if name not in known and name != "all":
            near = difflib.get_close_matches(name, [*known, "all"], n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ExselError(f"no experiment {name!r}{hint}: python -m evidence reproduce --list names them all")
    wanted = dict.fromkeys(other for name in names for other in (known if name == "all" else [name]))
    return tuple(known[name] for name in wanted)
