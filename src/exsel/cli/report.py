"""``exsel report``: the page of a comparison again, or of several together."""

from __future__ import annotations

import argparse
from pathlib import Path

from exsel.cli.outputs import check_file
from exsel.errors import ExselError, require_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    text = "folders of `exsel compare`; of several, the rows are named with their folders"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=text)
    text = "the page (of one folder: its report.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Read, join, draw."""
    require_all("report")
    from exsel.report import headline, headline_note, write_report
    from exsel.report.joined import join
    from exsel.report.results_file import read_results
    from exsel.training.output_folder import REPORT, RESULTS, is_comparison

    folders: list[Path] = list(dict.fromkeys(arguments.folders))
    if len(folders) > 1 and arguments.out is None:
        raise ExselError("--out is needed for several folders: name the page, such as --out report.html")
    out: Path = arguments.out or folders[0] / REPORT
    check_file("--out", arguments.out)
    comparisons = []
    for folder in folders:
        if not folder.is_dir():
            raise ExselError(f"no such folder: {folder}")
        if not (folder / RESULTS).is_file():
            unfinished = "an unfinished comparison: go on with --resume" if is_comparison(folder) else "no comparison"
            raise ExselError(f"{folder} has no {RESULTS}: it holds {unfinished}")
        comparisons.append(read_results(folder / RESULTS))
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    results = comparisons[0] if len(folders) == 1 else join(dict(zip(labels, comparisons, strict=True)))
    write_report(results, out)
    print(f"{headline(results)}\n{headline_note(results)}".rstrip() + f"\n\nreport: {out}", flush=True)
    return 0
