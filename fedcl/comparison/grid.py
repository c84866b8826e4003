"""Which runs a comparison has: every combination of the varied settings, once for each seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcl import defaults, settings
from fedcl.config import Config
from fedcl.toml import assignments

_PLAIN = re.compile(r"[^A-Za-z0-9._+=,-]")
_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Axis:
    """One setting that varies, or several at once under names of their own."""

    key: str  # of the config: "partition.alpha"; of named values any word: "setting"
    values: tuple[str, ...]  # as they were typed, or the names
    named: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # name → what it changes, as in a config file

    def sets(self, value: str) -> list[str]:
        """What a value changes, as `key=value`."""
        return assignments(self.named[value]) if self.named else [f"{self.key}={value}"]


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    labels: tuple[str, ...]  # its value on each axis
    seed: int
    config: Config | None  # None where these settings do not go together,
    error: str = ""  # and why


@dataclass(frozen=True)
class Grid:
    """All runs of a comparison, by group (the labels) and then by seed."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    def digest(self) -> str:
        """Eight hex digits over the axes and every run's config, but not the seeds: more of them are the same grid."""
        configs = {cell.labels: cell.config.digest() if cell.config else cell.error for cell in reversed(self.cells)}
        content = json.dumps([[axis.key for axis in self.axes], sorted(configs.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def parse(text: str) -> Axis:
    """`key=a,b,c` as an axis; commas inside brackets, braces or quotes do not part.

    Raises:
        ValueError: it is not of this form, or a value stands there twice.
    """
    key, equals, rest = text.partition("=")
    values = tuple(value.strip() for value in _parted(rest))
    if not equals or not key.strip() or not all(values):
        raise ValueError(f"--vary {text}: write --vary key=a,b,c")
    if len(set(values)) < len(values):
        raise ValueError(f"--vary {text}: a value stands there twice")
    return Axis(key.strip(), values)


def seeds(text: str, first: int = 0) -> tuple[int, ...]:
    """`5` as five seeds from `first` on, `0,3,7` as those.

    Raises:
        ValueError: it is neither, or a seed stands there twice.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if "," not in text and found and found[0] > 0:
        found = tuple(range(first, first + found[0]))
    elif "," not in text or len(set(found)) < len(found) or min(found, default=-1) < 0:
        raise ValueError(f"--seeds {text}: give a number of seeds of at least 1, or a list of different ones: 0,3,7")
    return found


def build(
    axes: Sequence[Axis],
    seeds: Sequence[int],
    file: Path | dict[str, Any] | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
) -> Grid:
    """All combinations; settings from defaults < file < sets < flags < axes.

    Raises:
        settings.ConfigErrors: the settings without the axes are wrong.
        ValueError: an axis is there twice, or is the seed or the output, which the grid sets.
    """
    _check(axes)
    settings.resolve(file, sets, flags)
    cells = []
    for labels in itertools.product(*(axis.values for axis in axes)):
        varied = [change for axis, label in zip(axes, labels, strict=True) for change in axis.sets(label)]
        changed = {change.partition("=")[0] for change in varied}
        kept = {key: text for key, text in (flags or {}).items() if key not in changed}
        for seed in seeds:
            try:
                config = settings.resolve(file, [*sets, *varied], kept | {"seed": str(seed)})
                cells.append(Cell(labels, seed, defaults.fill(config)))
            except settings.ConfigErrors as errors:
                cells.append(Cell(labels, seed, None, str(errors)))
    return Grid(tuple(axes), tuple(seeds), tuple(cells))


def _check(axes: Sequence[Axis]) -> None:
    """Refuse what cannot vary, or is there twice."""
    keys = [axis.key for axis in axes]
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise ValueError(f"--vary {axis.key}: is there twice")
        changed = {change.partition("=")[0] for value in axis.values for change in axis.sets(value)}
        if own := changed & {"seed", "run.output"}:
            raise ValueError(f"--vary {axis.key}: {min(own)} the grid sets itself")


def folder(axes: Sequence[Axis], labels: Sequence[str]) -> str:
    """A name for the folder of a combination: `method=ewc,partition.alpha=0.1`; `all` without axes."""
    exact = ",".join(f"{axis.key}={label}" for axis, label in zip(axes, labels, strict=True)) or "all"
    plain = _PLAIN.sub("_", exact)
    if plain == exact and len(plain) <= _LONGEST:
        return plain
    return f"{plain[:_LONGEST]}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"


def _parted(text: str) -> list[str]:
    """Text at its outer commas."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    return parts
