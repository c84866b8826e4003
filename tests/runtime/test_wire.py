"""Records survive the wire, and what they look like on it is what any Flower reader expects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedcl.contracts import FedclError, Job, Update
from fedcl.runtime import wire

TENSORS = {
    "matrix": torch.randn(3, 5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "integers": torch.arange(6).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.float16),
    "double": torch.ones(2, dtype=torch.float64),
    "transposed": torch.randn(4, 3).T,
}


@pytest.mark.parametrize("name", TENSORS)
def test_payload_is_what_numpy_save_writes(name):
    tensor = TENSORS[name].contiguous()
    ours, flowers = wire.encode_array(TENSORS[name]), Array(tensor.numpy())
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (
        flowers.dtype, flowers.shape, flowers.stype, flowers.data,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.numpy(), tensor.numpy())
    assert torch.equal(wire.decode_array(flowers), tensor)


def test_job_and_update_survive():
    job = Job("train", 2, 7, ("t1",), TENSORS, 0.05, "1-4-train", {"f/x": torch.ones(2)}, (0, 3), ("begin",))
    back = wire.decode_job(wire.encode_job(job))
    update = Update(3, TENSORS, 120.0, {"loss": 0.5}, {"new/x": torch.ones(3)}, "2-7-train")
    again = wire.decode_update(wire.encode_update(update))
    for before, after in ((job, back), (update, again)):
        for field in dataclasses.fields(before):
            one, two = getattr(before, field.name), getattr(after, field.name)
            if isinstance(one, dict) and one and isinstance(next(iter(one.values())), torch.Tensor):
                assert one.keys() == two.keys()
                assert all(torch.equal(one[name], two[name]) for name in one)
            else:
                assert one == two, field.name


def test_bytes_are_those_of_the_payloads():
    content = wire.encode_job(Job("train", 0, 0, ("t0",), {"trunk.w": torch.zeros(100)}))
    assert 400 + 128 <= wire.size(content) <= 400 + 128 + 400  # array, its header, names and the job's values


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (4,), "numpy.ndarray", wire.encode_array(torch.zeros(4)).data[:-1]),
        Array("float32", (4,), "numpy.ndarray", b"not an array"),
        Array("float32", (4,), "pickle", wire.encode_array(torch.zeros(4)).data),
        Array(np.asfortranarray(np.zeros((2, 3)))),
    ],
    ids=["cut short", "garbage", "serialisation", "fortran order"],
)
def test_damaged_arrays_are_errors(array):
    with pytest.raises(FedclError):
        wire.decode_arrays(ArrayRecord({"x": array}))
