"""Arrays of a message in one piece, and back."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedcl.runtime import packing, wire


def _content():
    first = {"trunk.w": torch.arange(6.0).reshape(2, 3), "gates.t0.mask": torch.ones(4, dtype=torch.int64)}
    content = RecordDict({"job": ConfigRecord({"json": "{}"})})
    content["arrays"] = wire.encode_arrays(first)
    content["extras"] = wire.encode_arrays({"empty": torch.zeros(0, 3)})
    content["nothing"] = wire.encode_arrays({})
    return content


def test_packed_and_unpacked_is_the_same():
    content = _content()
    packed = packing.pack(content)
    assert [len(record) for record in packed.array_records.values()] == [1]
    back = packing.unpack(packed)
    assert dict(back.config_records["job"]) == {"json": "{}"}
    for name, record in content.array_records.items():
        assert {k: (a.dtype, a.shape, a.stype, a.data) for k, a in record.items()} == {
            k: (a.dtype, a.shape, a.stype, a.data) for k, a in back.array_records[name].items()
        }
    assert wire.size(back) == wire.size(content)


def test_what_is_not_packed_stays():
    content = _content()
    assert packing.unpack(content) is content


def test_an_index_that_does_not_fit_is_refused():
    packed = packing.pack(_content())
    index = str(packed.config_records["packed.index"]["json"])
    packed["packed.index"] = ConfigRecord({"json": index.replace("152", "151", 1)})
    with pytest.raises(ValueError, match="index says"):
        packing.unpack(packed)
