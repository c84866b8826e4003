"""Continual-learning methods, one file each, and their combination (`ewc+replay`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from fedcl import plugins, structure
from fedcl.config import Config
from fedcl.contracts import Batch, Context, FedclError, Job, Memory, Method, Moment, Params, Step, role


def build(config: Config) -> Combination:
    """The method of a config: one or more plug-ins joined by `+`, each with its options.

    Raises:
        FedclError: options for a method that is not used, or unknown ones, or a combination that cannot work, be it
            of methods or of a method with the rest of the config.
    """
    parts: dict[str, Method] = {}
    for name in plugins.split(config.method):
        key = name.replace("++", "pp").replace("-", "_")
        if key in parts:
            raise FedclError(f"method {config.method!r} names {name!r} twice")
        parts[key] = plugins.make("methods", name, config.methods.get(name, {}))
    if unused := sorted(set(config.methods) - set(plugins.split(config.method))):
        raise FedclError(f"methods.{unused[0]}: options of a method that --method {config.method!r} does not use")
    rules = [] if config.model.growth == "none" else plugins.split(config.model.growth)
    if unused := sorted(set(config.growth) - set(rules)):
        raise FedclError(
            f"growth.{unused[0]}: options of a rule that model.growth = {config.model.growth!r} (--growth) does not use"
        )
    if rules and (fixed := [name for name, part in parts.items() if not part.resizes]):
        raise FedclError(f"method {fixed[0]} keeps directions of a net of one size; take model.growth = 'none'")
    if rules and config.model.heads != "task" and config.model.masks == "slices":
        raise FedclError("model.masks = 'slices' with growth needs a module per task; take model.heads = 'task'")
    if twice := [name for name in rules if rules.count(name) > 1]:
        raise FedclError(f"growth rule {twice[0]!r} is named twice in {config.model.growth!r}")
    for name in rules:  # last: what the methods say of the merged model is what grows
        parts[name.replace("-", "_")] = plugins.make("growth", name, config.growth.get(name, {}))
    _together(parts)
    for name, part in parts.items():
        if why := part.unfit(config) or _homeless(part, config):
            grows = name in {rule.replace("-", "_") for rule in rules}
            raise FedclError(f"{'growth rule' if grows else 'method'} {name!r} {why}")
    return Combination(parts, growth=[rule.replace("-", "_") for rule in rules])


def _homeless(part: Method, config: Config) -> str:
    """Why modules that have to stay at their hospital cannot; "" if they can, or need not."""
    merger = config.federation.merger
    if part.personal and merger != "auto" and not plugins.stays(config.federation.aggregator, merger):
        return "keeps a task's module at its hospital: federation.merger must be 'auto' or 'personal'"
    if part.personal and config.model.heads != "task":
        return "keeps a task's module at its hospital: model.heads must be 'task'"
    return ""


def _together(parts: dict[str, Method]) -> None:
    """Raise FedclError where methods cannot go together."""
    names = list(parts)
    losses = [name for name, part in parts.items() if "loss" in part.hooks()]
    if len(losses) > 1:
        raise FedclError(f"methods {' and '.join(losses)} both replace the loss; at most one may")
    masked = [name for name, part in parts.items() if part.masks != "none"]
    if len(masked) > 1 and {parts[name].masks for name in masked} != {"slices"}:
        raise FedclError(f"methods {' and '.join(masked)} both mask the trunk; at most one may")
    if len(parts) > 1 and (alone := [name for name, part in parts.items() if part.alone]):
        raise FedclError(f"method {alone[0]} leaves nothing for another to do; it goes alone")
    last = [name for name, part in parts.items() if part.edits_last]
    if len(last) > 1:
        raise FedclError(f"methods {' and '.join(last)} both have to make the last edit of a step; at most one may")
    if last:
        after = [name for name in names[names.index(last[0]) + 1 :] if "edit_update" in parts[name].hooks()]
        if after:
            order = "+".join([name for name in names if name != last[0]] + last)
            raise FedclError(f"method {after[0]} would undo what {last[0]} guarantees for each step; write {order}")


class Combination(Method):
    """Several methods as one: memory keys are prefixed `<method>/`, penalties add up, edits run in order.

    A part is asked only for the hooks that it has.
    """

    def __init__(self, parts: dict[str, Method], growth: Sequence[str] = ()) -> None:
        self.parts = parts
        self.growth = tuple(growth)  # those of the parts that are rules of growth
        self._hooks = {name: part.hooks() for name, part in parts.items()}
        self._loss = next((name for name, hooks in self._hooks.items() if "loss" in hooks), "")
        self.uses_before = any(part.needs_before for part in parts.values())
        self.uses_past = any(part.needs_past and self._hooks[name] for name, part in parts.items())
        self.starts_over = any(part.every_task for part in parts.values())
        self.watches = any(part.watches for part in parts.values())  # type: ignore[misc]

    def hooks(self) -> frozenset[str]:
        """The hooks of all parts."""
        return frozenset().union(*self._hooks.values())

    @property
    def records(self) -> Literal["open", "none", "fisher", "kept"]:  # type: ignore[override]
        """What asks most of who protects records."""
        found: set[str] = {part.records for part in self.parts.values()}
        return next(kind for kind in ("open", "kept", "fisher", "none") if kind in found)

    def kept(self, memory: Memory) -> tuple[Batch, Tensor]:
        """That of the one part that keeps some."""
        ((name, part),) = ((name, part) for name, part in self.parts.items() if part.records == "kept")
        return part.kept(_view(memory, name))

    def conventions(self) -> dict[str, object]:
        """Each part's, by its name."""
        return {name: dict(part.conventions()) for name, part in self.parts.items()}

    def trainable(self, name: str, stage: int) -> bool:
        """Whether all parts let the parameter move."""
        return all(part.trainable(name, stage) for part in self.parts.values())

    def moves(self, name: str, job: Job) -> bool:
        """Whether a parameter of a Job may move in it."""
        past = role(name) in job.past
        return self.trainable(name, job.stage) and (not past or self.trainable_past(name))

    def trainable_past(self, name: str) -> bool:
        """Whether a part that asks for earlier tasks' modules lets the parameter move."""
        return any(part.trainable_past(name) for part in self.parts.values() if part.needs_past)

    def new_module(self, client: int, module: Params, shared: Params, memory: Memory) -> Params:
        """One part after the other, each with its own memory."""
        for _, part, own in self._with("new_module", memory):
            module = part.new_module(client, module, shared, own)
        return module

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("begin_task", memory, lambda part, own: part.begin_task(ctx, params, own))

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("observe", memory, lambda part, own: part.observe(ctx, params, batch, own))

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("end_task", memory, lambda part, own: part.end_task(ctx, params, data, own))

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Each part's that has news, on its own memory and its own part of the broadcast.

        First what all keep by parameter is cut where the server has taken units away, see `structure.cut`.
        """
        for key, end in broadcast.items():
            if key.startswith(structure.SAID):
                memory = structure.cut(memory, {key.partition("/")[2]: end})
        said = {name: _view(broadcast, name) for name in self.parts}
        changed = {n: p.receive(said[n], own) for n, p, own in self._with("receive", memory) if said[n]}
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

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """One part after the other."""
        changed = {}
        for name, part, own in self._with("edit_grads", memory):
            grads, new = part.edit_grads(ctx, params, grads, own)
            if new is not own:
                changed[name] = new
        return grads, _join(changed, memory)

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """One part after the other."""
        changed = {}
        for name, part, own in self._with("edit_update", memory):
            after, new = part.edit_update(ctx, step, own)
            step = replace(step, after=after)
            if new is not own:
                changed[name] = new
        return step.after, _join(changed, memory)

    def track(self, ctx: Context, step: Step, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("track", memory, lambda part, own: part.track(ctx, step, own))

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """One part after the other."""
        return self._merged(tuple(self.parts), moment, before, params, state)

    def grown(self, moment: Moment, params: Params, state: Memory) -> tuple[Params, Memory]:
        """The same with the rules of growth alone, for who holds a module of its own."""
        return self._merged(self.growth, moment, params, params, state)

    def _merged(
        self, names: Sequence[str], moment: Moment, before: Params, params: Params, state: Memory
    ) -> tuple[Params, Memory]:
        changed = {}
        for name, part, own in (each for each in self._with("merged", state) if each[0] in names):
            params, new = part.merged(moment, before, params, own)
            if new is not own:
                changed[name] = new
        return params, _join(changed, state)

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Each part's, on its own memory."""
        return self._on_memory("end_round", memory, lambda part, own: part.end_round(ctx, params, own))

    def sent(self, when: str, memory: Memory) -> Memory:
        """What all parts upload after a "task" or a "round", prefixed."""
        parts = [each for each in self._with("upload", memory) if each[1].sends in (when, "both")]
        return _join({name: part.upload(own) for name, part, own in parts}, {}) if parts else {}

    def unlike(
        self, when: Collection[str], client: int, net: nn.Module, params: Params, trained: Params, sent: Memory
    ) -> str:
        """Why this is not what a client's parts upload after a "round", a "task", or both; "" if it is.

        `params` are the parameters that it was sent, `trained` those of them that moved.
        """
        due = [each for each in self._with("upload", sent) if each[1].sends in (*when, "both")]
        names = {name for name, _, _ in due}
        if extra := sorted(key for key in sent if key.partition("/")[0] not in names):
            return f"{extra[0]} was not asked for"
        for name, part, own in due:
            if why := part.misfit(client, net, trained if part.sends == "round" else params, own):
                return f"{name}/{why}"
        return ""

    def absorb(
        self, when: str, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]
    ) -> tuple[Memory, Memory]:
        """Each part's server half, on its own state and uploads: (the whole state, what these parts broadcast)."""
        states, broadcasts = {}, {}
        for name, part, own in self._with("server", state):
            if part.sends in (when, "both"):
                views = [(weight, _view(upload, name)) for weight, upload in uploads if weight > 0]
                states[name], broadcasts[name] = part.server(params, own, views)
        return _join(states, state), _join(broadcasts, {})

    def synthesize(self, ctx: Context, params: Params, state: Memory) -> tuple[Memory, Memory]:
        """Each part's, on its own state: (the whole state, what these parts broadcast)."""
        found = {name: part.synthesize(ctx, params, own) for name, part, own in self._with("synthesize", state)}
        states, broadcasts = ({name: each[place] for name, each in found.items()} for place in (0, 1))
        return _join(states, state), _join(broadcasts, {})

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
