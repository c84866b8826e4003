"""Flower's own strategies as rules: each call builds one, hands it what the rule remembers, and takes that back.

They see deltas where Flower would hand them whole parameters, and the parameters of before as zeros: so nothing is
lost to rounding, and what a strategy adds to zero is the step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedcl.contracts import Memory, Params

_MOMENTS = ("m_t", "v_t")


def combine(strategy: FedAvg, deltas: Sequence[Params], weights: Sequence[float], number: int = 0) -> Params:
    """What the strategy makes of deltas, one mapping a client, in its round `number`."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(max(before, logging.WARNING))  # it would count the replies on the screen
    try:
        found, _ = strategy.aggregate_train(number, _replies(deltas, weights))  # type: ignore[arg-type]
    finally:
        log.setLevel(before)
    assert found is not None  # it had replies
    like = deltas[0]
    return {name: torch.from_numpy(array.numpy()).to(like[name].dtype) for name, array in found.items()}


def median(deltas: Sequence[Params], weights: Sequence[float]) -> Params:
    """The median of each value; of an even number of deltas, the mean of the middle two."""
    return combine(FedMedian(), deltas, weights)


def move(strategy: Any, delta: Params, state: Memory) -> tuple[Params, Memory]:
    """A step of an adaptive strategy: (the clients' mean delta, state) → (what is added to the parameters, state).

    The state holds the strategy's moments by `<moment>/<parameter>`, and the count of `rounds`.
    """
    strategy.current_arrays = {name: torch.zeros_like(value).numpy() for name, value in delta.items()}
    rounds = state.get("rounds", torch.tensor(0))
    if state:
        for moment in _MOMENTS:
            known = {name: state.get(f"{moment}/{name}", torch.zeros_like(value)) for name, value in delta.items()}
            setattr(strategy, moment, {name: value.numpy() for name, value in known.items()})
    step = combine(strategy, [delta], [1.0], int(rounds))
    kept = {
        f"{moment}/{name}": torch.from_numpy(value).to(delta[name].dtype)
        for moment in _MOMENTS
        for name, value in getattr(strategy, moment).items()
    }
    return step, {"rounds": rounds + 1, **kept}


def check_moments(lr: float, beta1: float, beta2: float, tau: float) -> None:
    """Raise ValueError where an adaptive rule has an option out of its range."""
    if lr <= 0 or tau <= 0 or not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"lr = {lr} and tau = {tau} must be > 0, beta1 = {beta1} and beta2 = {beta2} in [0, 1)")


def record(arrays: Params) -> ArrayRecord:
    """Tensors as Flower has them."""
    return ArrayRecord({name: Array(value.numpy()) for name, value in arrays.items()})


class Reply(NamedTuple):
    """As much of a Flower Message as a strategy reads; a real one belongs to a run that moves messages."""

    content: RecordDict

    def has_error(self) -> bool:
        """Answers that cannot be used do not come here."""
        return False


def _replies(deltas: Sequence[Params], weights: Sequence[float]) -> list[Reply]:
    replies = []
    for delta, weight in zip(deltas, weights, strict=True):
        metrics = MetricRecord({"num-examples": float(weight)})
        replies.append(Reply(RecordDict({"arrays": record(delta), "metrics": metrics})))
    return replies
