"""Plug-ins to start from: `fedcl new` writes one, and its test, where somebody works, outside the package.

A template is `<kind>.txt`, its test `<kind>_test.txt`; `$name` is the module, `$Class` the class.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from fedcl.errors import FedclError

# What is asked for → the flag that takes it; {} is the path.
KINDS = {
    "method": "--method {}",
    "dataset": "--dataset {} --partition site --clients 2 --tasks 2",
    "model": "--model {}",
    "aggregator": "--set federation.aggregator={}",
    "merger": "--set federation.merger={}",
    "growth": "--growth {}",
}
_FUNCTIONS = ("dataset", "model")  # are a function `build`, not a class
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Starter:
    """What a name comes to."""

    kind: str
    module: str  # my_method
    title: str  # MyMethod

    @property
    def flags(self) -> str:
        """What `fedcl simulate` takes it with."""
        return KINDS[self.kind].format(f"{self.module}:{'build' if self.kind in _FUNCTIONS else self.title}")


def plan(kind: str, name: str) -> Starter:
    """The module and class that a name stands for: my-method, my_method and MyMethod are the same.

    Raises:
        FedclError: there is no such kind, or the name cannot be that of a module.
    """
    if kind not in KINDS:
        raise FedclError(f"no kind {kind!r}; there are: {', '.join(KINDS)}")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise FedclError(f"{kind} {name!r}: a name is letters, digits and _, for example my_{kind}")
    if (_HERE.parent / "methods" / f"{module}.py").exists() and kind == "method":
        raise FedclError(f"method {name!r} is one of fedcl's own; take another name, for example my_{module}")
    return Starter(kind, module, "".join(part.capitalize() for part in module.split("_")))


def write(starter: Starter, folder: Path) -> tuple[Path, Path]:
    """Write the plug-in and its test; (file, test).

    Raises:
        FedclError: one of them is there already, an installed module has that name, or the folder cannot be written.
    """
    files = folder / f"{starter.module}.py", folder / f"test_{starter.module}.py"
    for file in files:
        if file.exists():
            raise FedclError(f"{file} is there already; take another name, or another folder with --output")
    if importlib.util.find_spec(starter.module):
        raise FedclError(f"{starter.module!r} is an installed module, which would be found first; take another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, template in zip(files, (f"{starter.kind}.txt", f"{starter.kind}_test.txt"), strict=True):
            text = Template((_HERE / template).read_text(encoding="utf-8"))
            file.write_text(text.substitute(name=starter.module, Class=starter.title), encoding="utf-8")
    except OSError as error:
        raise FedclError(f"{folder}: {error.strerror}") from error
    return files
