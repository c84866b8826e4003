"""Data sets: one file each, which defines `build(root, *, options) → Samples`.

A file may also define `sought(root, ...) → list[Path]`, the files that it reads, and `fetch(root, ...)`,
which downloads them. `fetch` here is the only thing that downloads data; `load` never does.
A name is a file's name (`mnist`), a variant (`medmnist:breastmnist`), a dotted path (`my_package.my_data`),
or several joined by `+`: a sequence, in which every data set has classes of its own.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fedcl import plugins
from fedcl.contracts import FedclError, Samples
from fedcl.datasets import _samples
from fedcl.sections import Data


@dataclass(frozen=True)
class Status:
    """Whether a data set lies where it is sought."""

    found: bool
    where: str  # files or folder, in words
    remedy: str = ""  # what to type where it is missing


def home(root: str = "") -> Path:
    """Where data sets lie: `root`, or else $FEDCL_DATA, or else ~/.cache/fedcl."""
    return Path(root or os.environ.get("FEDCL_DATA", "") or "~/.cache/fedcl").expanduser()


def load(data: Data) -> Samples:
    """The samples of `data.name`, checked.

    Raises:
        FedclError: there is no such data set or option, its files are missing or damaged, or nothing can be
            learned from the data (NaN, labels out of range, a class with one sample).
    """
    names = data.name.split("+")
    plans = [_resolve(name) for name in names]
    known = {option for build, _ in plans for option in plugins.options(build, skip=1)} - {"variant"}
    for option in data.options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            has = f"has the options {', '.join(sorted(known))}" if known else "has no options"
            raise FedclError(f"data.options.{option}: {data.name!r} {has}{hint}")
    parts = []
    for name, (build, variant) in zip(names, plans, strict=True):
        own = {key: data.options[key] for key in plugins.options(build, skip=1) if key in data.options}
        parts.append(_samples.check(name, _call(build, home(data.root), {**own, **variant}), not data.own))
    return parts[0] if len(parts) == 1 else _samples.join(names, parts)


def fetch(name: str, root: str = "") -> str:
    """Download a data set and say, in a sentence, where it lies.

    Raises:
        FedclError: there is no such data set, or the download failed.
    """
    build, variant = _resolve(name)
    module = _module(build)
    if not hasattr(module, "fetch"):
        return f"{name}: nothing is to be fetched"
    folder = home(root)
    status = find(name, root)
    if status.found:
        return f"{name}: already there, {status.where}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        module.fetch(folder, **variant)
    except (OSError, RuntimeError) as error:
        raise FedclError(
            f"fedcl data fetch {name}: the download into {folder} failed: {error}. "
            "Try again, or copy the files there by hand"
        ) from error
    return f"{name}: fetched, {find(name, root).where}"


def find(name: str, root: str = "") -> Status:
    """Whether a data set's files are there, for `fedcl doctor` and `fedcl data list`; opens none of them."""
    build, variant = _resolve(name)
    module = _module(build)
    if not hasattr(module, "sought"):
        return Status(True, "needs no files under the data root")
    missing = [path for path in module.sought(home(root), **variant) if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Status(False, f"no {missing[0]}{more}", f"fedcl data fetch {name}")
    return Status(True, f"in {home(root)}")


def _resolve(name: str) -> tuple[Callable[..., Any], dict[str, str]]:
    base, colon, variant = name.partition(":")
    builtin = colon != "" and base in plugins.names("datasets")
    try:
        build = plugins.load("datasets", base if builtin else name)
    except plugins.UnknownPlugin as error:
        raise FedclError(f"--dataset {name}: {error}") from error
    if builtin and "variant" not in plugins.options(build):
        raise FedclError(f"--dataset {name}: {base!r} has no variants; write --dataset {base}")
    return build, {"variant": variant} if builtin else {}


def _module(build: Callable[..., Any]) -> ModuleType:
    return sys.modules[build.__module__]


def _call(build: Callable[..., Any], root: Path, options: Mapping[str, Any]) -> Samples:
    from pydantic import ValidationError, validate_call

    try:
        samples: Samples = validate_call(build)(root, **options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        if first["type"].startswith("missing"):
            raise FedclError(f"data.options.{option}: is needed; add --set data.options.{option}=…") from error
        raise FedclError(f"data.options.{option}={first['input']!r}: {first['msg']}") from error
    return samples
