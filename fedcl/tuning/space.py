"""What a search may choose: ranges and lists of values for keys of the config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedcl import defaults, plugins
from fedcl.comparison import grid
from fedcl.config import Config
from fedcl.toml import quoted

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    whole: bool = False
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """Some values, as they would be typed."""

    values: tuple[str, ...]


Space = Mapping[str, Range | Choice]


def parse(text: str) -> tuple[str, Range | Choice]:
    """`key=low:high`, `key=low:high:log` or `key=a,b,c`; whole numbers on both sides give whole numbers.

    Raises:
        ValueError: it is none of these, or the range is empty, or a logarithm's is not positive.
    """
    key, equals, rest = text.partition("=")
    if "," in rest or ":" not in rest or rest[:1] in "\"'[{":
        axis = grid.parse(text)
        return axis.key, Choice(axis.values)
    parts = rest.split(":")
    try:
        low, high = (float(part) for part in parts[:2])
    except ValueError:
        low = high = math.nan
    if not equals or not key or not low < high or parts[2:] not in ([], ["log"]) or ("log" in parts and low <= 0):
        raise ValueError(f"--search {text}: write key=low:high, key=low:high:log (low above 0) or key=a,b,c")
    whole = all(part.strip().lstrip("+-").isdigit() for part in parts[:2])
    return key.strip(), Range(low, high, whole, "log" in parts)


def usual(config: Config) -> dict[str, Range | Choice]:
    """What one would search first: the learning rate by ten either way, each method's strength by a hundred."""
    filled = defaults.fill(config)
    found: dict[str, Range | Choice] = {"train.lr": Range(config.train.lr / 10, config.train.lr * 10, log=True)}
    for name in plugins.split(config.method):
        strength = filled.methods.get(name, {}).get("strength", 0.0)
        if isinstance(strength, int | float) and strength > 0:
            found[f"methods.{quoted(name)}.strength"] = Range(strength / 100, strength * 100, log=True)
    return found


def suggest(trial: optuna.Trial, space: Space) -> dict[str, str]:
    """One choice of everything, as it would be typed."""
    chosen: dict[str, Any] = {}
    for key, part in space.items():
        if isinstance(part, Choice):
            chosen[key] = trial.suggest_categorical(key, part.values)
        elif part.whole:
            chosen[key] = trial.suggest_int(key, int(part.low), int(part.high), log=part.log)
        else:
            chosen[key] = float(f"{trial.suggest_float(key, part.low, part.high, log=part.log):.4g}")
    return {key: str(value) for key, value in chosen.items()}
