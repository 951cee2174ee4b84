from dataclasses import replace
from types import SimpleNamespace

from evidence.papers.answers import answers, differences, in_short
from evidence.papers.outcome import Finding
from exsel.intervals import Estimate
from papers.fakes import make_outcome, make_record


def record(name, *findings, budget="cpu"):
    made = [Finding(quantity=quantity, ours=Estimate.of(*values), digits=3) for quantity, values in findings]
    outcome = replace(make_outcome(), findings=tuple(made), size="2 layers of width 8, much text; seeds")
    return make_record(SimpleNamespace(name=name), outcome, budget=budget)


SURE = ("gain of exclusive over the baseline, nats", (1.0, 1.1, 0.9))
UNSURE = ("gain of selective over the baseline, nats", (0.5, -0.4, 0.1))
WORSE = ("learned less plain, 2 layers, accuracy", (-0.3, -0.2, -0.25))


def test_the_surest_comes_first_and_each_once():
    records = [
        record("training", SURE, ("time of a step", (1.0, 1.0, 1.1))),
        record("together", UNSURE, ("gain of the same, nats", SURE[1])),
        record("induction", WORSE),
        record("strength", ("gain in seconds", (9.0, 9.0, 9.1)), budget="smoke"),
    ]
    found = differences(records)
    assert [each.finding.quantity for each in found] == [SURE[0], WORSE[0], UNSURE[0]]
    assert found[0].sureness > found[1].sureness > 1 > found[2].sureness
    page = answers(found)
    assert "Of 3 differences 2 are told" in page
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[1] for line in lines] == ["helps", "hurts", "is not told"]
    assert "(reproduction.md#training-and-validation-curves)" in lines[0]


def test_one_seed_is_not_sure():
    assert differences([record("training", (SURE[0], (1.0,)))])[0].sureness == 0


def test_in_short_says_what_was_looked_at():
    lines = in_short([record("speed-up", UNSURE), record("training", SURE)]).splitlines()
    assert [line.split("**")[1] for line in lines] == [
        "Exclusive attention, trained from scratch: helps.",
        "Selective attention, trained from scratch: no difference is told.",
    ]
    assert "Gain of exclusive over the baseline, nats: 1.000 [0.752, 1.248], 3 seeds, 2 layers of width 8." in lines[0]
