"""Records ↔ Flower's RecordDict. The only place that knows how a Job and an Update look on the wire.

Arrays travel as Flower's own `numpy.ndarray` payload, byte for byte what `numpy.save` writes, so every Flower reader
accepts them; a cached header and a read-only view save its two copies.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedcl.contracts import FedclError, Job, Params, Update

with warnings.catch_warnings():
    # torch says once in a process that a view of bytes is read-only. It is meant to be: say it here.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0\0\0\0", dtype=torch.float32)

_STYPE = "numpy.ndarray"
_KEEP = "keep"


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def _parse(header: bytes) -> tuple[torch.dtype, tuple[int, ...]]:
    buffer = io.BytesIO(header)
    np.lib.format.read_magic(buffer)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    if fortran or dtype.hasobject:
        raise FedclError("an array on the wire is in Fortran order or holds objects; send plain C-ordered numbers")
    return torch.from_numpy(np.empty(0, dtype)).dtype, shape


def encode_array(tensor: Tensor) -> Array:
    """A tensor as Flower's Array."""
    values = tensor.detach().contiguous().cpu().numpy()
    dtype = values.dtype.name
    return Array(dtype, values.shape, _STYPE, b"".join((_header(dtype, values.shape), values.data)))


def decode_array(array: Array) -> Tensor:
    """A read-only view of an Array's payload; whoever keeps it copies it.

    Raises:
        FedclError: the payload is no C-ordered array, or is shorter than its header says.
    """
    data = array.data
    if array.stype != _STYPE or data[:6] != b"\x93NUMPY" or data[6] != 1:
        raise FedclError(f"an array on the wire has serialisation {array.stype!r}, expected {_STYPE!r}")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _parse(data[:start])
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise FedclError(f"an array on the wire of shape {shape} has {len(data) - start} bytes")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)


def encode_arrays(params: Params) -> ArrayRecord:
    """Named tensors as an ArrayRecord, which may be shared between messages: its payload is immutable."""
    record = ArrayRecord()
    for name, tensor in params.items():
        record[name] = encode_array(tensor)
    return record


def decode_arrays(record: ArrayRecord) -> Params:
    """The reverse of `encode_arrays`."""
    return {name: decode_array(array) for name, array in record.items()}


def encode_job(job: Job, arrays: ArrayRecord | None = None, broadcast: ArrayRecord | None = None) -> RecordDict:
    """A Job as a message's content; `arrays` and `broadcast`, where given, are ready encodings of the Job's."""
    head: dict[str, Any] = {
        "phase": job.phase,
        "stage": job.stage,
        "round": job.round,
        "tasks": list(job.tasks),
        "lr": job.lr,
        "version": job.version,
        "past": list(job.past),
        "seen": list(job.seen),
        "flags": list(job.flags),
    }
    if job.held:
        head["held"] = list(job.held)
    if job.terms:
        head["terms"] = dict(job.terms)
    content = RecordDict({"job": ConfigRecord({"json": json.dumps(head)})})
    if job.keep:
        content[_KEEP] = ConfigRecord({"versions": list(job.keep)})
    content["arrays"] = encode_arrays(job.arrays) if arrays is None else arrays
    if job.sealed:
        content["sealed"] = encode_arrays(job.sealed)
    if job.broadcast:
        content["broadcast"] = encode_arrays(job.broadcast) if broadcast is None else broadcast
    return content


def decode_job(content: RecordDict) -> Job:
    """The reverse of `encode_job`."""
    head = json.loads(str(content.config_records["job"]["json"]))
    broadcast, keep = content.array_records.get("broadcast"), content.config_records.get(_KEEP)
    sealed = content.array_records.get("sealed")
    return Job(
        phase=head["phase"],
        stage=head["stage"],
        round=head["round"],
        tasks=tuple(head["tasks"]),
        arrays=decode_arrays(content.array_records["arrays"]),
        lr=head["lr"],
        version=head["version"],
        broadcast=decode_arrays(broadcast) if broadcast is not None else {},
        past=tuple(head["past"]),
        held=tuple(head.get("held", ())),
        seen=tuple(head["seen"]),
        flags=tuple(head["flags"]),
        terms=head.get("terms", {}),
        sealed=decode_arrays(sealed) if sealed is not None else {},
        keep=tuple(keep["versions"]) if keep else (),  # type: ignore[arg-type]
    )


def encode_update(update: Update) -> RecordDict:
    """An Update as a reply's content."""
    head = {"client": update.client, "weight": update.weight, "version": update.version}
    content = RecordDict({"update": ConfigRecord({"json": json.dumps(head)})})
    content["arrays"] = encode_arrays(update.arrays)
    content["metrics"] = MetricRecord(dict(update.metrics))
    if update.extras:
        content["extras"] = encode_arrays(update.extras)
    return content


def decode_update(content: RecordDict) -> Update:
    """The reverse of `encode_update`.

    Raises:
        KeyError, ValueError, FedclError: the reply is not what a fedcl client sends.
    """
    head = json.loads(str(content.config_records["update"]["json"]))
    extras = content.array_records.get("extras")
    return Update(
        client=int(head["client"]),
        arrays=decode_arrays(content.array_records["arrays"]),
        weight=float(head["weight"]),
        metrics={name: float(value) for name, value in content.metric_records["metrics"].items()},  # type: ignore[arg-type]
        extras=decode_arrays(extras) if extras is not None else {},
        version=str(head["version"]),
    )


def size(content: RecordDict) -> int:
    """Bytes of a message's content: payloads, and names and values beside them.

    Left out is which old memories a client must keep: it depends on when checkpoints were written, and a run's
    figures are a function of its config.
    """
    return sum(record.count_bytes() for name, record in content.items() if name != _KEEP)
