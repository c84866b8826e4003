"""From file, `--set` and flags to a Config, later ones winning. Every mistake is told at once."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedcl import explain
from fedcl.config import Config, with_plus
from fedcl.explain import ConfigError

__all__ = ["ConfigError", "ConfigErrors", "resolve", "tree"]

Tree = dict[str, Any]


class ConfigErrors(ValueError):
    """All that is wrong with a config.

    Args:
        errors: one for each key that is wrong.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


def resolve(
    file: Path | Tree | None = None, sets: Sequence[str] = (), flags: Mapping[str, str] | None = None
) -> Config:
    """The config that these describe, later ones winning: defaults < file < sets < flags.

    Args:
        file: TOML; the config.toml of a run directory is one. Or what would stand there.
        sets: `section.key=value`, the value as TOML, or else as text.
        flags: config key → what was typed.

    Raises:
        ConfigErrors: with all mistakes, of names and options too.
    """
    from fedcl import choices

    tree, errors = _layered(file, sets, flags or {})
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        errors += explain.validation(error, tree)
    wrong = {error.key for error in errors}
    errors += [error for error in choices.check(tree) if error.key not in wrong]
    if errors:
        raise ConfigErrors(errors)
    return config


def tree(file: Path | Tree | None = None, sets: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Tree:
    """The same layers as a tree of what they set, without the defaults: what a config file would say.

    Raises:
        ConfigErrors: a file cannot be read, or an assignment is none.
    """
    found, errors = _layered(file, sets, flags or {})
    if errors:
        raise ConfigErrors(errors)
    return found


def _layered(file: Path | Tree | None, sets: Sequence[str], flags: Mapping[str, str]) -> tuple[Tree, list[ConfigError]]:
    found, errors = _read(file) if isinstance(file, Path) else (copy.deepcopy(file or {}), [])
    assignments = [*(text.partition("=") for text in sets)]
    assignments += [(key, "=", value) for key, value in flags.items()]
    for key, equals, text in assignments:
        try:
            _merge(found, _assignment(key.strip(), equals, text.strip()))
        except ValueError as error:
            errors.append(ConfigError(key, text or None, str(error)))
    return with_plus(found), errors


def _read(file: Path) -> tuple[Tree, list[ConfigError]]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")), []
    except OSError as error:
        why = f"cannot be read: {error.strerror}; give a TOML file, or the config.toml of a run directory"
    except ValueError as error:  # not TOML, or not UTF-8
        why = f"is not TOML: {error}"
    return {}, [ConfigError("--config", str(file), why)]


def _assignment(key: str, equals: str, text: str) -> Tree:
    """`key = text` as a tree: TOML reads the dots and quotes of both."""
    if not equals:
        raise ValueError("has no value; write --set section.key=value")
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        plain = tomllib.loads(f"{key} = {quoted}")
    except ValueError:
        raise ValueError("is no key; write --set section.key=value") from None
    if explain.annotation(_path(plain)) is str:  # also where it looks like a number: run.name=5
        return plain if text[:1] not in ('"', "'") else tomllib.loads(f"{key} = {text}")
    try:
        return tomllib.loads(f"{key} = {text}")
    except ValueError:
        return plain


def _path(tree: Tree) -> list[str]:
    """The keys down to the one value."""
    path, node = [], tree
    while isinstance(node, dict) and node:
        (name,) = node
        path.append(name)
        node = node[name]
    return path


def _merge(tree: Tree, addition: Tree) -> None:
    for name, value in addition.items():
        if isinstance(value, dict) and isinstance(tree.get(name, {}), dict):
            _merge(tree.setdefault(name, {}), value)
        else:
            tree[name] = value
