"""What the site has beside the pages of this folder: a page for each public name and one for the command line.

MkDocs calls the functions ``on_…`` while it builds.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
#: Where public names stand, in the order of the reference.
PACKAGES = ("exsel", "exsel.nn", "exsel.peft", "exsel.evaluation")


def public_names(package: str) -> list[str]:
    """The names in ``__all__`` of a package, read from its source."""
    path = ROOT.joinpath("src", *package.split("."), "__init__.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return [name for name in names if f"{package}.{name}" not in PACKAGES]
    raise ValueError(f"{path} has no __all__")


def command_line() -> str:
    """The help of every command, as a page."""
    from exsel.cli import COMMANDS

    parts = ["# The command line"]
    for name, text in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"exsel {name}", formatter_class=lambda prog: argparse.HelpFormatter(prog, width=92)
        )
        importlib.import_module(f"exsel.cli.{name}").add_arguments(parser)
        parts.append(f"## exsel {name}\n\n{text[0].upper()}{text[1:]}.\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts)


def results_page() -> str:
    """The schema of ``results.json``, as a page."""
    path = ROOT / "src" / "exsel" / "report" / "results.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        f"# results.json\n\n{schema['description']} The schema itself is in the package: `exsel/report/{path.name}`."
    ]
    for name, part in {"results.json": schema, **schema["$defs"]}.items():
        fields = part.get("properties") or part.get("items", {}).get("properties", {})
        rows = "\n".join(f"| `{field}` | {each['description']} | {_kind(each)} |" for field, each in fields.items())
        parts.append(f"## {name}\n\n{part['description']}\n\n| name | what it is | kind |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts)


def _kind(schema: dict[str, Any]) -> str:
    """The type of a value in a word or two; of a value that is described elsewhere, a link to its section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "items" in schema:
        return f"array of {_kind(schema['items'])}"
    if choices := schema.get("anyOf") or schema.get("allOf"):
        return " or ".join(map(_kind, choices))
    if "enum" in schema or "const" in schema:
        return ", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the menu."""
    groups = [
        {package: [{name: f"reference/{package}.{name}.md"} for name in public_names(package)]} for package in PACKAGES
    ]
    assert config.nav is not None
    config.nav.append({"Reference": ["reference/index.md", "reference/commands.md", "reference/results.md", *groups]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    index = ["# Reference", "[The command line](commands.md)", "[results.json of a comparison](results.md)"]
    pages = {"commands.md": command_line(), "results.md": results_page()}
    for package in PACKAGES:
        names = public_names(package)
        index.append(f"## {package}\n\n" + "\n".join(f"* [{name}]({package}.{name}.md)" for name in names))
        pages |= {f"{package}.{name}.md": f"::: {package}.{name}\n" for name in names}
    pages["index.md"] = "\n\n".join(index)
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Turn the roles of docstrings, such as ``:func:`exsel.exclude```, into links where there is such a page."""
    return re.sub(
        r":(?:func|class|meth|mod|attr|data):<code>~?([\w.]+)</code>",
        r'<autoref optional identifier="\1"><code>\1</code></autoref>',
        html,
    )
