"""Who holds what: rules by hand, against flwr-datasets, and as laws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from fedcl import partition
from fedcl.contracts import TEST, TRAIN, UNASSIGNED, VAL, FedclError, Samples
from fedcl.sections import Data, Partition

RULES = ["iid", "dirichlet", "shards", "quantity"]


def sample_set(sizes: list[int], **fields: Any) -> Samples:
    """Classes of these sizes, in random order."""
    y = np.random.default_rng(5).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Samples(np.zeros((len(y), 2), np.float32), y, tuple(str(k) for k in range(len(sizes))), **fields)


def rule(name: str, **fields: Any) -> Partition:
    return Partition.model_validate({"name": name, **fields})


@pytest.fixture(scope="module")
def flower() -> Iterator[Any]:
    """flwr-datasets' partitioners as functions: labels → hospital of each."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        warnings.simplefilter("ignore")
        partitioners = pytest.importorskip("flwr_datasets.partitioner")
        from datasets import Dataset

        def owners(kind: str, labels: np.ndarray, hospitals: int, **options: Any) -> np.ndarray:
            rows = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
            theirs = getattr(partitioners, kind)(
                num_partitions=hospitals, partition_by="label", shuffle=False, **options
            )
            theirs.dataset = rows
            owner = np.full(len(labels), -1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for hospital in range(hospitals):
                    owner[np.array(theirs.load_partition(hospital)["row"], int)] = hospital
            return owner

        yield owners


@pytest.mark.parametrize(("alpha", "hospitals"), [(0.3, 5), (1.0, 3), (50.0, 10)])
def test_dirichlet_is_flowers_sample_by_sample(flower: Any, alpha: float, hospitals: int) -> None:
    labels = sample_set([400, 300, 211, 89]).y
    for seed in range(3):
        theirs = flower("DirichletPartitioner", labels, hospitals, alpha=alpha, min_partition_size=0, seed=seed)
        ours = partition.dirichlet(labels, hospitals, alpha, np.random.default_rng(seed))
        np.testing.assert_array_equal(ours, theirs)


def test_shards_are_flowers_sample_by_sample(flower: Any) -> None:
    labels = sample_set([400, 300, 211, 89]).y
    for seed, (hospitals, each) in enumerate([(5, 2), (10, 4), (4, 5)]):
        theirs = flower("ShardPartitioner", labels, hospitals, num_shards_per_partition=each, seed=seed)
        ours = partition.shards(labels, hospitals, each, np.random.default_rng(seed))
        np.testing.assert_array_equal(ours, theirs)


def test_uneven_shards_mix_classes_as_flowers_do(flower: Any) -> None:
    """997 samples: flwr drops the last 7; then classes per hospital are compared over many draws."""
    labels = np.repeat(np.arange(10), 100)[:997]

    def classes_each(owner: np.ndarray) -> list[int]:
        return [len(np.unique(labels[owner == hospital])) for hospital in range(15)]

    ours = [classes_each(partition.shards(labels, 15, 2, np.random.default_rng(seed))) for seed in range(40)]
    theirs = [
        classes_each(flower("ShardPartitioner", labels, 15, num_shards_per_partition=2, seed=seed + 100))
        for seed in range(10)
    ]
    assert stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > 1e-3
    wrong = [classes_each(partition.shards(labels, 15, 3, np.random.default_rng(seed))) for seed in range(40)]
    assert stats.ks_2samp(np.ravel(wrong), np.ravel(theirs)).pvalue < 1e-6


@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_shares_have_the_dirichlets_marginal(name: str) -> None:
    """A hospital's share of a class (of all) is Beta(α, (H−1) α); the test must see a wrong α."""
    samples = sample_set([4000, 4000])
    column = samples.y == 0 if name == "dirichlet" else np.ones(8000, bool)
    shares = [(partition.assign(samples, rule(name, alpha=0.7), 4, seed)[column] == 0).mean() for seed in range(300)]
    assert stats.kstest(shares, stats.beta(0.7, 3 * 0.7).cdf).pvalue > 1e-3
    assert stats.kstest(shares, stats.beta(1.4, 3 * 1.4).cdf).pvalue < 1e-3


def test_small_alpha_is_more_skewed_than_large_alpha() -> None:
    samples = sample_set([500] * 4)
    largest = [
        np.bincount(partition.assign(samples, rule("dirichlet", alpha=alpha), 5, 0)[samples.y == 0]).max()
        for alpha in (1000.0, 0.01)
    ]
    assert largest[0] < 120 < 480 < largest[1]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("published", [False, True])
def test_every_sample_has_one_hospital_and_one_split(name: str, published: bool) -> None:
    samples = sample_set([300, 200, 100])
    if published:
        split = np.repeat(np.array([TRAIN, TEST], np.int8), [400, 200])
        samples = sample_set([300, 200, 100], split=split)
    owner = partition.assign(samples, rule(name), 4, 3)
    parts = partition.split(samples, owner, Data(), 3)
    assert owner.shape == parts.shape == (600,)
    assert set(owner) <= {0, 1, 2, 3}
    assert set(parts) == {TRAIN, VAL, TEST}
    np.testing.assert_array_equal(owner, partition.assign(samples, rule(name), 4, 3))
    np.testing.assert_array_equal(parts, partition.split(samples, owner, Data(), 3))
    assert (owner != partition.assign(samples, rule(name), 4, 4)).any()
    assert (parts != partition.split(samples, owner, Data(), 4)).any()
    if published:
        assert ((parts == TEST) == (np.arange(600) >= 400)).all()


def test_iid_sizes_differ_by_one_at_most() -> None:
    owner = partition.assign(sample_set([51, 52]), rule("iid"), 4, 0)
    assert sorted(np.bincount(owner)) == [25, 26, 26, 26]


def test_shards_leave_a_hospital_few_classes() -> None:
    samples = sample_set([100] * 10)
    owner = partition.assign(samples, rule("shards", shards=2), 5, 0)
    assert [len(np.unique(samples.y[owner == hospital])) for hospital in range(5)] == [2] * 5
    assert np.bincount(owner).tolist() == [200] * 5


def test_published_test_samples_follow_the_training_samples() -> None:
    labels = np.repeat([0, 1, 2], [10, 3, 4])
    owner = partition.follow(labels, np.array([[30, 0, 70], [1, 1, 1], [0, 0, 0]]))
    assert owner.tolist() == [0] * 3 + [2] * 7 + [0, 1, 2] + [0, 1, 1, 2]
    split = np.repeat(np.array([TRAIN, TEST], np.int8), [4000, 2000])
    samples = sample_set([3000, 3000], split=split)
    owner = partition.assign(samples, rule("dirichlet", alpha=0.5), 4, 1)
    for label in (0, 1):
        shares = [
            np.bincount(owner[(samples.y == label) & (split == part)], minlength=4) / 1000 for part in (TRAIN, TEST)
        ]
        np.testing.assert_allclose(shares[0] / shares[0].sum(), shares[1] / shares[1].sum(), atol=1e-3)


def test_split_is_stratified_by_class_and_keeps_a_training_sample() -> None:
    """100 → 30 test, 15 % of 70 = 10.5 → 11 validation; 3 → 1, 0; 2 → 1, 0; 1 → 0, 0."""
    samples = sample_set([100, 3, 2, 1])
    parts = partition.split(samples, np.zeros(106, np.int64), Data(test=0.3, val=0.15), 0)
    table = [np.bincount(parts[samples.y == label], minlength=3).tolist() for label in range(4)]
    assert table == [[59, 11, 30], [2, 0, 1], [1, 0, 1], [1, 0, 0]]
    most = partition.split(samples, np.zeros(106, np.int64), Data(test=0.99, val=0.99), 0)
    assert (np.bincount(samples.y[most == TRAIN], minlength=4) >= 1).all()
    none = partition.split(samples, np.zeros(106, np.int64), Data(test=0, val=0), 0)
    assert set(none) == {TRAIN}


def test_a_published_validation_split_stands_and_nothing_is_added() -> None:
    split = np.repeat(np.array([TRAIN, VAL, TEST], np.int8), [60, 20, 20])
    samples = sample_set([50, 50], split=split)
    np.testing.assert_array_equal(partition.split(samples, np.zeros(100, np.int64), Data(), 0), split)


def test_data_sets_of_a_sequence_are_split_each_in_its_way() -> None:
    split = np.repeat(np.array([TRAIN, TEST, UNASSIGNED], np.int8), [80, 20, 100])
    samples = sample_set([200], split=split, origin=np.repeat([0, 1], 100))
    parts = partition.split(samples, np.zeros(200, np.int64), Data(test=0.3, val=0.1), 0)
    assert np.bincount(parts[:100], minlength=3).tolist() == [72, 8, 20]
    assert np.bincount(parts[100:], minlength=3).tolist() == [63, 7, 30]


def test_a_site_without_a_test_split_gets_one() -> None:
    split = np.repeat(np.array([TRAIN, TEST, TRAIN], np.int8), [80, 20, 100])
    site = np.repeat([0, 1], 100)
    samples = sample_set([200], split=split, site=site, sites=("a", "b"))
    parts = partition.split(samples, site, Data(test=0.3, val=0), 0)
    assert np.bincount(parts[:100], minlength=3).tolist() == [80, 0, 20]
    assert np.bincount(parts[100:], minlength=3).tolist() == [70, 0, 30]


def test_sites_are_hospitals() -> None:
    site = np.arange(100) % 3
    samples = sample_set([50, 50], site=site, sites=("a", "b", "c"))
    np.testing.assert_array_equal(partition.assign(samples, rule("site"), 3, 0), site)
    with pytest.raises(FedclError, match=r"3 sites \(a, b, c\), but --clients is 5; take --clients 3"):
        partition.assign(samples, rule("site"), 5, 0)
    with pytest.raises(FedclError, match="does not say where a sample comes from"):
        partition.assign(sample_set([50, 50]), rule("site"), 3, 0)


def test_too_little_is_refused_with_a_way_out() -> None:
    with pytest.raises(FedclError, match=r"--clients 200: there are only 100 samples"):
        partition.assign(sample_set([50, 50]), rule("iid"), 200, 0)
    poor, parts = np.repeat([0, 1], [95, 5]), np.zeros(100, np.int8)
    with pytest.raises(FedclError, match=r"hospital 1 has 5 training samples.*a larger --alpha \(now 0.5\)"):
        partition.check(poor, parts, rule("dirichlet"), 2)
    with pytest.raises(FedclError, match=r"take fewer --clients") as error:
        partition.check(poor, parts, rule("shards"), 2)
    assert "alpha" not in str(error.value)
    partition.check(poor, parts, rule("dirichlet", min_samples=5), 2)
    with pytest.raises(FedclError, match="hospital 2 has 0"):
        partition.check(poor, parts, rule("iid", min_samples=1), 3)


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ValidationError):
        rule("dirichlet", alpha=0)
