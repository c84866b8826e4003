"""Hospitals × tasks × splits."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import torch

from fedcl import datasets, federation, partition
from fedcl.config import Config
from fedcl.contracts import SPLITS, TEST, TRAIN, Batch, FedclError, Samples


def build(samples: Samples | None = None, **sections: Any) -> federation.Federation:
    return federation.build(Config.model_validate(sections), samples)


@pytest.fixture(scope="module")
def digits() -> federation.Federation:
    return build()


def table(x: list[list[float]], site: list[int], split: list[int], **fields: Any) -> Samples:
    """A small table with sites and a split of its own; classes take turns."""
    y = np.arange(len(x)) % 2
    names = tuple(f"site {k}" for k in range(max(site) + 1))
    return Samples(np.array(x, np.float32), y, ("a", "b"), np.array(site), names, np.array(split, np.int8), **fields)


SITES = {"partition": {"name": "site", "min_samples": 1}, "stream": {"tasks": 1}, "data": {"val": 0.0}}


def test_batches_hold_the_samples_that_rows_says(digits: federation.Federation) -> None:
    raw = datasets.load(Config().data)
    rows = list(digits.rows())
    assert [row[0] for row in rows] == list(range(1797))
    owner = np.array([row[1] for row in rows])
    split = np.array([row[2] for row in rows])
    assert [row[3] for row in rows] == [raw.classes[label] for label in raw.y]
    for hospital in range(5):
        for task in digits.tasks:
            for name, part in SPLITS.items():
                mine = (owner == hospital) & (split == name) & np.isin(raw.y, task.classes)
                batch = digits.batch(hospital, task.index, name)
                np.testing.assert_array_equal(batch.x.numpy(), raw.x[mine])  # in the data set's order, too
                np.testing.assert_array_equal(batch.y.numpy(), raw.y[mine])
                assert digits.count(hospital, task.index, name) == mine.sum()
                counted = digits.counts()[hospital, task.index, part]
                np.testing.assert_array_equal(counted, np.bincount(raw.y[mine], minlength=10))
    assert digits.counts().sum() == 1797


def test_batches_are_contiguous_float_views(digits: federation.Federation) -> None:
    batch = digits.batch(1, 2, "train")
    assert (batch.x.dtype, batch.y.dtype, batch.x.is_contiguous()) == (torch.float32, torch.int64, True)
    assert batch.x.untyped_storage().data_ptr() == digits.batch(3, 0, "test").x.untyped_storage().data_ptr()
    assert batch.x.untyped_storage().nbytes() == 1797 * 64 * 4  # one tensor for all, and nothing beside it
    assert len(digits._cache._batches) == 0


def test_description_is_json(digits: federation.Federation) -> None:
    said = json.loads(json.dumps(digits.describe()))
    assert said["tasks"][1] == {"id": "t1", "title": "2, 3", "classes": [2, 3]}
    assert said["hospitals"] == [f"hospital {k}" for k in range(5)]
    assert np.array(said["counts"]).shape == (5, 5, 3, 10)
    assert said["shape"] == [1, 8, 8]


def test_the_seed_decides(digits: federation.Federation) -> None:
    assert list(build().rows()) == list(digits.rows())
    assert list(build(seed=1).rows()) != list(digits.rows())


@pytest.mark.parametrize(
    ("kind", "members", "groups"),
    [
        ("federated", ((0,), (1,), (2,)), ((0, 1, 2),)),
        ("local", ((0,), (1,), (2,)), ((0,), (1,), (2,))),
        ("central", ((0, 1, 2),), ((0,),)),
        ("joint", ((0, 1, 2),), ((0,),)),
    ],
)
def test_who_holds_what_and_averages_with_whom(kind: str, members: Any, groups: Any) -> None:
    made = build(federation={"kind": kind, "clients": 3}, partition={"alpha": 100.0}, stream={"schedule": "shuffled"})
    assert (made.members, made.groups) == (members, groups)
    assert len(made.names) == 3
    plans = {
        "central": tuple(((task,),) for task in range(5)),
        "joint": (((0, 1, 2, 3, 4),),),
    }
    assert made.schedule == plans.get(kind, made.schedule)
    assert all(len(stage) == len(members) for stage in made.schedule)


@pytest.mark.parametrize("schedule", ["staggered", "table"])
def test_pooled_data_follow_the_same_schedule(schedule: str) -> None:
    stream = {"schedule": schedule, "table": [[0, 1, -1]] if schedule == "table" else []}
    made = build(federation={"kind": "central", "clients": 3}, stream=stream)
    assert made.schedule == tuple(((task,),) for task in range(5))


def test_pooled_data_are_the_hospitals_data_one_after_another() -> None:
    made = build(federation={"kind": "central"})
    pooled = made.train_data(0, 1)
    parts = [made.batch(hospital, 1, "train") for hospital in range(5)]
    torch.testing.assert_close(pooled.x, torch.cat([part.x for part in parts]))
    torch.testing.assert_close(pooled.y, torch.cat([part.y for part in parts]))
    assert made.train_data(0, 1) is pooled
    assert len(made.train_data(0, 1, "val").y) == sum(made.count(hospital, 1, "val") for hospital in range(5))


def test_one_clients_data_are_its_hospitals(digits: federation.Federation) -> None:
    assert torch.equal(digits.train_data(2, 1).x, digits.batch(2, 1, "train").x)


def test_a_client_without_training_samples_of_a_task_sits_it_out() -> None:
    samples = table([[0.0]] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [TRAIN] * 8)
    samples.y[:] = [0, 0, 1, 1, 0, 0, 0, 0]
    made = build(samples, federation={"clients": 2}, **{**SITES, "stream": {"tasks": 2}})
    assert made.schedule == (((0,), (0,)), ((1,), ()))
    assert made.count(1, 1, "train") == 0
    assert made.batch(1, 1, "test").x.shape == (0, 1)


def test_a_task_that_nobody_can_train_is_refused() -> None:
    samples = table([[0.0]] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [TRAIN, TEST] * 4)
    with pytest.raises(FedclError, match=r"task t1 \(b\) has no training samples"):
        build(samples, federation={"clients": 2}, **{**SITES, "stream": {"tasks": 2}})


def test_overlapping_tasks_share_samples() -> None:
    made = build(stream={"classes": [[0, 1], [1, 2], [0, 1, 2]]})
    for hospital in range(5):
        last = made.batch(hospital, 2, "train")
        for task in (0, 1):
            batch = made.batch(hospital, task, "train")
            assert set(batch.y.tolist()) <= set(made.tasks[task].classes)
            inside = torch.isin(last.y, torch.tensor(made.tasks[task].classes))
            assert torch.equal(batch.x, last.x[inside])
    assert len(list(made.rows())) == 1797  # also the samples of the classes that no task has


def test_domains_transform_the_same_samples() -> None:
    made = build(stream={"kind": "domain", "tasks": 3})
    plain, permuted = made.batch(0, 0, "train"), made.batch(0, 2, "train")
    transform = made.tasks[2].transform
    assert transform is not None
    assert torch.equal(permuted.x, transform(plain.x))
    assert torch.equal(permuted.y, plain.y)
    assert made.batch(0, 2, "train") is permuted


def test_the_cache_forgets_what_was_unused_for_longest() -> None:
    cache = federation.Cache(limit=250)
    made: list[str] = []

    def get(name: str) -> None:
        cache.get((name,), lambda: made.append(name) or Batch(torch.zeros(25), torch.zeros(0)))  # 100 bytes

    for name in "abacab":
        get(name)
    assert made == ["a", "b", "c", "b"]
    assert cache._bytes == 200


def test_a_task_per_site_is_known_to_one_hospital_only() -> None:
    samples = table([[float(k)] for k in range(12)], [0] * 6 + [1] * 6, [TRAIN, TRAIN, TEST] * 4)
    made = build(samples, **{**SITES, "stream": {"kind": "site"}}, federation={"clients": 2})
    assert made.schedule == (((0,), ()), ((), (1,)))
    assert made.names == ("site 0", "site 1")
    assert made.counts()[:, :, TRAIN].sum(-1).tolist() == [[4, 0], [0, 4]]


def test_a_thousand_hospitals_are_built_quickly() -> None:
    options = {"samples": 20000, "shape": [4], "classes": 10}
    sections = {
        "data": {"name": "synthetic", "options": options},
        "federation": {"clients": 1000},
        "partition": {"name": "iid", "min_samples": 5},
    }
    start = time.perf_counter()
    made = build(**sections)
    for hospital in range(1000):
        made.batch(hospital, 0, "train")
    assert time.perf_counter() - start < 3
    assert made.counts().sum() == 20000


@pytest.mark.data
def test_mnist_keeps_its_test_samples_and_shares_them_out_alike(real_data: Any) -> None:
    made = build(data={"name": "mnist", "root": str(real_data)}, federation={"clients": 10})
    counts = made.counts().sum(1)  # [hospitals, splits, classes]
    assert counts[:, TEST].sum() == 10000
    learned = counts[:, :2].sum(1)
    np.testing.assert_allclose(counts[:, TEST] / counts[:, TEST].sum(0), learned / learned.sum(0), atol=0.002)
    assert made.batch(0, 0, "train").x.max() <= 1


def test_noisy_hospitals_have_wrong_labels_to_train_on_only(digits: federation.Federation) -> None:
    noisy = list(build(partition={"noisy": 2, "noise": 0.5}).rows())
    wrong: dict[tuple[int, str], list[bool]] = {}
    for clean, row in zip(digits.rows(), noisy, strict=True):
        assert clean[:3] == row[:3]  # who has what for which purpose stays
        wrong.setdefault((row[1], row[2]), []).append(clean[3] != row[3])
    shares = {key: sum(flags) / len(flags) for key, flags in wrong.items()}
    assert all(shares[hospital, "test"] == 0 for hospital in range(5))
    named = partition.noisy(Config.model_validate({"partition": {"noisy": 2}}).partition, 5, seed=0)
    assert [round(shares[hospital, "train"], 1) for hospital in range(5)] == [0.5 * (k in named) for k in range(5)]


def test_no_more_noisy_hospitals_than_there_are() -> None:
    with pytest.raises(FedclError, match="noisy = 6: of 5 hospitals"):
        build(partition={"noisy": 6})
