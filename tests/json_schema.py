"""The part of JSON Schema (2020-12) that exsel's own schema uses; any other keyword is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ANNOTATIONS = {"$schema", "$defs", "title", "description"}
_KINDS: Mapping[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
}  # fmt: skip


def faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str = "$") -> Iterator[str]:
    """What is wrong with a value, each with its place."""
    for keyword, said in schema.items():
        if keyword == "$ref":
            yield from faults(value, root["$defs"][said.removeprefix("#/$defs/")], root, where)
        elif keyword == "allOf":
            for each in said:
                yield from faults(value, each, root, where)
        elif keyword == "anyOf":
            found = [list(faults(value, each, root, where)) for each in said]
            if all(found):
                yield from found[0]
        elif keyword == "type":
            kinds = said if isinstance(said, list) else [said]
            if not any(_is(value, kind) for kind in kinds):
                yield f"{where} is {value!r:.40}, not {' or '.join(kinds)}"
        elif keyword == "const" or keyword == "enum":
            if value not in (said if keyword == "enum" else [said]):
                yield f"{where} is {value!r:.40}, not {said}"
        elif keyword == "minimum":
            if _is(value, "number") and value < said:
                yield f"{where} is {value}, less than {said}"
        elif keyword == "required":
            yield from (f"{where} lacks {name}" for name in said if isinstance(value, dict) and name not in value)
        elif keyword in ("properties", "additionalProperties"):
            yield from _of_properties(value, schema, keyword, root, where)
        elif keyword == "items":
            for place, each in enumerate(value if isinstance(value, list) else []):
                yield from faults(each, said, root, f"{where}[{place}]")
        elif keyword not in _ANNOTATIONS:
            raise NotImplementedError(keyword)


def _of_properties(
    value: Any, schema: Mapping[str, Any], keyword: str, root: Mapping[str, Any], where: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    for name, each in value.items() if isinstance(value, dict) else ():
        if keyword == "properties" and name in known:
            yield from faults(each, known[name], root, f"{where}.{name}")
        elif keyword == "additionalProperties" and name not in known:
            if schema[keyword] is False:
                yield f"{where} has {name}, which the schema does not know"
            else:
                yield from faults(each, schema[keyword], root, f"{where}.{name}")


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (kind == "number" or float(value).is_integer())
    return isinstance(value, _KINDS[kind])
