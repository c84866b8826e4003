"""Shared by the data sets that lie in files: say what is missing, and read IDX files."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedcl.contracts import FedclError


def need(name: str, paths: Iterable[Path]) -> None:
    """Refuse to go on where a file is not there, and say how to get it.

    Raises:
        FedclError: one of the paths does not exist.
    """
    for path in paths:
        if not path.exists():
            raise FedclError(
                f"--dataset {name}: there is no {path}. `fedcl data fetch {name}` downloads it; if it "
                "lies elsewhere, name the folder with data.root or $FEDCL_DATA"
            )


def damaged(name: str, path: Path, why: object) -> FedclError:
    """The error for a file that cannot be read."""
    return FedclError(f"{path} is damaged: {why}. Delete it, and get it anew with `fedcl data fetch {name}`")


def packed(path: Path) -> Path:
    """The file itself, or its .gz twin where only that is there (the folder may be read-only)."""
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def idx(name: str, path: Path) -> np.ndarray:
    """Read an IDX file of bytes, plain or .gz: uint8 of the shape that its header gives.

    Raises:
        FedclError: the file is cut off, or no such file.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError(f"it starts with {raw[:3].hex(' ')}, an IDX file of bytes with 00 00 08")
        shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise damaged(name, path, error) from error
