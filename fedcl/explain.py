"""What is wrong with a config, in words: pydantic's findings, with what is allowed and a guess."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedcl.config import Config

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a table",
    Path: "a path",
}


class ConfigError(NamedTuple):
    """One mistake: where, what was given (None is nothing), and the way out."""

    key: str
    value: Any
    message: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value!r}"
        return f"{self.key}{given}: {self.message}"


def validation(error: ValidationError, tree: dict[str, Any]) -> list[ConfigError]:
    """Pydantic's errors over a tree, one for each key."""
    found: dict[str, ConfigError] = {}
    for item in error.errors():
        path, value = _locate(item["loc"], tree)
        key = ".".join(path)
        field = _field(path)
        if item["type"] == "extra_forbidden":
            message = _unknown(path)
            value = None if isinstance(value, dict) else value
        elif item["type"] == "value_error":  # of a section as a whole: it says itself what does not go together
            message, value = item["msg"].partition(", ")[2], None
        elif field is None or _is_section(field.annotation):
            message = f"is a section: write it as [{key}] with keys below"
        else:
            message = f"must be {expected(field.annotation, field.metadata)}{_guess_value(field, value)}"
        found.setdefault(key, ConfigError(key, value, message))
    return list(found.values())


def annotation(path: Sequence[str]) -> Any:
    """The type of the setting at a path, None where there is none."""
    field = _field(path)
    return field.annotation if field else None


def guess(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _locate(loc: Sequence[int | str], tree: dict[str, Any]) -> tuple[list[str], Any]:
    """The part of pydantic's location that the tree has (the rest are branches of unions), and its value."""
    path: list[str] = []
    node: Any = tree
    for name in loc:
        if not isinstance(node, dict) or name not in node:
            break
        path.append(str(name))
        node = node[name]
    return path, node


def _field(path: Sequence[str]) -> FieldInfo | None:
    model: Any = Config
    field = None
    for name in path:
        if not _is_section(model) or name not in model.model_fields:
            return field if field and get_origin(field.annotation) is dict else None
        field = model.model_fields[name]
        model = field.annotation
    return field


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _unknown(path: Sequence[str]) -> str:
    parent: Any = Config if len(path) == 1 else annotation(path[:-1])
    section = ".".join(path[:-1])
    own = {name: f"{section}.{name}".lstrip(".") for name in parent.model_fields}
    elsewhere = {
        name: f"{other}.{name}"
        for other, field in Config.model_fields.items()
        if _is_section(field.annotation)
        for name in field.annotation.model_fields  # type: ignore[union-attr]
    } | {name: name for name in Config.model_fields}
    known = elsewhere if path[-1] in elsewhere else own
    if near := difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6):
        return f"there is no such setting; did you mean {known[near[0]]}?"
    return f"there is no such setting; {f'[{section}]' if section else 'the top level'} has {', '.join(own)}"


def _guess_value(field: FieldInfo, value: Any) -> str:
    allowed = [choice for choice in _choices(field.annotation) if isinstance(choice, str)]
    return guess(value, allowed) if isinstance(value, str) else ""


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) if part is not NoneType for choice in _choices(part)]


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its bounds, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(parts[0], parts[1:])
    if origin is Literal:
        return f"one of {', '.join(str(part) for part in parts)}" if len(parts) > 1 else str(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(expected(part) for part in parts)
    if origin in (list, Sequence):
        return f"a list, each {expected(parts[0])}"
    bounds = [
        f"{sign} {getattr(mark, name):g}"
        for mark in metadata
        for name, sign in _BOUNDS.items()
        if getattr(mark, name, None) is not None
    ]
    kind = _KINDS.get(origin or annotation, "another value")
    return " ".join([kind, " and ".join(bounds)]).strip()
