"""UCI Heart Disease, 920 patients of four real hospitals: 13 features, many not measured; healthy or sick.

CC BY 4.0. Healthy is the diagnosis 0, sick is 1 to 4.

References:
    Janosi, Steinbrunn, Pfisterer, Detrano. Heart Disease. UCI Machine Learning Repository 1988.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedcl.contracts import FedclError, Samples
from fedcl.datasets import _files

SITES = ("cleveland", "hungarian", "switzerland", "va")
FEATURES = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal"),
)
_MD5 = {
    "cleveland": "2d91a8ff69cfd9616aa47b59d6f843db",
    "hungarian": "22e96bee155b5973568101c93b3705f6",
    "switzerland": "9a87f7577310b3917730d06ba9349e20",
    "va": "4249d03ca7711e84f4444768c9426170",
}
_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"


def build(root: Path) -> Samples:
    """X [920, 13] float32, NaN where not measured; site is the hospital; from root/heart.

    `?` is not measured. So are a blood pressure and a cholesterol of 0, which no living patient has: all 123
    patients of Switzerland and 49 of VA have that cholesterol.

    Raises:
        FedclError: a file is missing or damaged.
    """
    _files.need("heart", sought(root))
    tables = [_read(path) for path in sought(root)]
    table = np.concatenate(tables)
    x, y = table[:, :-1], (table[:, -1] > 0).astype(np.int64)
    for feature in ("trestbps", "chol"):
        column = x[:, FEATURES.index(feature)]
        column[column == 0] = np.nan
    site = np.repeat(np.arange(len(SITES)), [len(rows) for rows in tables])
    return Samples(x, y, ("healthy", "sick"), site=site, sites=SITES, missing=True, tabular=True)


def sought(root: Path) -> list[Path]:
    """The files that it reads."""
    return [root / "heart" / f"processed.{site}.data" for site in SITES]


def fetch(root: Path) -> None:
    """Download them from UCI, 60 kB, and compare their md5."""
    from urllib.request import urlopen

    (root / "heart").mkdir(parents=True, exist_ok=True)
    for site, path in zip(SITES, sought(root), strict=True):
        with urlopen(f"{_URL}/{path.name}", timeout=60) as answer:
            content: bytes = answer.read()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != _MD5[site]:
            raise FedclError(f"{_URL}/{path.name} is not the published file (md5); nothing was written to {path}")
        path.write_bytes(content)


def _read(path: Path) -> np.ndarray:
    """A hospital's table: [patients, 14] float32, NaN for `?`."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split(), start=1):
        try:
            row = [np.nan if cell == "?" else float(cell) for cell in line.split(",")]
        except ValueError as error:
            raise _files.damaged("heart", path, f"line {number}: {error}") from error
        if len(row) != len(FEATURES) + 1 or np.isnan(row[-1]):
            raise _files.damaged("heart", path, f"line {number} is not 13 features and a diagnosis")
        rows.append(row)
    return np.array(rows, np.float32).reshape(-1, len(FEATURES) + 1)
