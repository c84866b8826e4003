"""The rules of the house: the direction of imports, the size of files, and what belongs where."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fedcl

ROOT = Path(fedcl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PLUGINS = ("datasets", "models", "methods", "aggregators", "mergers", "compression", "growth", "privacy", "trackers")
# The reading order in the package's docstring: a module imports only modules above it.
ORDER = [
    name
    for line in (fedcl.__doc__ or "").splitlines()
    if re.match(r"    \S", line)
    for name in re.split(r"\s{2,}", line.strip())[0].split()
]


def _place(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Names of the top-level parts of fedcl that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fedcl":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedcl."):
            found.add(node.module.split(".")[1])
    return found - {"__version__", "Config", "simulate", "Result"}


def test_the_reading_order_names_every_module():
    there = {_place(path) for path in FILES} - {"__init__", "__main__"}
    assert there == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    place = _place(path)
    if place in ("__init__", "__main__"):
        return
    lower = {other for other in _imports(path) if ORDER.index(other) > ORDER.index(place)}
    # plugins looks at a loaded class's base, and only then
    assert lower - ({"contracts"} if place == "plugins" else set()) == set()


@pytest.mark.parametrize("kind", PLUGINS)
def test_plugins_do_not_import_each_other(kind):
    for path in (ROOT / kind).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if path.stem != "__init__" and module.startswith(f"fedcl.{kind}."):
                name = module.rpartition(".")[2]
                assert name.startswith("_") or name == "dynamic_net", f"{path.name} imports {module}"


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) <= 300, max(lengths, key=lengths.__getitem__)
    assert statistics.median(lengths.values()) <= 120


def test_functions_are_short():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}:{node.name} has {length} lines"


def test_private_names_of_flower_live_in_one_file():
    pattern = re.compile(r"^\s*(from|import) flwr\.(common|supercore|supernode|superlink|server\b|client\b)", re.M)
    users = {path.name for path in FILES if pattern.search(path.read_text())}
    assert users == {"compat.py"}


def test_no_branch_on_a_method_name():
    names = "|".join(path.stem for path in (ROOT / "methods").glob("[a-z]*.py"))
    pattern = re.compile(rf"[=!]= ?[\"']({names})[\"']")
    for path in FILES:
        assert not pattern.search(path.read_text()), path


def test_no_error_is_swallowed():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                broad = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
                assert not (silent and broad), f"{path.name}:{node.lineno}"


def test_importing_the_package_is_light():
    code = "import sys, fedcl; print([m for m in ('torch', 'flwr', 'torchvision', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
