"""Clients' deltas, taken one at a time, become one step of the trunk and of each task's module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from fedcl import plugins, structure
from fedcl.config import Config
from fedcl.contracts import Aggregator, FedclError, Job, Memory, Params, Update, role
from fedcl.methods import Combination

MEASURED = "merge/"  # before the name of a parameter: what its rule measured at the client


def rules(config: Config) -> tuple[Aggregator, Aggregator]:
    """(the rule of what all tasks share, the rule of a task's own module) of a config.

    Raises:
        FedclError: there is no such rule or option, or it cannot work with the net.
    """
    aggregator: Aggregator = plugins.make("aggregators", config.federation.aggregator, _options(config, "aggregator"))
    kind, name = plugins.merger(config.federation.aggregator, config.federation.merger)
    given = config.aggregators.get(name, {}) if kind == "aggregators" else _options(config, "merger")
    merger: Aggregator = plugins.make(kind, name, given)
    if merger.stays and config.model.heads != "task":
        raise FedclError(f"federation.merger: {name!r} needs a module per task; take model.heads = 'task' (--heads)")
    return aggregator, merger


def _options(config: Config, rule: str) -> dict[str, object]:
    """The options of the rule that is used; those of another are a mistake."""
    given, used = getattr(config, f"{rule}s"), getattr(config.federation, rule)
    also = {config.federation.merger} if rule == "aggregator" else set()
    if unused := sorted(set(given) - {used} - also):
        raise FedclError(f"{rule}s.{unused[0]}: options of a rule that federation.{rule} = {used!r} does not use")
    return dict(given.get(used, {}))


def cautions(config: Config, fewest: Mapping[str, int]) -> list[str]:
    """Where a rule that is to hold against faulty answers has too few of them, in plain words.

    Args:
        config: the experiment.
        fewest: by part, "" for what all share, the answers of a round at least.
    """
    if config.federation.kind != "federated":
        return []
    trunk = config.federation.aggregator
    _, module = plugins.merger(trunk, config.federation.merger)
    few: dict[str, list[str]] = {}
    least = {name: rule.least for name, rule in zip((trunk, module), rules(config), strict=True)}
    for part, n in sorted(fewest.items()):
        name = module if part else trunk
        if n < least[name]:
            few.setdefault(name, []).append(f"{part or 'the trunk'} {max(n, 1)}")
    return [
        f"note: {name} holds as it says with {least[name]} answers or more, and some round has fewer: of "
        f"{', '.join(parts)}. Of so few it takes the median: against one faulty answer of 3 or 4, none of 1 or 2"
        for name, parts in few.items()
    ]


class Merge:
    """Collects the updates of one round in one group of clients.

    A linear rule needs only the running weighted sum; any other gets all deltas at the end. The order of `add` fixes
    the order of the floating-point sum: callers add by client index. All that bring a part bring the same names of it,
    since a part is either trained on its task's samples by all of them or trains along at all of them, see `Plan`.

    Args:
        aggregator: for what all tasks share, the trunk and a shared head.
        merger: for task modules and gates.
        current: the tasks of the round, whose modules are merged across; None is all that come.
    """

    def __init__(self, aggregator: Aggregator, merger: Aggregator, current: Collection[str] | None = None) -> None:
        self._aggregator, self._merger, self._current = aggregator, merger, current
        self._sums: dict[str, Params] = {}
        self._kept: dict[str, list[tuple[Params, Params]]] = {}  # deltas, and what the rule measured of them
        self._weights: dict[str, list[float]] = {}

    def add(self, update: Update) -> None:
        """One client's deltas; the update's arrays are not kept where the rule is linear."""
        for part, delta in split(update.arrays).items():
            self._weights.setdefault(part, []).append(update.weight)
            if not self._rule(part).linear:
                extras = {name: update.extras[key] for name in delta if (key := MEASURED + name) in update.extras}
                self._kept.setdefault(part, []).append((delta, extras))
            elif part not in self._sums:
                self._sums[part] = {name: value * update.weight for name, value in delta.items()}
            else:
                sums = self._sums[part]
                for name, value in delta.items():
                    sums[name].add_(value, alpha=update.weight)

    def apply(
        self, params: Params, states: dict[str, Memory], blur: Callable[[Params], Params] = lambda sums: sums
    ) -> tuple[Params, dict[str, Memory]]:
        """(all parameters, each part's rule state) → the same after the round; untrained parts stay as they are.

        `blur` puts noise on the sum of a part's weighted deltas.
        """
        params, states = dict(params), dict(states)
        modules: dict[str, Params] = {}
        for part, weights in self._weights.items():
            rule = self._rule(part)
            if rule.linear:
                total = sum(weights)
                delta = {name: value.div_(total) for name, value in blur(self._sums[part]).items()}
            else:
                deltas, measured = zip(*self._kept[part], strict=True)
                delta = rule.reduce(deltas, weights, measured)
            current = {name: params[name] for name in delta}
            state = structure.fit(states.get(part, {}), current)
            moved, news = rule.step(current, delta, state)
            states[part] = state | news  # another round may bring other names of the part
            params |= moved
            if part and (self._current is None or part in self._current):
                modules[part] = moved
        for moved in self._merger.across(modules).values():
            params |= moved
        return params, states

    def _rule(self, part: str) -> Aggregator:
        return self._merger if part else self._aggregator


def moving(method: Combination, job: Job) -> list[str]:
    """The names of a Job's tensors that may move in it: no module's that is held."""
    return [name for name in job.arrays if role(name) not in job.held and method.moves(name, job)]


def misfit(update: Update) -> str:
    """Why what a rule measured at a client cannot be used; "" if it can."""
    for key, value in update.extras.items():
        name = key.removeprefix(MEASURED)
        if name == key:
            continue
        like = update.arrays.get(name)
        if like is None or value.shape != like.shape or value.dtype != like.dtype:
            return f"{key} is not what was to be measured"
    return ""


def unmeasured(update: Update, asked: Collection[str]) -> str:
    """Which of the parameters that a rule was to measure came without, or which others with; "" if none."""
    found = {key.removeprefix(MEASURED) for key in update.extras if key.startswith(MEASURED)}
    if missing := sorted(set(asked) - found):
        return f"{MEASURED}{missing[0]} is missing"
    if extra := sorted(found - set(asked)):
        return f"{MEASURED}{extra[0]} was not asked for"
    return ""


def split(arrays: Params) -> dict[str, Params]:
    """Arrays by the task that they belong to, "" for what all tasks share."""
    parts: dict[str, Params] = {}
    for name, value in arrays.items():
        part = role(name)
        parts.setdefault("" if part == "shared" else part, {})[name] = value
    return parts


def check(arrays: Params, expected: dict[str, Tensor]) -> str:
    """Why these deltas cannot be merged; "" if they can.

    Names, shapes and dtypes must be those that were sent to be trained, and all values finite.
    """
    if error := structure.unlike(arrays, expected):
        return error
    for name, value in arrays.items():
        # One pass: NaN and infinities survive a sum.
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            return f"{name} holds NaN or infinity"
    return ""
