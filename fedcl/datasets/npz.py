"""Your own arrays: an .npz file with x and y, and where you have them site, split and classes; option path.

x is [N, features], [N, height, width] or [N, channels, height, width]; y is class ids or names; site is a
number or a name for each sample; split is train, val or test for each, or 0, 1, 2; classes names the ids.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedcl.contracts import SPLITS, FedclError, Samples


def build(root: Path, *, path: Path, missing: bool = False) -> Samples:
    """Read the file.

    Args:
        root: where a relative path that is not there is sought next.
        path: the .npz file.
        missing: NaN in x means "not measured"; otherwise it is an error.

    Raises:
        FedclError: the file or an array is missing or damaged.
    """
    if not path.exists() and not (root / path).exists():
        raise FedclError(f"data.options.path: there is no {path.absolute()}, and no {root / path}")
    path = path if path.exists() else root / path
    arrays = _read(path)
    y, classes = _ids(arrays["y"])
    if "classes" in arrays:
        if y.dtype.kind not in "iu" or arrays["y"].dtype.kind not in "iub":
            raise FedclError(f"{path}: y holds names already; leave the array 'classes' out, or make y integers")
        y, classes = arrays["y"].astype(np.int64), tuple(str(name) for name in arrays["classes"])
    site, sites = _ids(arrays["site"]) if "site" in arrays else (None, ())
    x = arrays["x"]
    x = x if x.dtype == np.uint8 and x.ndim > 2 else x.astype(np.float32)
    return Samples(
        x=x[:, None] if x.ndim == 3 else x,
        y=y,
        classes=classes,
        site=site,
        sites=sites,
        split=_split(path, arrays["split"]) if "split" in arrays else None,
        missing=missing,
        tabular=x.ndim == 2,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, BadZipFile, TypeError) as error:
        raise FedclError(f"{path} is no .npz file that can be read: {error}; write it with numpy.savez") from error
    for name in ("x", "y"):
        if name not in arrays:
            raise FedclError(f"{path} has no array {name!r}, only {sorted(arrays)}; numpy.savez(path, x=…, y=…)")
    if arrays["x"].dtype.kind not in "fiub" or arrays["x"].ndim < 2:
        shape = list(arrays["x"].shape)
        raise FedclError(f"{path}: x is {arrays['x'].dtype} {shape}; it must be numbers [N, …], one row per sample")
    return arrays


def _ids(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers or names → ids counted from 0, and their names in order."""
    names, ids = np.unique(values.reshape(-1), return_inverse=True)
    return ids.reshape(-1).astype(np.int64), tuple(str(name) for name in names)


def _split(path: Path, values: np.ndarray) -> np.ndarray:
    names = {**SPLITS, **{str(code): code for code in SPLITS.values()}, "": -1, "-1": -1}
    unknown = sorted({str(value) for value in np.unique(values)} - set(names))
    if unknown:
        raise FedclError(
            f"{path}: split holds {unknown[0]!r}; it must be train, val or test (0, 1, 2; -1 is undecided)"
        )
    return np.array([names[str(value)] for value in values.reshape(-1)], np.int8)
