"""Grids as files: named values that change several settings at once, and what goes with them.

    seeds = "3"                          # as --seeds
    metrics = ["forgetting", "epsilon"]  # as --metric
    keep-going = true                    # as --keep-going
    [config]                             # as a config file, under the one of -c
    train.rounds = 4
    [vary]                               # in this order; the first is what is compared
    "partition.alpha" = [0.1, 0.5]       # values of a key …
    [vary.setting]                       # … or names, each with what it changes
    alone = { federation.kind = "local" }
    usual = {}

Whatever the command says besides wins. `--vary setting=al*` picks among the names.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcl import settings
from fedcl.comparison.grid import Axis
from fedcl.toml import assignments, text

_KEYS = ("seeds", "metrics", "keep-going", "config", "vary")


@dataclass(frozen=True)
class Preset:
    """What a grid's file says."""

    axes: tuple[Axis, ...] = ()
    seeds: str = "3"
    metrics: tuple[str, ...] = ()  # none: the usual ones
    keep_going: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def under(self, file: Path | None) -> dict[str, Any]:
        """The grid's settings with those of a config file over them.

        Raises:
            settings.ConfigErrors: the file cannot be read.
        """
        return settings.tree(self.config, assignments(settings.tree(file)))

    def with_axes(self, varied: Sequence[Axis]) -> list[Axis]:
        """The grid's axes, narrowed to the names that were asked for, and those that it does not have.

        Raises:
            ValueError: no name is like one that was asked for.
        """
        asked = {axis.key: axis for axis in varied}
        own = [_picked(axis, asked.pop(axis.key, None)) for axis in self.axes]
        known = {axis.key for axis in own}
        return own + [axis for axis in varied if axis.key not in known]


def load(path: Path) -> Preset:
    """Read a grid's file.

    Raises:
        ValueError: it cannot be read, or is no such file.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--grid {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--grid {path}: is not TOML: {error}") from error
    if wrong := [key for key in tree if key not in _KEYS]:
        raise ValueError(f"--grid {path}: {wrong[0]!r} is none of {', '.join(_KEYS)}; settings go into [config]")
    if wrong := [key for key in ("config", "vary") if not isinstance(tree.get(key, {}), dict)]:
        raise ValueError(f"--grid {path}: {wrong[0]} is no table")
    axes = tuple(_axis(path, key, values) for key, values in tree.get("vary", {}).items())
    return Preset(
        axes,
        str(tree.get("seeds", "3")),
        tuple(tree.get("metrics", ())),
        bool(tree.get("keep-going", False)),
        tree.get("config", {}),
    )


def shipped(name: str) -> Path:
    """The file of a grid that comes with fedcl: "privacy", "privacy-quick"."""
    return Path(__file__).parent / "grids" / f"{name}.toml"


def _axis(path: Path, key: str, values: Any) -> Axis:
    """A list of values, or a table of names."""
    if isinstance(values, Mapping) and values and all(isinstance(changes, dict) for changes in values.values()):
        return Axis(key, tuple(values), values)
    if isinstance(values, list) and values:
        return Axis(key, tuple(value if isinstance(value, str) else text(value) for value in values))
    raise ValueError(
        f"--grid {path}: vary.{key} is neither a list of values nor a table of names, each with what it changes; "
        "a key with dots is written in quotes"
    )


def _picked(axis: Axis, asked: Axis | None) -> Axis:
    """An axis with only those names, in its own order; other values of a key that has no names."""
    if asked is None or not axis.named:
        return asked or axis
    for pattern in asked.values:
        if not fnmatch.filter(axis.values, pattern):
            raise ValueError(f"--vary {axis.key}={pattern}: there are {', '.join(axis.values)}")
    names = [name for name in axis.values if any(fnmatch.fnmatchcase(name, pattern) for pattern in asked.values)]
    return Axis(axis.key, tuple(names), {name: axis.named[name] for name in names})
