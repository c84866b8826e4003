"""What the site has beside these files: pages made of the README, the templates, the examples and the docstrings.

So that nothing is written twice, and what is shown is tested. Equations become MathML here: no script draws them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedcl"
# A page for each extension point: its title, and where its base class and records are described.
POINTS = {
    "method": ("A method", ["fedcl.contracts.Method", "fedcl.contracts.Context"]),
    "dataset": ("A data set", ["fedcl.samples.Samples"]),
    "model": ("A trunk", []),
    "aggregator": ("An aggregator", ["fedcl.contracts.Aggregator"]),
    "merger": ("A merger", ["fedcl.contracts.Aggregator"]),
    "growth": ("A rule of growth", ["fedcl.contracts.Moment", "fedcl.structure"]),
    "compression": ("A compression", ["fedcl.protocols.Compression"]),
    "privacy": ("A privacy mechanism", ["fedcl.mechanism.Mechanism", "fedcl.mechanism.Trainer"]),
}
SMALLEST = {"compression": "sparse.py", "privacy": "not_sending.py"}  # of fedcl's own, where there is no template
REFERENCE = {
    "python": ("From Python", ["fedcl.simulation.simulate", "fedcl.results.Result", "fedcl.export", "fedcl.config"]),
    "methods": ("Methods", ["methods"]),
    "rules": ("Rules of the server", ["aggregators", "mergers", "compression"]),
    "growth": ("Growth", ["growth"]),
    "privacy": ("Privacy", ["privacy", "fedcl.mechanism", "fedcl.accounting.ledger", "fedcl.masking", "attacks"]),
    "models": ("Models", ["models"]),
    "datasets": ("Data sets", ["datasets"]),
    "contracts": (
        "Records and base classes",
        ["fedcl.contracts", "fedcl.samples", "fedcl.structure", "fedcl.protocols", "fedcl.plugins"],
    ),
}
# Where a link of a file outside docs/ leads on the site.
_MOVED = {
    r"\((?:\.\./)?experiments/README\.md": "(experiments.md",
    r"\((?:\.\./)?README\.md": "(index.md",
    r"\((?:\.\./)?CHANGELOG\.md": "(changelog.md",
    r"\((?:\.\./)?CONTRIBUTING\.md": "(contributing.md",
    r"\((?:\.\./)?examples/(\w+)\.py": r"(examples/\1.md",
    r"\[([^]]*)\]\((?:\.\./)?(LICENSE|CITATION\.cff|examples/\w+\.ipynb)\)": r"\1",
    r"\(docs/": "(",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    for name, text in _pages():
        files.append(File.generated(config, name, content=text))
    for picture in sorted((ROOT / "experiments" / "results").glob("*.svg")):
        files.append(File.generated(config, f"results/{picture.name}", content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are on the site."""
    for old, new in _MOVED.items():
        markdown = re.sub(old, new, markdown)
    return markdown


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """TeX as MathML."""

    def drawn(found: re.Match[str]) -> str:
        tex = html.unescape(found[2]).strip()[2:-2]
        return convert(tex, display="block" if found[1] == "div" else "inline")

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', drawn, content, flags=re.S)


def _pages() -> Iterator[tuple[str, str]]:
    for name, file in {"index": "README", "changelog": "CHANGELOG", "contributing": "CONTRIBUTING"}.items():
        yield f"{name}.md", (ROOT / f"{file}.md").read_text(encoding="utf-8")
    yield "experiments.md", (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "examples").glob("*.py")):
        yield f"examples/{file.stem}.md", f"# {file.stem.capitalize()}\n\n{_fence(file.read_text(encoding='utf-8'))}"
    for kind, (title, described) in POINTS.items():
        yield f"extending/{kind}.md", _point(kind, title, described)
    for name, (title, parts) in REFERENCE.items():
        modules = [module for part in parts for module in _modules(part)]
        yield f"reference/{name}.md", f"# {title}\n\n" + "\n\n".join(f"::: {module}" for module in modules)


def _point(kind: str, title: str, described: list[str]) -> str:
    parts = [f"# {title}"]
    template = PACKAGE / "starters" / f"{kind}.txt"
    if template.exists():
        parts += [f"`fedcl new {kind} my_{kind}` writes this file, `my_{kind}.py`:", _starter(template, kind)]
        parts += ["and its test:", _starter(template.with_name(f"{kind}_test.txt"), kind)]
    else:
        parts += ["The smallest of fedcl's own:", _fence((PACKAGE / kind / SMALLEST[kind]).read_text(encoding="utf-8"))]
    links = ", ".join(f"[`{name}`][{name}]" for name in described)
    return "\n\n".join([*parts, *([f"What it fills and is handed: {links}."] if links else [])])


def _starter(template: Path, kind: str) -> str:
    text = template.read_text(encoding="utf-8").replace("$name", f"my_{kind}").replace("$Class", f"My{kind.title()}")
    return _fence(text.replace("$$", "$"))


def _fence(code: str) -> str:
    return f"```python\n{code}```"


def _modules(part: str) -> list[str]:
    """A dotted name as it is; of a folder of plug-ins, its files."""
    if part.startswith("fedcl"):
        return [part]
    names = sorted(file.stem for file in (PACKAGE / part).glob("*.py") if not file.stem.startswith("_"))
    return [f"fedcl.{part}.{name}" for name in names]
