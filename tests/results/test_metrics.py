from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedcl.metrics import (
    COMPAT,
    DEFINITIONS,
    INFERRED,
    Floats,
    Scores,
    compat,
    hospital_accuracy,
    just_learned_forgetting,
    merging_drop,
    peak_forgetting,
    summary,
)

NAN = np.nan
# Task 0 peaks at 0.92 one stage after it was learned; task 2 is never old.
R = np.array([[0.90, 0.20, 0.10], [0.92, 0.80, 0.15], [0.60, 0.70, 0.95]])


def scores(accuracy: Floats, first: list[list[int]], last: list[list[int]] | None = None) -> Scores:
    """Hospitals' accuracies [S, T, C] with 10 test samples a cell; pooled is their mean."""
    counts = np.full(accuracy.shape[1:], 10)
    at = np.array(first)
    return Scores(accuracy, accuracy.mean(axis=2), counts, at, at if last is None else np.array(last))


def one(r: Floats, baseline: Floats | None = None, reference: Floats | None = None) -> dict[str, float]:
    """One hospital that learns task t in stage t."""
    alone = scores(r[:, :, None], [[t] for t in range(r.shape[1])])
    return summary(replace(alone, baseline=baseline, reference=reference))


def test_hand_computed_3x3() -> None:
    m = one(R, baseline=np.array([0.1, 0.1, 0.1]), reference=np.array([0.95, 0.9, 0.97]))
    expected = {
        "average_accuracy": (0.60 + 0.70 + 0.95) / 3,
        "forgetting": ((0.92 - 0.60) + (0.80 - 0.70)) / 2,
        "forgetting_just_learned": ((0.90 - 0.60) + (0.80 - 0.70)) / 2,
        "backward_transfer": -0.2,
        "forward_transfer": ((0.20 - 0.1) + (0.15 - 0.1)) / 2,
        "intransigence": (0.05 + 0.10 + 0.02) / 3,
        "average_incremental_accuracy": (0.90 + (0.92 + 0.80) / 2 + 0.75) / 3,
        "learning_accuracy": (0.90 + 0.80 + 0.95) / 3,
        "plasticity": (0.90 + 0.80 + 0.95) / 3,
        "stability": 1 - 0.21,
        "remembering": 0.8,
        "positive_backward_transfer": 0.0,
        "minimum_accuracy": (0.60 + 0.70) / 2,
        "worst_case_accuracy": 0.95 / 3 + 2 / 3 * 0.65,
    }
    assert {name: m[name] for name in expected} == pytest.approx(expected)


def test_every_name_is_defined_and_present() -> None:
    m = one(R)
    assert set(m) == set(DEFINITIONS) | {f"{name}_inferred" for name in INFERRED}
    assert all(len(row) == 3 and all(row) for row in DEFINITIONS.values())
    assert all(np.isnan(m[f"{name}_inferred"]) for name in INFERRED)


def test_inferred_comes_from_the_inferred_matrix() -> None:
    known, inferred = scores(R[:, :, None], [[0], [1], [2]]), scores(R[:, :, None] / 2, [[0], [1], [2]])
    m = summary(known, inferred)
    for name in ("average_accuracy", "forgetting", "worst_hospital_accuracy"):
        assert m[f"{name}_inferred"] == pytest.approx(m[name] / 2)


@pytest.mark.parametrize("seed", range(20))
def test_identities_on_random_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy = rng.uniform(size=(5, 4, 3))
    accuracy[rng.uniform(size=accuracy.shape) < 0.2] = NAN
    first = rng.integers(0, 4, (4, 3))
    s = scores(np.where(np.isnan(accuracy), NAN, accuracy), first.tolist(), (first + 1).tolist())
    m = summary(s)
    for matrix in (s.whole(), *(s.hospital(c) for c in range(3))):
        old = matrix.old
        assert (peak_forgetting(matrix)[old] >= just_learned_forgetting(matrix)[old] - 1e-12).all()
        assert np.isnan(peak_forgetting(matrix)[~old]).all()
    assert m["backward_transfer"] == pytest.approx(-m["forgetting_just_learned"], nan_ok=True)
    assert m["stability"] == pytest.approx(1 - m["forgetting"], nan_ok=True)


def test_hospitals_with_different_schedules() -> None:
    # Hospital 0 learns a, b; hospital 1 learns b, a; the final stage is idle.
    accuracy = np.zeros((3, 2, 2))
    accuracy[:, :, 0] = [[0.9, 0.1], [0.7, 0.8], [0.6, 0.5]]
    accuracy[:, :, 1] = [[0.2, 0.9], [0.9, 0.3], [0.8, 0.2]]
    s = scores(accuracy, [[0, 1], [1, 0]])
    m = summary(s)
    assert s.whole().first.tolist() == [0, 0]
    assert s.whole().last.tolist() == [1, 1]
    assert m["temporal_forgetting"] == pytest.approx((((0.3 + 0.3) / 2) + ((0.1 + 0.7) / 2)) / 2)
    assert m["forgetting_just_learned"] == pytest.approx(((0.8 - 0.7) + (0.55 - 0.35)) / 2)
    assert m["macro_forgetting"] == pytest.approx(m["temporal_forgetting"])
    assert m["worst_hospital_accuracy"] == pytest.approx(0.5)
    assert m["hospital_spread"] == pytest.approx(0.025)


