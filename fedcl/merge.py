"""Clients' deltas, taken one at a time, become one step of the trunk and of each task's module."""

from __future__ import annotations

from torch import Tensor

from fedcl.contracts import Aggregator, Memory, Params, Update, role


class Merge:
    """Collects the updates of one round in one group of clients.

    A linear rule needs only the running weighted sum; any other gets all deltas at the end. The order of `add` fixes
    the order of the floating-point sum: callers add by client index.

    Args:
        aggregator: for the trunk, and for a head that all tasks share.
        merger: for task modules and gates.
    """

    def __init__(self, aggregator: Aggregator, merger: Aggregator) -> None:
        self._rules = {"": aggregator, "shared": aggregator}
        self._merger = merger
        self._sums: dict[str, Params] = {}
        self._kept: dict[str, list[Params]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, update: Update) -> None:
        """One client's deltas; the update's arrays are not kept where the rule is linear."""
        for part, delta in split(update.arrays).items():
            self._weights.setdefault(part, []).append(update.weight)
            if not self._rule(part).linear:
                self._kept.setdefault(part, []).append(delta)
            elif part not in self._sums:
                self._sums[part] = {name: value * update.weight for name, value in delta.items()}
            else:
                sums = self._sums[part]
                for name, value in delta.items():
                    sums[name].add_(value, alpha=update.weight)

    def apply(self, params: Params, states: dict[str, Memory]) -> tuple[Params, dict[str, Memory]]:
        """(all parameters, each part's rule state) → the same after the round; untrained parts stay as they are."""
        params, states = dict(params), dict(states)
        for part, weights in self._weights.items():
            rule = self._rule(part)
            if rule.linear:
                total = sum(weights)
                delta = {name: value.div_(total) for name, value in self._sums[part].items()}
            else:
                delta = rule.reduce(self._kept[part], weights)
            current = {name: params[name] for name in delta}
            moved, states[part] = rule.step(current, delta, states.get(part, {}))
            params |= moved
        return params, states

    def _rule(self, part: str) -> Aggregator:
        return self._rules.get(part, self._merger)


def split(arrays: Params) -> dict[str, Params]:
    """Arrays by the task that they belong to, "" for the trunk."""
    parts: dict[str, Params] = {}
    for name, value in arrays.items():
        parts.setdefault(role(name), {})[name] = value
    return parts


def check(arrays: Params, expected: dict[str, Tensor]) -> str:
    """Why these deltas cannot be merged; "" if they can.

    Names, shapes and dtypes must be those that were sent to be trained, and all values finite.
    """
    if missing := sorted(set(expected) - set(arrays)):
        return f"{missing[0]} is missing"
    if extra := sorted(set(arrays) - set(expected)):
        return f"{extra[0]} was not asked for"
    for name, value in arrays.items():
        if value.shape != expected[name].shape:
            return f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        if value.dtype != expected[name].dtype:
            return f"{name} has dtype {value.dtype}, expected {expected[name].dtype}"
        # One pass: NaN and infinities survive a sum.
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            return f"{name} holds NaN or infinity"
    return ""
