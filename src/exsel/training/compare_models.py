"""``exsel.compare``: variants of a model trained side by side, from Python or in a notebook."""

from __future__ import annotations

import base64
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.data import PackedData
from exsel.errors import ExselError, require_all
from exsel.files import write_json
from exsel.machine import resolve_device
from exsel.report import headline, headline_note, summary_rows, table_headings, write_report
from exsel.report.comparison_charts import comparison_charts, comparison_looks
from exsel.report.notebook_table import notebook_table
from exsel.report.picture import write_picture
from exsel.training.compare import compare_runs
from exsel.training.comparison_plan import plan_runs
from exsel.training.final_measurements import check_answers
from exsel.training.model_checks import check_new_models
from exsel.training.output_folder import REPORT, RESULTS
from exsel.training.own_model import Factory
from exsel.training.progress import Progress
from exsel.training.run_model import check_disk, load_run_data, sketch_model, with_evaluation_sets
from exsel.training.settings import Settings, one_a_variant, with_defaults
from exsel.variants import BASELINE, CHOOSING_SEED, VARIANTS, Variant, choose_variants

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from exsel.report.charts import Chart

# What the arguments of `compare` say, or the runs have each their own.
_NOT_GIVEN = ("variant", "seed", "learning_rate", "model", "source", "train", "data")


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """What a comparison found; in a notebook it shows its sentence, table and losses.

    Args:
        results: the content of ``results.json``.
        folder: where the runs and their models are.
    """

    results: Mapping[str, Any]
    folder: Path

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        return headline(self.results)

    @property
    def table(self) -> list[dict[str, str]]:
        """A row for each variant, by the column's heading, as the report shows it."""
        headings = table_headings(self.results)
        return [{headings[key]: cell for key, cell in row.items()} for row in summary_rows(self.results)]

    @property
    def figures(self) -> list[Chart]:
        """The report's figures as data."""
        return [chart for charts in comparison_charts(self.results).values() for chart in charts]

    def write(self, folder: str | PathLike[str]) -> Path:
        """Write ``report.html``, ``results.json`` and each figure as ``.svg``; the report's path."""
        place, looks = Path(folder), comparison_looks(self.results)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / RESULTS, self.results)
        for chart in self.figures:
            write_picture(chart, place / f"{chart.name}.svg", looks)
        write_report(self.results, place / REPORT)
        return place / REPORT

    def __str__(self) -> str:
        return f"{self.headline}\n{headline_note(self.results)}".rstrip()

    def _repr_html_(self) -> str:
        """The display in a notebook: nothing from elsewhere, no script."""
        table, chart = self.table, self.figures[0]
        rows = ((first, (f"<td>{escape(cell)}</td>" for cell in cells)) for first, *cells in map(dict.values, table))
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "figure.svg")
            write_picture(chart, path, comparison_looks(self.results))
            drawn = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{escape(chart.title)}" style="max-width:100%" src="data:image/svg+xml;base64,{drawn}">'
        last = f"{image}<p><code>result.write(folder)</code> makes a report.</p>"
        return notebook_table(self.headline, [headline_note(self.results)], list(table[0]), rows, last=last)


