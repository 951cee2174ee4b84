"""The result of a diagnosis: plain data, which is saved as ``diagnostics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from exsel.diagnostics.diagnosis_report import notebook_html
from exsel.diagnostics.diagnosis_report import write as write_report
from exsel.errors import LoadError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What :func:`exsel.diagnose` found in a model.

    Args:
        exsel_version: the version of exsel that made the diagnosis.
        model: ``name``, ``class``, ``parameters``, ``context`` (the longest text that it is made for, or ``None``).
        data: ``description``, ``sequences``, ``tokens``, ``longest`` (of a sequence).
        machine: the machine that it ran on.
        command: the command that made it, if there was one.
        buckets: groups of positions, counted from 1: ``first`` and ``last`` of each, which is twice as wide as the
            one before it.
        layers: for each layer ``metrics`` by name, each with ``mean``, ``least``, ``most``, ``heads`` (by query head),
            ``buckets`` and ``head_buckets``; and ``gaps``, the reasons why other metrics were not measured. The names
            are those of :data:`exsel.diagnostics.metrics.METRICS`.
        left_out: attention modules that could not be watched, with the reason.
        notes: what else the reader should know.
        pictures: some metrics of the first tokens, one by one.
    """

    exsel_version: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    machine: Mapping[str, Any] | None = None
    command: str | None = None
    buckets: list[dict[str, int]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``diagnostics.json``, in JSON types."""
        return {"format": FORMAT, **{each.name: getattr(self, each.name) for each in fields(self)}}

    @classmethod
    def from_dict(cls, values: Any) -> Diagnosis:
        """The inverse of :meth:`to_dict`.

        Raises:
            LoadError: not the content of a ``diagnostics.json``, or of one in another format.
        """
        if not isinstance(values, Mapping) or "format" not in values:
            raise LoadError("this is no diagnosis: expected the content of a diagnostics.json, with its format")
        if values["format"] != FORMAT:
            raise LoadError(
                f"this diagnosis has format {values['format']!r}, and this version of exsel reads {FORMAT}: "
                "make it again with exsel diagnose"
            )
        expected = {each.name for each in fields(cls)} | {"format"}
        if faults := sorted(expected ^ values.keys()):
            what = "lacks" if faults[0] in expected else "has an unknown entry"
            raise LoadError(f"this diagnosis {what} {faults[0]!r}: make it again with exsel diagnose")
        for name, kind in (("model", Mapping), ("data", Mapping), ("buckets", list), ("layers", list)):
            if not isinstance(values[name], kind):
                raise LoadError(f"this diagnosis has no proper {name!r}: make it again with exsel diagnose")
        for layer in values["layers"]:
            if not isinstance(layer, Mapping) or not {"name", "metrics", "gaps"} <= layer.keys():
                raise LoadError("this diagnosis has a layer without metrics and gaps: make it again")
        return cls(**{name: value for name, value in values.items() if name != "format"})

    def write(self, folder: str | PathLike[str], against: Diagnosis | None = None) -> Path:
        """Write the report, and return its path.

        ``report.html`` and ``tokens.html`` (the text shaded token by token) are one file each and load nothing;
        ``diagnostics.json`` holds the numbers (``diagnostics-against.json`` those of the other model), and ``figures``
        each figure as SVG, PNG and PDF.

        Args:
            folder: made where it does not exist; what an earlier report left there is replaced.
            against: of another model on the same text, shown side by side.

        Raises:
            ImportError: without the extra ``exsel[report]``.
            OSError: the folder cannot be written.
        """
        other = None if against is None else against.to_dict()
        return write_report(self.to_dict(), Path(folder), other)

    def _repr_html_(self) -> str:
        """The display in a notebook."""
        return notebook_html(self.to_dict())
