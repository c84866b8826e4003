"""Continual-learning methods, one file each, and their combination (`ewc+replay`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """Several methods as one: memory keys are prefixed `<method>/`, penalties add up, edits run in order.

    A part is asked only for the hooks that it has.
    """

    def __init__(self, parts: dict[str, Method]) -> None:
        self.parts = parts
        self._hooks = {name: part.hooks() for name, part in parts.items()}
        losses = [name for name, hooks in self._hooks.items() if "loss" in hooks]
        if len(losses) > 1:
            raise FedclError(f"methods {' and '.join(losses)} both replace the loss; at most one may")
        self._loss = losses[0] if losses else ""

    def hooks(self) -> frozenset[str]:
        """The hooks of all parts."""
        return frozenset().union(*self._hooks.values())

    def conventions(self) -> dict[str, object]:
        """Each part's, by its name."""
        return {name: dict(part.conventions()) for name, part in self.parts.items()}

    @property
    def uses_before(self) -> bool:
        """Whether any part reads the parameters from before the step."""
        return any(part.needs_before for part in self.parts.values())

    def trainable(self, name: str, stage: int) -> bool:
        """Whether all parts let the parameter move."""
        return all(part.trainable(name, stage) for part in self.parts.values())

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("begin_task", memory, lambda part, own: part.begin_task(ctx, params, own))

    def observe(self, ctx: Context, batch: Batch, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("observe", memory, lambda part, own: part.observe(ctx, batch, own))

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("end_task", memory, lambda part, own: part.end_task(ctx, params, data, own))

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Each part's, on its own memory and its own part of the broadcast."""
        changed = {n: p.receive(_view(broadcast, n), own) for n, p, own in self._with("receive", memory)}
        return _join(changed, memory)

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """That of the part that has one, or else cross-entropy."""
        if not self._loss:
            return super().loss(ctx, params, batch, memory)
        return self.parts[self._loss].loss(ctx, params, batch, _view(memory, self._loss))

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """The sum of all parts'."""
        terms = [part.penalty(ctx, params, batch, own) for _, part, own in self._with("penalty", memory)]
        return sum(terms[1:], terms[0])

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> Params:
        """One part after the other."""
        for _, part, own in self._with("edit_grads", memory):
            grads = part.edit_grads(ctx, params, grads, own)
        return grads

    def edit_update(self, ctx: Context, before: Params, after: Params, memory: Memory) -> tuple[Params, Memory]:
        """One part after the other."""
        changed = {}
        for name, part, own in self._with("edit_update", memory):
            after, new = part.edit_update(ctx, before, after, own)
            if new is not own:
                changed[name] = new
        return after, _join(changed, memory)

    def upload(self, memory: Memory) -> Memory:
        """All parts', prefixed."""
        return _join({name: part.upload(own) for name, part, own in self._with("upload", memory)}, {})

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Each part's, on its own state and uploads."""
        states, broadcasts = {}, {}
        for name, part, own in self._with("server", state):
            views = [(weight, _view(upload, name)) for weight, upload in uploads]
            states[name], broadcasts[name] = part.server(params, own, views)
        return _join(states, {}), _join(broadcasts, {})

    def _with(self, hook: str, memory: Memory) -> list[tuple[str, Method, Memory]]:
        """The parts that have a hook, each with its own memory."""
        return [(name, part, _view(memory, name)) for name, part in self.parts.items() if hook in self._hooks[name]]

    def _on_memory(self, hook: str, memory: Memory, act: Callable[[Method, Memory], Memory]) -> Memory:
        return _join({name: act(part, own) for name, part, own in self._with(hook, memory)}, memory)


def _view(memory: Memory, name: str) -> Memory:
    start = len(name) + 1
    return {key[start:]: value for key, value in memory.items() if key.startswith(f"{name}/")}


def _join(parts: dict[str, Memory], rest: Memory) -> Memory:
    """Some parts' memories with their prefixes, and all of `rest` that is not theirs; `rest` itself without any."""
    if not parts:
        return rest
    kept = {key: value for key, value in rest.items() if key.partition("/")[0] not in parts}
    return kept | {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
