"""Task modules that stay at their hospital: a part of its own memory, loaded for a Job and taken back after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedcl import structure
from fedcl.contracts import Job, Memory, Moment, Params, Update, role
from fedcl.methods import Combination
from fedcl.models.dynamic_net import SHARED
from fedcl.structure import Layer

_OWN = "own/"  # before a parameter's name, in the client's memory
_GROWTH = "growth/"  # before what a rule of growth remembers of them


def bring(job: Job, memory: Memory, fresh: Callable[[str], Params], layers: Sequence[Layer] = ()) -> Job:
    """The Job as if its modules had been sent: those of the client's memory, or a new task's starting weights.

    Args:
        job: with what all share. An evaluation, and the earlier tasks of a training, are cut down to the tasks that the
            client has a module for.
        memory: the client's.
        fresh: task → the module that the client starts it with.
        layers: of the trunk, what can grow. Modules to be trained see what came in this stage; units that came before
            its first job here, while the task was away, stay closed for it.
    """
    mine = {key.removeprefix(_OWN): value for key, value in memory.items() if key.startswith(_OWN)}
    there = {role(name) for name in mine}
    if job.phase == "evaluate":
        job = replace(job, tasks=tuple(task for task in job.tasks if task in there))
    else:
        for task in job.tasks:
            mine |= {} if task in there else fresh(task)
            if job.phase == "train":
                mine |= structure.follow(job.arrays | mine, layers, task, 0 if "begin" in job.flags else None)
        job = replace(job, past=tuple(task for task in job.past if task in there))
    wanted = {*job.tasks, *job.past}
    return replace(job, arrays=job.arrays | {name: value for name, value in mine.items() if role(name) in wanted})


def keep(update: Update, job: Job, memory: Memory) -> tuple[Update, Memory]:
    """(the update without what stays, the memory with it) after training the Job that `bring` made."""
    stays = {name for name in update.arrays if role(name) not in ("", SHARED)}
    known = {role(key.removeprefix(_OWN)) for key in memory if key.startswith(_OWN)}  # also where nothing was trained
    tasks = {role(name) for name in stays} | (known & set(job.tasks))
    own = {name: value for name, value in job.arrays.items() if role(name) in tasks}
    moved = {name: value + update.arrays[name] if name in stays else value for name, value in own.items()}
    sent = {name: value for name, value in update.arrays.items() if name not in stays}
    return replace(update, arrays=sent), memory | {f"{_OWN}{name}": value for name, value in moved.items()}


def grow(method: Combination, moment: Moment, memory: Memory) -> Memory:
    """The memory with modules as the hospital's rule of growth makes them, on its own validation loss.

    Args:
        method: whose rules.
        moment: of this hospital alone; its layers are found here.
        memory: the client's, after `keep`.
    """
    mine = {key.removeprefix(_OWN): value for key, value in memory.items() if key.startswith(_OWN)}
    state = {key.removeprefix(_GROWTH): value for key, value in memory.items() if key.startswith(_GROWTH)}
    layers = tuple(structure.module(task, mine) for task in moment.current if f"tasks.{task}.out.bias" in mine)
    grown, state = method.grown(replace(moment, layers=layers), mine, state)
    kept = {key: value for key, value in memory.items() if not key.startswith((_OWN, _GROWTH))}
    kept |= {f"{_OWN}{name}": value for name, value in grown.items()}
    return kept | {f"{_GROWTH}{key}": value for key, value in state.items()}