def test_peak_ignores_stages_before_the_task_was_met() -> None:
    r = np.array([[0.9, 0.99], [0.8, 0.7], [0.8, 0.6], [0.8, 0.5]])
    assert one(r)["forgetting"] == pytest.approx((0.1 + 0.2) / 2)


def test_a_task_trained_twice_is_judged_from_its_last_stage() -> None:
    r = np.array([[0.9], [0.3], [0.8], [0.7]])[:, :, None]
    m = summary(scores(r, [[0]], [[2]]))
    assert m["forgetting_just_learned"] == pytest.approx(0.1)
    assert m["forgetting"] == pytest.approx(0.2)


def test_spatial_and_temporal_add_up_to_the_whole_drop() -> None:
    local = R[:, :, None] + 0.04
    s = replace(scores(R[:, :, None], [[0], [1], [2]]), local=local)
    m = summary(s)
    assert m["spatial_forgetting"] == pytest.approx(0.04)
    assert merging_drop(s)[:, 0] == pytest.approx(np.full(3, 0.04))
    drop = np.mean([local[t, t, 0] - R[2, t] for t in (0, 1)])
    assert m["temporal_forgetting"] + 0.04 == pytest.approx(drop)


def test_macro_and_weighted_differ_where_hospitals_do() -> None:
    accuracy = np.array([[[0.5, 1.0]]])
    s = Scores(accuracy, np.array([[0.9]]), np.array([[10, 90]]), np.zeros((1, 2), int), np.zeros((1, 2), int))
    m = summary(s)
    assert m["macro_accuracy"] == pytest.approx(0.75)
    assert m["weighted_accuracy"] == pytest.approx(0.95)
    assert m["average_accuracy"] == pytest.approx(0.9)


def test_undefined_and_unseen_cells_are_never_averaged() -> None:
    accuracy = np.full((2, 3, 2), 0.5)
    accuracy[:, 0, 1] = NAN  # hospital 1 has no test samples of task 0
    accuracy[:, 2, :] = 0.0  # nobody has trained task 2: a shared head scores 0
    s = scores(accuracy, [[0, -1], [1, 1], [-1, -1]])
    m = summary(s)
    assert m["macro_accuracy"] == m["weighted_accuracy"] == m["worst_hospital_accuracy"] == 0.5
    assert hospital_accuracy(s).tolist() == [0.5, 0.5]
    assert s.whole().final[2] != s.whole().final[2]


def test_one_task_has_no_forgetting() -> None:
    m = one(np.array([[0.8]]))
    assert m["average_accuracy"] == m["worst_case_accuracy"] == 0.8
    for name in ("forgetting", "backward_transfer", "forward_transfer", "stability", "minimum_accuracy"):
        assert np.isnan(m[name]), name


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty_runs_give_nan_and_no_warning(shape: tuple[int, int, int]) -> None:
    first = np.full(shape[1:], -1)
    s = Scores(np.zeros(shape), np.zeros(shape[:2]), np.zeros(shape[1:], int), first, first)
    assert all(np.isnan(value) for value in summary(s).values())


def test_forward_transfer_needs_a_baseline_and_defined_cells() -> None:
    heads = np.where(np.tril(np.ones((3, 3))) > 0, R, NAN)  # a module per task: unseen tasks have none
    assert np.isnan(one(R)["forward_transfer"])
    assert np.isnan(one(heads, baseline=np.full(3, 0.1))["forward_transfer"])


def test_compat_hand_computed() -> None:
    assert compat("fot", R)["forgetting"] == pytest.approx(0.4 / 2)
    assert compat("fed-mammoth", R)["forgetting"] == pytest.approx(0.4 / 3)
    # Row maxima 0.90, 0.92, 0.95 less the final row 0.60, 0.70, 0.95.
    assert compat("lander", R)["forgetting"] == pytest.approx((0.30 + 0.22 + 0.0) / 3)
    assert compat("target", R)["forgetting"] == pytest.approx((0.32 + 0.10) / 2)
    assert compat("target", R)["average_accuracy"] == pytest.approx(0.75)
    assert compat("fed-mammoth", R, np.array([1, 1, 2]))["average_accuracy"] == pytest.approx(0.8)


def test_compat_reads_unlearned_cells_as_its_peers_do() -> None:
    heads = np.where(np.tril(np.ones((3, 3))) > 0, R, NAN)
    for name in COMPAT:
        assert compat(name, heads) == pytest.approx(compat(name, np.tril(R)))


@pytest.mark.parametrize(
    ("name", "r", "words"),
    [
        ("glfc", R, "there are fed-mammoth, fot"),
        ("fot", R[:2], "2 × 3"),
        ("fot", np.where(R == 0.7, NAN, R), "no accuracy"),
    ],
)
def test_compat_refuses_what_it_cannot_read(name: str, r: Floats, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compat(name, r)


def test_compat_refuses_stages_with_other_tasks() -> None:
    same = [[(stage,), (stage,), ()] for stage in range(3)]
    assert compat("fot", R, None, same) == compat("fot", R)
    with pytest.raises(ValueError, match="stage 2 of this run some have another"):
        compat("fot", R, None, [same[0], [(1,), (2,), ()], same[2]])


def test_compat_of_one_task() -> None:
    r = np.array([[0.8]])
    assert np.isnan(compat("fot", r)["forgetting"])
    assert compat("fed-mammoth", r)["forgetting"] == 0.0
