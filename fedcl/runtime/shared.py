"""Objects full of arrays, written once and mapped by every process that works on them: nothing is copied per worker.

The arrays lie in a file without a name (in memory, where the system has that), which is gone when the last process
that maps it ends, however it ends; or in a named file, for processes that this one does not start.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

_ALIGN = 64  # bytes; torch and numpy like rows of whole cache lines


class _Pickler(pickle.Pickler):
    """A tensor travels as its numpy array, which pickle can leave out of the stream."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if type(obj) is torch.Tensor else NotImplemented


def write(obj: Any, file: BinaryIO) -> None:
    """Write an object, its arrays after the rest."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    head = stream.getvalue()
    raws = [buffer.raw() for buffer in buffers]
    table = pickle.dumps([len(head), *(raw.nbytes for raw in raws)])
    file.write(len(table).to_bytes(8, "little"))
    parts: list[bytes | memoryview] = [table, head, *raws]
    for part in parts:
        file.write(part)
        file.write(b"\0" * (-file.tell() % _ALIGN))
    file.flush()


def read(descriptor: int) -> Any:
    """The object of a file that `write` filled; its arrays are views of one mapping, private to this process."""
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    length = int.from_bytes(view[:8], "little")
    head, *sizes = pickle.loads(view[8 : 8 + length])
    start = _aligned(8 + length)
    stream, start = view[start : start + head], _aligned(start + head)
    buffers = []
    for size in sizes:
        buffers.append(view[start : start + size])
        start = _aligned(start + size)
    return pickle.loads(stream, buffers=buffers)


def put(obj: Any) -> int:
    """An object in a file without a name: its descriptor, for `read` here and in child processes."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("fedcl"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    with file:
        write(obj, file)
        return os.dup(file.fileno())


def read_path(path: Path) -> Any:
    """The object of a named file."""
    with path.open("rb") as file:
        return read(file.fileno())


def _aligned(place: int) -> int:
    return place + -place % _ALIGN
