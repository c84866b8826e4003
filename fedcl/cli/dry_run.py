"""`fedcl simulate --dry-run`: who would have what, when, and what it would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from fedcl import units

if TYPE_CHECKING:
    from fedcl.config import Config
    from fedcl.federation import Federation
    from fedcl.forecast import Forecast


def show(config: Config) -> None:
    """Print the plan; nothing runs and nothing is written."""
    import torch

    from fedcl import simulation
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError
    from fedcl.forecast import forecast

    with terminal.told(FedclError):
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        simulation.check(config)
        hospitals = simulation.meet(config)
        told = simulation.probe(config, hospitals)
        cost = forecast(config, hospitals)
        plan = (*_samples(hospitals), *_schedule(hospitals), *_cost(config, hospitals, cost), *_privacy(cost))
        for line in (*plan, *told):
            typer.echo(line)
        typer.echo(f"\nnothing was run; without --dry-run it goes to {config.directory()}")


def _samples(hospitals: Federation) -> Iterator[str]:
    """One line for each hospital and task."""
    yield "who has what: train + val + test samples, then training samples of each class"
    counts = hospitals.counts()
    wide, wider = (
        max(map(len, hospitals.names)),
        max(len(_task(hospitals, t)) for t in range(len(hospitals.tasks))),
    )
    for hospital, name in enumerate(hospitals.names):
        for task in hospitals.tasks:
            parts = counts[hospital, task.index]
            sizes = " + ".join(f"{n:4}" for n in parts.sum(axis=1))
            classes = ", ".join(f"{hospitals.classes[c]}: {parts[0, c]}" for c in task.classes)
            yield f"  {name:{wide}}  {_task(hospitals, task.index):{wider}}  {sizes}   {classes}"


def _schedule(hospitals: Federation) -> Iterator[str]:
    """One line for each stage and task."""
    yield "\nschedule"
    for stage, plan in enumerate(hospitals.schedule):
        for task in sorted({task for now in plan for task in now}):
            clients = [client for client, now in enumerate(plan) if task in now]
            yield f"  stage {stage + 1}  {_task(hospitals, task)}: {_who(hospitals, clients)}"


def _who(hospitals: Federation, clients: Sequence[int]) -> str:
    members = sorted(hospital for client in clients for hospital in hospitals.members[client])
    pooled = ", their data pooled" if len(members) > len(clients) else ""
    if len(members) == len(hospitals.names):
        return f"all {len(members)} hospitals{pooled}"
    return ", ".join(hospitals.names[hospital] for hospital in members) + pooled


def _cost(config: Config, hospitals: Federation, cost: Forecast) -> Iterator[str]:
    parts = ", ".join(f"{part} {units.count(number)}" for part, number in cost.parameters.items())
    yield f"\nparameters   {units.count(sum(cost.parameters.values()))}: {parts}"
    yield f"a round      {_range(cost.down)} down, {_range(cost.up)} up; what the method sends comes on top"
    rounds = config.train.rounds * len(hospitals.schedule)
    total = [units.size(sum(way) * config.train.rounds) for way in (cost.down, cost.up)]
    yield f"{rounds:<4} rounds  {total[0]} down, {total[1]} up"
    yield (
        f"time         about {units.duration(cost.seconds)}: an estimate, {cost.steps} training steps of "
        f"{cost.seconds_per_step * 1e3:.2f} ms as measured now; the method, messages and tests come on top"
    )


def _range(sizes: Sequence[float]) -> str:
    low, high = units.size(min(sizes)), units.size(max(sizes))
    return low if low == high else f"{low} to {high}"


def _task(hospitals: Federation, index: int) -> str:
    task = hospitals.tasks[index]
    return f"{task.id} ({task.title})" if task.title else task.id


def _privacy(cost: Forecast) -> Iterator[str]:
    """What the whole run would let out, where a mechanism claims an ε."""
    if cost.privacy:
        yield f"privacy      {cost.privacy}"
