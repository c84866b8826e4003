"""Extension points: a file in a folder is an option, and its name is the option's name.

A plug-in is a callable whose keyword parameters are its options: a frozen dataclass (methods, aggregators,
mergers, compressions, growth rules, privacy mechanisms), a class that is told of the run first (trackers), or a
function called `build` (data sets, trunks). A `-` in an option is `_` in a file, `++` is `pp`. A name with a dot is
somebody's own: `my_package.my_method` or `my_module:MyMethod`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedcl.errors import FedclError

KINDS = ("methods", "models", "datasets", "aggregators", "mergers", "compression", "growth", "privacy", "trackers")
_TABLES = {"privacy": "mechanisms"}  # of the config, where options are not under the name of their kind
_HELPERS = {"__init__", "dynamic_net"}
_ROOT = Path(__file__).parent


class UnknownPlugin(ValueError):
    """No plug-in of that name; the message lists what there is and the nearest name."""


def names(kind: str) -> list[str]:
    """The options of a kind, found by looking at the folder, importing nothing."""
    files = (_ROOT / kind).glob("*.py")
    return sorted(
        file.stem.replace("_", "-") if kind not in ("datasets", "models") else file.stem
        for file in files
        if file.stem not in _HELPERS and not file.stem.startswith("_")
    )


def describe(kind: str) -> dict[str, str]:
    """Option → the first line of its docstring, read from the source without importing it."""
    return {name: docstring(kind, name).partition("\n")[0] for name in names(kind)}


def docstring(kind: str, name: str) -> str:
    """What an option's file says of itself, read without importing it."""
    tree = ast.parse((_ROOT / kind / f"{_file(name)}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def check(kind: str, name: str) -> None:
    """Raise UnknownPlugin where `name` is neither a file of the kind nor a dotted path."""
    known = names(kind)
    if "." in name or ":" in name or _file(name) in {_file(option) for option in known}:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownPlugin(
        f"no {kind} plug-in {name!r}; {hint}there are: {', '.join(known) or 'none yet'}, or your own as module:Class"
    )


@cache
def load(kind: str, name: str) -> Callable[..., Any]:
    """The callable behind a name.

    Raises:
        UnknownPlugin: there is no such file or module, or it defines nothing of the kind.
    """
    check(kind, name)
    builtin = "." not in name and ":" not in name
    path, _, attribute = (f"fedcl.{kind}.{_file(name)}" if builtin else name).partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not path.startswith(error.name):
            raise
        raise UnknownPlugin(
            f"no module {path!r} for {kind} {name!r}; is it in the current folder, or on PYTHONPATH?"
        ) from error
    if attribute:
        if not hasattr(module, attribute):
            raise UnknownPlugin(f"{module.__file__} has no {attribute!r}, which {kind} {name!r} names")
        return getattr(module, attribute)  # type: ignore[no-any-return]
    if hasattr(module, "build"):
        return module.build  # type: ignore[no-any-return]
    from fedcl import contracts, mechanism

    bases = (contracts.Method, contracts.Aggregator, contracts.Compression, contracts.Tracker, mechanism.Mechanism)
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, bases) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise UnknownPlugin(f"{path} must define one class of {kind} (or `build`), it defines {len(own)}")
    return own[0]


def make(kind: str, name: str, given: Mapping[str, Any]) -> Any:
    """The plug-in with these options.

    Raises:
        UnknownPlugin: there is no such plug-in.
        FedclError: it has no such option, or no such value of one.
    """
    plugin, table = load(kind, name), section(kind)
    known = options(plugin)
    if unknown := sorted(set(given) - set(known)):
        raise FedclError(f"{table}.{name}.{unknown[0]}: no such option; {name} has {', '.join(known) or 'none'}")
    try:
        return plugin(**given)
    except (TypeError, ValueError) as error:
        raise FedclError(f"{table}.{name}: {error}") from error


def merger(aggregator: str, name: str) -> tuple[str, str]:
    """(kind, name) of the rule for tasks' modules: `auto` is the aggregator if that is not linear, else the mean."""
    if name == "auto":
        name = "weighted" if getattr(load("aggregators", aggregator), "linear", True) else aggregator
    return "aggregators" if name in names("aggregators") else "mergers", name


def stays(aggregator: str, name: str) -> bool:
    """Whether by such a rule a task's module stays at its hospital."""
    return bool(getattr(load(*merger(aggregator, name)), "stays", False))


def section(kind: str) -> str:
    """The table of the config that has the options of a kind, by name."""
    return _TABLES.get(kind, kind)


def options(plugin: Callable[..., Any], skip: int = 0) -> Mapping[str, inspect.Parameter]:
    """A plug-in's options: its parameters by name, without the first `skip` that the caller fills."""
    return dict(list(inspect.signature(plugin).parameters.items())[skip:])


def split(names: str) -> list[str]:
    """The parts of a combination: "ewc+der++" → ["ewc", "der++"]."""
    return re.split(r"(?<!\+)\+(?!\+)", names)


def _file(name: str) -> str:
    return name.replace("++", "pp").replace("-", "_")
