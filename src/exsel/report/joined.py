"""Several comparisons as one, for a page that shows them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exsel.errors import ExselError
from exsel.report.comparison import entries, section, variant_name

# What all must have alike, so that their losses can stand side by side; of the model everything but its own name.
_DATA = ("sha256", "tokenizer")
_CONFIG = ("steps", "tokens", "seq_len", "batch_size", "pack", "evaluation_blocks")


def join(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One comparison of several, whose variants are named with their labels.

    A difference is to the baseline of the same comparison, as it was.

    Args:
        comparisons: the content of each ``results.json`` by label, two or more.

    Raises:
        ExselError: their losses cannot be compared: other data, steps, or another model.
    """
    first, *others = comparisons
    for other in others:
        one, two = _alike(comparisons[first]), _alike(comparisons[other])
        differing = [name for name in {**one, **two} if one.get(name) != two.get(name)]
        if differing:
            raise ExselError(
                f"{first} and {other} cannot stand on one page: they differ in {', '.join(differing[:5])}; make a page "
                "of each"
            )
    return {
        **comparisons[first],
        "command": "; ".join(str(results.get("command")) for results in comparisons.values()),
        "parts": dict(comparisons),
        **{
            key: [
                {
                    **entry,
                    "variant": f"{variant_name(entry)} ({label})",
                    **({"directory": f"{label}/{entry['directory']}"} if "directory" in entry else {}),
                }
                for label, results in comparisons.items()
                for entry in entries(results, key)
            ]
            for key in ("variants", "sweep", "runs", "choosing_runs")
        },
    }


def _alike(results: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all, by the name that an error gives it."""
    data, config, model = (section(results, key) for key in ("data", "config", "model"))
    return {
        "the version of results.json": results.get("schema"),
        **{f"data {name}": data.get(name) for name in _DATA},
        **{name: config.get(name) for name in _CONFIG},
        **{f"the model's {name}": value for name, value in model.items() if name != "name"},
    }
