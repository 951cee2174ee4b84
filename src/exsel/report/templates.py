"""Where the pages' templates lie. Needs Jinja2."""

from __future__ import annotations

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Templates of a package, which may extend and include those of ``exsel.report``."""
    homes = dict.fromkeys((package, "exsel.report"))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(home, "") for home in homes]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
