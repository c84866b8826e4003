"""How long a newcomer takes: the README's own commands, one after another, in a virtual environment made for it.

    python benchmarks/first_steps.py                  # takes some minutes, most of them downloads
    python benchmarks/first_steps.py --keep DIR       # and leave everything there, to look at

Install, a first run, a folder of images, a method in one file, three methods compared with a table in LaTeX: each
command and each piece of code is read from README.md, so what is not there, or does not work, fails. Wall seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
IMAGES = """
import itertools, pathlib, numpy
from PIL import Image
draw = numpy.random.default_rng(0)
labels = ("effusion", "fracture", "healthy", "nodule")
for site, (place, label), k in itertools.product("abc", enumerate(labels), range(60)):
    folder = pathlib.Path("x-rays", site, label)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = draw.integers(0, 128, (40, 40))
    pixels[10 * place : 10 * place + 10] += 100
    Image.fromarray(pixels.astype("uint8")).save(folder / f"{k}.png")
"""


def command(start: str) -> list[str]:
    """The README's command that begins so, without its comment."""
    (found, *_) = re.findall(rf"^({re.escape(start)}(?:.*\\\n)*.*)$", README, re.M)
    return shlex.split(found.replace("\\\n", " "), comments=True)


def code(part: str) -> str:
    """The README's piece of Python with this in it."""
    return next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if part in block)


class Newcomer:
    """Somebody with a clean environment and an empty folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.total = home, 0.0
        venv.create(home / "venv", with_pip=True)
        programs = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FEDCL"))}
        self.environment = kept | {"PATH": f"{programs}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": str(home / "venv")}

    def does(self, what: str, words: list[str], folder: Path | None = None) -> str:
        """Run a command, print how long it took, and return what it said; SystemExit where it fails."""
        begin = time.perf_counter()
        done = subprocess.run(words, cwd=folder or self.home, env=self.environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        self.total += seconds
        print(f"{seconds:7.1f} s  {what:46} {shlex.join(words)[:90]}", flush=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout


def walk(home: Path) -> None:
    """All steps."""
    newcomer = Newcomer(home)
    newcomer.does("install", command("pip install ."), ROOT)
    newcomer.does("first run", command("fedcl simulate --clients 5"))
    newcomer.does("(make images)", ["python", "-c", IMAGES])
    newcomer.does("a folder of images", command("fedcl simulate --dataset folder"))
    (home / "stay.py").write_text(code("class Stay"), encoding="utf-8")
    newcomer.does("a method in one file", command("fedcl simulate --method stay:Stay"))
    said = newcomer.does("three methods, three seeds", command("fedcl compare --vary method="))
    tables = [path for path in home.rglob("*.tex") if r"\toprule" in path.read_text(encoding="utf-8")]
    if not tables:
        raise SystemExit(f"no table in LaTeX was written:\n{said}")
    print(f"{newcomer.total:7.1f} s  in all; the table: {tables[0].relative_to(home)}")


def main() -> None:
    """Do it in a folder that goes away, or stays."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path)
    keep = parser.parse_args().keep
    home = keep or Path(tempfile.mkdtemp(prefix="fedcl-"))
    home.mkdir(parents=True, exist_ok=True)
    try:
        walk(home.resolve())
    finally:
        if not keep:
            shutil.rmtree(home)


if __name__ == "__main__":
    main()
