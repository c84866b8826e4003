"""bf16 on the CPU, which has it too: what may differ, and what may not."""

from __future__ import annotations

import pytest
import torch
from small import assert_same, model


def test_bf16_changes_the_passes_and_not_what_is_kept_or_sent(run):
    plain, half = run("float32"), run("bf16", run={"precision": "bf16"})
    assert any(not torch.equal(value, model(plain)[name]) for name, value in model(half).items())
    assert all(value.dtype == torch.float32 for value in model(half).values() if value.is_floating_point())
    assert half.metrics["average_accuracy"] == pytest.approx(plain.metrics["average_accuracy"], abs=0.05)
    assert (plain.bytes_down, plain.bytes_up) == (half.bytes_down, half.bytes_up)


def test_bf16_is_the_same_twice(run):
    assert_same(run("a", run={"precision": "bf16"}), run("b", run={"precision": "bf16"}))
