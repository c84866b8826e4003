"""Continual-learning methods, one file each, and their combination (`ewc+replay`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedcl import plugins
from fedcl.config import Config
from fedcl.contracts import Batch, Context, FedclError, Memory, Method, Params


def build(config: Config) -> Combination:
    """The method of a config: one or more plug-ins joined by `+`, each with its options.

    Raises:
        FedclError: options for a method that is not used, or unknown ones, or a combination that cannot work.
    """
    parts: dict[str, Method] = {}
    for name in plugins.split(config.method):
        key = name.replace("++", "pp").replace("-", "_")
        if key in parts:
            raise FedclError(f"method {config.method!r} names {name!r} twice")
        plugin = plugins.load("methods", name)
        given = config.methods.get(name, {})
        known = plugins.options(plugin)
        if unknown := sorted(set(given) - set(known)):
            raise FedclError(f"methods.{name}.{unknown[0]}: no such option; {name} has {', '.join(known) or 'none'}")
        try:
            parts[key] = plugin(**given)
        except (TypeError, ValueError) as error:
            raise FedclError(f"methods.{name}: {error}") from error
    if unused := sorted(set(config.methods) - set(plugins.split(config.method))):
        raise FedclError(f"methods.{unused[0]}: options of a method that --method {config.method!r} does not use")
    return Combination(parts)


class Combination(Method):
    """Several methods as one: memory keys are prefixed `<method>/`, penalties add up, edits run in order."""

    def __init__(self, parts: dict[str, Method]) -> None:
        self.parts = parts
        losses = [name for name, part in parts.items() if "loss" in part.hooks()]
        if len(losses) > 1:
            raise FedclError(f"methods {' and '.join(losses)} both replace the loss; at most one may")
        self._loss = losses[0] if losses else ""

    def hooks(self) -> frozenset[str]:
        """The hooks of all parts."""
        return frozenset().union(*(part.hooks() for part in self.parts.values()))

    def conventions(self) -> dict[str, object]:
        """Each part's, by its name."""
        return {name: dict(part.conventions()) for name, part in self.parts.items()}

    @property
    def uses_before(self) -> bool:
        """Whether any part reads the parameters from before the step."""
        return any(part.needs_before for part in self.parts.values())

    def trainable(self, name: str, stage: int) -> bool:  # noqa: D102
        return all(part.trainable(name, stage) for part in self.parts.values())

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:  # noqa: D102
        return _join({n: p.begin_task(ctx, params, m) for n, p, m in self._each(memory)}, memory)

    def observe(self, ctx: Context, batch: Batch, memory: Memory) -> Memory:  # noqa: D102
        return _join({n: p.observe(ctx, batch, m) for n, p, m in self._each(memory)}, memory)

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:  # noqa: D102
        if not self._loss:
            return super().loss(ctx, params, batch, memory)
        return self.parts[self._loss].loss(ctx, params, batch, _view(memory, self._loss))

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:  # noqa: D102
        terms = [p.penalty(ctx, params, batch, m) for _, p, m in self._each(memory) if "penalty" in p.hooks()]
        return sum(terms[1:], terms[0])

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> Params:  # noqa: D102
        for _, part, own in self._each(memory):
            grads = part.edit_grads(ctx, params, grads, own)
        return grads

    def edit_update(  # noqa: D102
        self, ctx: Context, before: Params, after: Params, memory: Memory
    ) -> tuple[Params, Memory]:
        changed = {}
        for name, part, own in self._each(memory):
            after, changed[name] = part.edit_update(ctx, before, after, own)
        return after, _join(changed, memory)

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:  # noqa: D102
        return _join({n: p.end_task(ctx, params, data, m) for n, p, m in self._each(memory)}, memory)

    def upload(self, memory: Memory) -> Memory:  # noqa: D102
        return _join({n: p.upload(m) for n, p, m in self._each(memory)}, {})

    def server(  # noqa: D102
        self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]
    ) -> tuple[Memory, Memory]:
        states, broadcasts = {}, {}
        for name, part, own in self._each(state):
            views = [(weight, _view(upload, name)) for weight, upload in uploads]
            states[name], broadcasts[name] = part.server(params, own, views)
        return _join(states, {}), _join(broadcasts, {})

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:  # noqa: D102
        return _join({n: p.receive(_view(broadcast, n), m) for n, p, m in self._each(memory)}, memory)

    def _each(self, memory: Memory) -> list[tuple[str, Method, Memory]]:
        return [(name, part, _view(memory, name)) for name, part in self.parts.items()]


def _view(memory: Memory, name: str) -> Memory:
    start = len(name) + 1
    return {key[start:]: value for key, value in memory.items() if key.startswith(f"{name}/")}


def _join(parts: dict[str, Memory], rest: Memory) -> Memory:
    """All parts' memories with their prefixes, and what belongs to none of them (the optimiser's state)."""
    kept = {key: value for key, value in rest.items() if key.partition("/")[0] not in parts}
    return kept | {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
