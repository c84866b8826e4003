"""Tasks and their order."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from fedcl import tasks
from fedcl.contracts import FedclError, Samples
from fedcl.sections import Stream


def sample_set(classes: int = 10, **fields: Any) -> Samples:
    y = np.arange(classes * 4) % classes
    return Samples(np.zeros((len(y), 1, 4, 4), np.float32), y, tuple("abcdefghijklmnop"[:classes]), **fields)


def build(samples: Samples, seed: int = 0, **fields: Any) -> tuple[Any, ...]:
    return tasks.build(samples, Stream.model_validate(fields), seed, samples.x.shape[1:])


def plan(count: int, clients: int, seed: int = 0, **fields: Any) -> tasks.Schedule:
    return tasks.schedule(Stream.model_validate(fields), count, clients, seed)


def test_classes_are_dealt_evenly_and_the_rest_to_the_first() -> None:
    assert [task.classes for task in build(sample_set(), tasks=3)] == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    default = build(sample_set())
    assert [(task.id, task.index, task.title) for task in default][:2] == [
        ("t0", 0, "a, b"),
        ("t1", 1, "c, d"),
    ]


def test_random_order_depends_on_the_seed_alone() -> None:
    first, again, other = (build(sample_set(), seed, order="random") for seed in (0, 0, 1))
    assert [task.classes for task in first] == [task.classes for task in again]
    assert [task.classes for task in first] != [task.classes for task in other]
    assert sorted(sum((task.classes for task in first), ())) == list(range(10))


def test_class_sets_of_ones_own_may_overlap() -> None:
    samples = sample_set()
    first, second = build(samples, classes=[[0, 5], [5, 9, 1]])
    assert (first.classes, second.classes) == ((0, 5), (5, 9, 1))
    both = tasks.members(first, samples) & tasks.members(second, samples)
    assert set(samples.y[both]) == {5}


@pytest.mark.parametrize("classes", [[[0, 1], []], [[0, 0]], [[0, 10]], [[-1, 2]]])
def test_impossible_class_sets_are_refused(classes: list[list[int]]) -> None:
    with pytest.raises(FedclError, match=r"stream\.classes\[\d\] = .*0…9"):
        build(sample_set(), classes=classes)


def test_more_tasks_than_classes_are_refused() -> None:
    with pytest.raises(FedclError, match=r"--tasks 11: .*10 classes.*--tasks 10 or fewer"):
        build(sample_set(), tasks=11)


def test_permuted_domains() -> None:
    x = torch.arange(32.0).reshape(2, 1, 4, 4)
    first, second, third = build(sample_set(), kind="domain", tasks=3)
    assert first.transform is None
    assert first.classes == tuple(range(10))
    for task in (second, third):
        assert sorted(task.transform(x)[0].flatten().tolist()) == list(range(16))
        np.testing.assert_array_equal(task.transform(x)[1] - 16, task.transform(x)[0])  # the same for each sample
    assert not torch.equal(second.transform(x), third.transform(x))
    assert torch.equal(x, torch.arange(32.0).reshape(2, 1, 4, 4))
    assert torch.equal(build(sample_set(), kind="domain", tasks=2)[1].transform(x), second.transform(x))
    assert not torch.equal(build(sample_set(), 1, kind="domain", tasks=2)[1].transform(x), second.transform(x))
    assert build(sample_set(), kind="domain", tasks=1, permute_first=True)[0].transform is not None
    assert torch.equal(pickle.loads(pickle.dumps(second)).transform(x), second.transform(x))


def test_rotated_domains() -> None:
    x = torch.rand(2, 1, 4, 4)
    turned = build(sample_set(), kind="domain", domain="rotated", tasks=5)
    assert [task.title for task in turned] == [f"rotated {angle}°" for angle in (0, 45, 90, 135, 180)]
    assert turned[0].transform is None
    torch.testing.assert_close(turned[4].transform(x), x.flip(2, 3))
    torch.testing.assert_close(turned[2].transform(x), torch.rot90(x, 1, (2, 3)))
    full = build(sample_set(), kind="domain", domain="rotated", tasks=4, max_angle=360)
    assert [task.title for task in full] == [f"rotated {angle}°" for angle in (0, 90, 180, 270)]


def test_only_images_can_be_turned() -> None:
    with pytest.raises(FedclError, match=r"shape \[13\]"):
        tasks.build(sample_set(), Stream(kind="domain", domain="rotated"), 0, (13,))


def test_a_sequence_has_a_task_per_data_set() -> None:
    origin = (np.arange(40) % 10 >= 6).astype(np.int64)
    first, second = build(sample_set(origin=origin, origins=("mnist", "kmnist")), kind="sequence")
    assert (first.title, first.classes, second.classes) == ("mnist", (0, 1, 2, 3, 4, 5), (6, 7, 8, 9))
    with pytest.raises(FedclError, match=r"--dataset mnist\+fashion_mnist"):
        build(sample_set(), kind="sequence")


def test_a_stream_of_sites_has_a_task_per_site() -> None:
    site = np.repeat([0, 1], 20)
    samples = sample_set(site=site, sites=("north", "south"))
    first, second = build(samples, kind="site")
    assert (first.title, first.classes) == ("north", tuple(range(10)))
    np.testing.assert_array_equal(tasks.members(second, samples), site == 1)
    with pytest.raises(FedclError, match="--dataset heart"):
        build(sample_set(), kind="site")


def test_same_schedule() -> None:
    assert plan(3, 2) == (((0,), (0,)), ((1,), (1,)), ((2,), (2,)))


def test_shuffled_schedules_permute_a_share_of_the_places() -> None:
    assert plan(5, 4, schedule="shuffled", disorder=0) == plan(5, 4)
    shuffled = plan(10, 200, schedule="shuffled", disorder=0.4)
    orders = np.array(shuffled)[:, :, 0].T  # [client, stage]
    assert (np.sort(orders) == np.arange(10)).all()
    moved = (orders != np.arange(10)).sum(1)
    assert moved.max() == 4
    assert abs(moved.mean() - 3) < 0.3  # of 4 places permuted at random, one stays on average
    assert len({tuple(order) for order in orders}) > 100
    assert plan(10, 3, schedule="shuffled") == tuple(row[:3] for row in plan(10, 9, schedule="shuffled"))
    assert plan(10, 3, 1, schedule="shuffled") != plan(10, 3, schedule="shuffled")


def test_staggered_hospitals_join_late_and_go_through_all_tasks() -> None:
    assert plan(2, 3, schedule="staggered") == (
        ((0,), (), ()),
        ((1,), (0,), ()),
        ((), (1,), (0,)),
        ((), (), (1,)),
    )
    assert len(plan(5, 3, schedule="staggered", delay=2)) == 9
    with pytest.raises(FedclError, match=r"stream\.delay = 3"):
        plan(2, 3, schedule="staggered", delay=3)


def test_table_of_ones_own() -> None:
    assert plan(3, 2, schedule="table", table=[[0, -1], [2, 1]]) == (((0,), ()), ((2,), (1,)))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([], "is empty"),
        ([[0, 1], [0]], r"table\[1\] has 1 entries, but there are 2 hospitals"),
        ([[0, 3]], r"table\[0\] names task 3, but there are 3 tasks"),
        ([[0, -2]], "names task -2"),
        ([[0, 1], [-1, -1]], r"table\[1\] gives nobody a task"),
    ],
)
def test_impossible_tables_are_refused(table: list[list[int]], says: str) -> None:
    with pytest.raises(FedclError, match=says):
        plan(3, 2, schedule="table", table=table)