def compare(
    build: str | PathLike[str] | Mapping[str, Any] | PreTrainedConfig | Factory = "tiny",
    data: PackedData | str | PathLike[str] | Sequence[str] | Sequence[Path] = (),
    *,
    variants: Sequence[str | Variant] = tuple(VARIANTS),
    seeds: Sequence[int] = (0,),
    learning_rates: Sequence[float] = (),
    choosing_seeds: Sequence[int] = (CHOOSING_SEED,),
    folder: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> ComparisonResult:
    """Train variants of a model on the same batches from the same weights, and compare them.

    Args:
        build: a function that returns a new ``torch.nn.Module``, called with those of ``vocab_size`` and ``seq_len``
            that it takes; its ``forward`` takes token ids ``[B, T]`` first and gives logits ``[B, T, V]`` (see
            :class:`exsel.training.own_model.OwnModel`). Or a transformers configuration, its dictionary or file; or
            a size, as ``--model`` names it.
        data: strings in a list are texts. A string or path alone, or paths in a list, are what ``--data`` takes. Or
            what :func:`exsel.data.load_data` returned. By default the Python standard library's source.
        variants: names, TOML files of recipes, or :class:`exsel.Variant`.
        seeds: of the runs of each variant.
        learning_rates: peak learning rates; of several, the best one is chosen for each variant. By default that of the
            model's size.
        choosing_seeds: of the runs that choose a learning rate, which make no result.
        folder: for the runs and their models; by default one that is deleted with the result.
        resume: go on with what is in ``folder``.
        progress: who is told how the runs go.
        **settings: fields of :class:`exsel.training.settings.Settings`, such as ``tokens``, ``seq_len``,
            ``batch_size``, ``device``, ``dtype``; what is not given has the default of the model's size.

    Raises:
        ExselError: before any training, where a model, the data or a setting cannot be used; see
            :func:`exsel.training.run.train_run`.
        TypeError: a setting that there is not.
    """
    require_all("train")
    known = [field.name for field in fields(Settings) if field.name not in _NOT_GIVEN]
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"exsel.compare has no setting {unknown[0]!r}; it has {', '.join(known)}")
    said = {**settings, "model": _model(build), "device": resolve_device(settings.get("device", "auto"))}
    if isinstance(data, PackedData):
        described = data.description
        fixed = {"seq_len": described.seq_len, "tokenizer": described.tokenizer, "pack": described.pack}
        if other := [name for name, value in fixed.items() if settings.get(name, value) != value]:
            raise ExselError(f"the data was packed with {other[0]}={fixed[other[0]]!r}: leave {other[0]} out")
        said |= fixed
    else:
        texts, said["data"] = _sources(data)
    if learning_rates:
        said["learning_rate"] = learning_rates[0]
    first = Settings(**with_defaults(said), variant=VARIANTS[BASELINE], seed=seeds[0] if seeds else 0)
    plan = plan_runs(
        first,
        variants=[one for each in variants for one in (choose_variants([each]) if isinstance(each, str) else [each])],
        learning_rates=learning_rates or [first.learning_rate],
        seeds=seeds,
        choosing_seeds=choosing_seeds,
    )
    for run in one_a_variant(plan.runs):
        sketch_model(run, vocab_size=256)
    data = with_evaluation_sets(data, first) if isinstance(data, PackedData) else load_run_data(first, texts=texts)
    with ExitStack() as temporary:
        if folder is None:
            folder = temporary.enter_context(tempfile.TemporaryDirectory(prefix="exsel-compare-"))
        place = Path(folder)
        check_disk(plan.runs, data.description.vocab_size, place)
        check_new_models(plan.runs, data)
        check_answers(first, data)
        found = compare_runs(
            plan, data, place, command="exsel.compare(…)", progress=progress or Progress(), resume=resume
        )
        result = ComparisonResult(results=found, folder=place)
        weakref.finalize(result, temporary.pop_all().close)
    return result


def _model(build: Any) -> Any:
    if isinstance(build, PathLike):
        return str(build)
    if hasattr(build, "to_dict") and hasattr(build, "model_type"):
        return build.to_dict()
    if isinstance(build, (str, Mapping)) or callable(build):
        return build
    raise TypeError(f"build must be a function, a configuration or a name, got {type(build).__name__}")


def _sources(data: Any) -> tuple[list[str], tuple[str, ...]]:
    """The texts, and what `load_data` reads; one of them is empty."""
    if isinstance(data, (str, PathLike)):
        return [], (str(data),)
    items = list(data)
    if all(isinstance(item, PathLike) for item in items):
        return [], tuple(map(str, items))
    if not all(isinstance(item, str) for item in items):
        raise TypeError("data must be texts, paths, or what exsel.data.load_data returned")
    if all(len(item) < 256 and Path(item).exists() for item in items):
        raise ExselError(f"strings in a list are texts, and {items[0]!r} is a file: give it as a pathlib.Path")
    return items, ()
