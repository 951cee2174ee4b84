"""What an experiment is, what it is given, and what it finds: plain values that are saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, get_origin, get_type_hints

from exsel.errors import ExselError
from exsel.files import read_json
from exsel.intervals import Estimate
from exsel.report.charts import Chart

if TYPE_CHECKING:
    from exsel.training.progress import Progress

#: How much may be spent: seconds, to see that it runs; minutes on a CPU; at most eight minutes on a GPU.
Budget = Literal["smoke", "cpu", "gpu"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)

#: Of a record.
FORMAT = 1

#: What came of a claim. ``"exact"``: mathematics, which held to rounding; ``"unclear"``: the seeds do not decide it.
Verdict = Literal["exact", "reproduced", "partly", "not reproduced", "unclear", "not run"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one experiment is run with.

    Args:
        budget: how much may be spent.
        device: ``"cpu"`` or ``"cuda"``.
        seeds: one value of every number for each; variants of the same seed are paired.
        data: text files to train on, as ``--data`` names them; empty: what is at hand on every machine.
        folder: the experiments' own; what is finished there is found again.
        progress: where a long run shows what it does.
    """

    budget: Budget
    device: str
    seeds: tuple[int, ...]
    data: tuple[str, ...]
    folder: Path
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number beside the published one.

    Args:
        quantity: what it is, with its unit.
        ours: what came out here.
        published: the paper's number; ``None`` where it gives none.
        expected: what the claim says of it, in words.
        holds: whether it came out so; ``None``: it cannot be told.
        digits: decimals to show.
    """

    quantity: str
    ours: Estimate
    published: float | None = None
    expected: str = ""
    holds: bool | None = None
    digits: int = 4


@dataclass(frozen=True, kw_only=True)
class Table:
    """More numbers than findings, as text that is shown as it is."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an experiment finds.

    Args:
        verdict: what came of the claim at this size.
        conclusion: in a sentence or two, made from the numbers.
        size: what was looked at: the model, the tokens, the text; a claim is only tested there.
        findings: the numbers, the one that says most first: it stands in the table of all experiments.
        charts: figures.
        tables: more numbers.
    """

    verdict: Verdict
    conclusion: str
    size: str
    findings: tuple[Finding, ...]
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """An experiment that was run, as ``NAME.json`` holds it.

    Args:
        experiment: its name in the list of experiments.
        budget, seeds, device, data: of the :class:`Job`.
        outcome: what it found.
        seconds: it took; trainings that another experiment had done before are not among them.
        started: when, ISO 8601.
        machine: :func:`exsel.machine.describe_machine`.
        git_revision: of exsel, where it ran from a source tree.
        exsel_version: that ran it.
        command: that runs it so again.
    """

    experiment: str
    budget: Budget
    seeds: tuple[int, ...]
    device: str
    data: tuple[str, ...]
    outcome: Outcome
    seconds: float
    started: str
    machine: Mapping[str, Any]
    git_revision: str | None
    exsel_version: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Self:
        """From its file.

        Raises:
            ExselError: it is damaged, or no record of this version.
        """
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ExselError(
                f"{path} is no record that this version of exsel reads (format {FORMAT}, got {found!r:.40})"
            )
        del values["format"]
        try:
            record: Self = _typed(cls, values, path.stem)
        except ValueError as error:
            raise ExselError(f"{path} is damaged ({error}): delete it and run it again") from error
        return record


def _typed(kind: Any, value: Any, place: str) -> Any:
    """A value of JSON as the type that it was before: dataclasses of objects, tuples of lists.

    Raises:
        ValueError: it is of another type, at a place that is named.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        required = {field.name for field in fields(kind) if field.default is MISSING}
        if wrong := (value.keys() - kinds.keys()) | (required - value.keys()):
            raise ValueError(f"{place} has or lacks {', '.join(map(repr, sorted(wrong)))}")
        return kind(**{name: _typed(kinds[name], each, f"{place}.{name}") for name, each in value.items()})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], each, f"{place}[{index}]") for index, each in enumerate(value))
    if origin is UnionType:
        present = next(option for option in arguments if option is not NoneType)
        return None if value is None else _typed(present, value, place)
    if origin is Literal and value in arguments:
        return value
    if kind is float and type(value) in (int, float) and abs(value) < 1e300:
        return value
    if origin is Mapping and isinstance(value, dict):
        return value
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise ValueError(f"{place} is {value!r:.40}")
