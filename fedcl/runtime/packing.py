"""All arrays of a message as one: on a SuperLink every array costs several requests on every leg of its way."""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_ALL = "packed"


def pack(content: RecordDict) -> RecordDict:
    """The same records, with the arrays of all array records one after another in one array."""
    packed, index, parts = RecordDict(), [], []
    for name, record in content.items():
        if not isinstance(record, ArrayRecord):
            packed[name] = record
            continue
        rows = []
        for key, array in record.items():
            rows.append([key, array.dtype, list(array.shape), array.stype, len(array.data)])
            parts.append(array.data)
        index.append([name, rows])
    blob = b"".join(parts)
    packed[_ALL] = ArrayRecord({_ALL: Array("uint8", (len(blob),), "bytes", blob)})
    packed[f"{_ALL}.index"] = ConfigRecord({"json": json.dumps(index)})
    return packed


def unpack(packed: RecordDict) -> RecordDict:
    """The reverse of `pack`; a message that is not packed stays as it is.

    Raises:
        ValueError: the index does not fit the array.
    """
    if _ALL not in packed.array_records:
        return packed
    blob, content, start = packed.array_records[_ALL][_ALL].data, RecordDict(), 0
    for name, record in packed.items():
        if name not in (_ALL, f"{_ALL}.index"):
            content[name] = record
    for name, rows in json.loads(str(packed.config_records[f"{_ALL}.index"]["json"])):
        record = ArrayRecord()
        for key, dtype, shape, stype, length in rows:
            record[key] = Array(dtype, tuple(shape), stype, blob[start : start + length])
            start += length
        content[name] = record
    if start != len(blob):
        raise ValueError(f"a packed message holds {len(blob)} bytes, and its index says {start}")
    return content
