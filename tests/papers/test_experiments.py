from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import pytest

from evidence.papers.experiments import EXPERIMENTS, READERS, SSA, XSA, Experiment, select
from exsel.errors import ExselError


def test_names_and_titles_are_unique() -> None:
    for values in ([one.name for one in EXPERIMENTS], [one.title for one in EXPERIMENTS]):
        assert len(set(values)) == len(values)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.name) for one in EXPERIMENTS)


def test_groups_stand_together() -> None:
    groups = [one.group for one in EXPERIMENTS]
    assert list(dict.fromkeys(groups)) == [XSA, SSA, READERS]
    assert groups == sorted(groups, key=[XSA, SSA, READERS].index)
    assert all(bool(one.place) == (one.group != READERS) for one in EXPERIMENTS)


def test_where_a_claim_is_made() -> None:
    by_name = {one.name: one for one in EXPERIMENTS}
    assert by_name["bias"].source == "Zhai 2026, Figure 1"
    assert by_name["graph"].source == "Zhang et al. 2024, Figure 3"
    assert by_name["strength"].source == READERS
    assert by_name["learning-rate"].function == "run_learning_rate"


def test_select() -> None:
    assert select(["all"]) == EXPERIMENTS
    assert [one.name for one in select(["sizes", "bias", "sizes"])] == ["sizes", "bias"]
    assert len(select(["tasks", "all"])) == len(EXPERIMENTS)
    assert select(["tasks", "all"])[0].name == "tasks"


def test_select_says_what_is_wrong() -> None:
    with pytest.raises(ExselError, match=r"no experiment 'size' \(did you mean sizes\?\)"):
        select(["size"])
    with pytest.raises(ExselError, match=r"no experiment 'zzz': python -m evidence reproduce --list"):
        select(["zzz"])
    with pytest.raises(ExselError, match="no experiment is named"):
        select([])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_each_has_its_function(experiment: Experiment) -> None:
    module = importlib.import_module(f"evidence.papers.{experiment.module}")
    assert list(inspect.signature(getattr(module, experiment.function)).parameters) == ["job"]


def test_the_list_needs_nothing_but_python() -> None:
    code = (
        "import sys, evidence.papers.experiments, evidence.papers.outcome, evidence.papers.results_page\n"
        "print([name for name in ('torch', 'matplotlib', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
