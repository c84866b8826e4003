"""Hospitals with data of their own: what the server makes of names and counts, and that nothing else differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedcl import datasets, holdings
from fedcl import federation as federations
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.holdings import Holding


def _config(**changes):
    base = {"data": {"name": "npz", "own": True, "options": {"path": "data.npz"}}, "federation": {"clients": 3}}
    base |= {"partition": {"min_samples": 1}}
    return Config.model_validate({**base, **changes})


@pytest.fixture
def folders(tmp_path):
    """The digits of three hospitals, each in its own folder, split as the simulated federation does."""
    config = Config.model_validate({"federation": {"clients": 3}})
    samples = datasets.load(config.data)
    rows = list(federations.build(config, samples).rows())
    for hospital in range(3):
        mine = [row for row in rows if row[1] == hospital]
        index, split = np.array([row[0] for row in mine]), np.array([row[2] for row in mine])
        (tmp_path / str(hospital)).mkdir()
        classes = np.array(samples.classes)
        np.savez(
            tmp_path / f"{hospital}/data.npz", x=samples.x[index], y=samples.y[index], classes=classes, split=split
        )
    return [str(tmp_path / str(hospital)) for hospital in range(3)]


@pytest.mark.parametrize("stream", ["class", "domain", "site"])
def test_hospitals_of_their_own_hold_what_simulated_ones_do(folders, stream):
    config = _config(stream={"kind": stream, "tasks": 2})
    said = [holdings.describe(config, folder, k, f"hospital {k}") for k, folder in enumerate(folders)]
    head = holdings.assemble(config, [Holding.unpack(each.pack()) for each in reversed(said)])
    assert len(head._x) == 0
    if stream != "site":
        simulated = federations.build(
            Config.model_validate({"federation": {"clients": 3}, "stream": {"kind": stream, "tasks": 2}})
        )
        assert np.array_equal(head.counts(), simulated.counts())
        assert head.schedule == simulated.schedule
    described = json.loads(json.dumps(holdings.told(head)))
    assert "counts" not in json.dumps(described)  # how many samples others have is not for a hospital to know
    for client, folder in enumerate(folders):
        own = holdings.build(config, folder, client, described)
        assert own.schedule == head.schedule
        assert np.array_equal(own.counts()[client], head.counts()[client])
        assert own.counts().sum() == own.counts()[client].sum()
        for task in range(len(head.tasks)):
            for split in ("train", "val", "test"):
                batch = own.batch(client, task, split)
                assert len(batch.y) == head.count(client, task, split)
                if stream != "site":
                    theirs = simulated.batch(client, task, split)
                    assert torch.equal(batch.x, theirs.x)
                    assert torch.equal(batch.y, theirs.y)


def _write(folder, **arrays):
    folder.mkdir()
    np.savez(folder / "data.npz", **arrays)
    return str(folder)


def test_class_ids_are_agreed_on_by_name(tmp_path):
    x = np.arange(48, dtype=np.float32).reshape(12, 4)
    one = _write(tmp_path / "one", x=x, y=np.array(["10", "2"] * 6))
    two = _write(tmp_path / "two", x=x, y=np.array(["9", "2"] * 6))
    config = _config(
        federation={"clients": 2}, stream={"tasks": 3}, data=_config().data.model_dump() | {"normalize": "none"}
    )
    head = holdings.assemble(config, [holdings.describe(config, f, k, f"h{k}") for k, f in enumerate((one, two))])
    assert head.classes == ("2", "9", "10")
    assert [[bool(head.count(h, t, "train")) for t in range(3)] for h in range(2)] == [
        [True, False, True],
        [True, True, False],
    ]
    assert head.schedule == (((0,), (0,)), ((), (1,)), ((2,), ()))
    own = holdings.build(config, two, 1, head.describe())
    assert set(own.batch(1, 1, "train").y.tolist()) == {1}


def test_missing_values_are_flagged_alike_everywhere(tmp_path):
    """The first hospital never misses the third column, the second does; both get its flag."""
    x = np.ones((10, 3), np.float32)
    gap = x.copy()
    gap[::2, 2] = np.nan
    y = np.array([0, 1] * 5)
    folders = [_write(tmp_path / "one", x=x, y=y), _write(tmp_path / "two", x=gap, y=y)]
    data = {
        "name": "npz",
        "own": True,
        "options": {"path": "data.npz", "missing": True},
        "normalize": "client",
        "val": 0,
    }
    config = _config(data=data, federation={"clients": 2}, stream={"tasks": 1})
    head = holdings.assemble(config, [holdings.describe(config, f, k, f"h{k}") for k, f in enumerate(folders)])
    assert (head.shape, head.flagged) == ((4,), (2,))
    for client, folder in enumerate(folders):
        batch = holdings.build(config, folder, client, head.describe()).batch(client, 0, "train")
        assert batch.x.shape[1:] == (4,)
        assert bool(batch.x[:, 3].any()) == (client == 1)


def test_what_cannot_be_had_is_said(tmp_path):
    x, y = np.ones((10, 3), np.float32), np.array([0, 1] * 5)
    folder = _write(tmp_path / "one", x=x, y=y)
    with pytest.raises(FedclError, match=r"data\.normalize.*'client'"):
        holdings.describe(_config(), folder, 0, "one")
    with pytest.raises(FedclError, match=r"no folder .*nowhere"):
        holdings.describe(_config(), str(tmp_path / "nowhere"), 0, "one")
    with pytest.raises(FedclError, match="names no `data` folder"):
        holdings.describe(_config(), "", 0, "one")
    config = _config(federation={"clients": 2})
    two = [Holding(k, f"h{k}", (3 + k,), ("0", "1"), ((5, 5), (0, 0), (2, 2)), ()) for k in range(2)]
    with pytest.raises(FedclError, match=r"different shapes: h0 \[3\], h1 \[4\]"):
        holdings.assemble(config, two)
