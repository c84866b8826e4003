"""Task modules that stay at their hospital: a part of its own memory, loaded for a Job and taken back after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedcl.contracts import Job, Memory, Params, Update, role
from fedcl.models.dynamic_net import SHARED

_OWN = "own/"  # before a parameter's name, in the client's memory


def bring(job: Job, memory: Memory, fresh: Callable[[str], Params]) -> Job:
    """The Job as if its modules had been sent: those of the client's memory, or a new task's starting weights.

    Args:
        job: with what all share. An evaluation, and the earlier tasks of a training, are cut down to the tasks that the
            client has a module for.
        memory: the client's.
        fresh: task → the module that the client starts it with.
    """
    mine = {key.removeprefix(_OWN): value for key, value in memory.items() if key.startswith(_OWN)}
    there = {role(name) for name in mine}
    if job.phase == "evaluate":
        job = replace(job, tasks=tuple(task for task in job.tasks if task in there))
    else:
        for task in job.tasks:
            mine |= {} if task in there else fresh(task)
        job = replace(job, past=tuple(task for task in job.past if task in there))
    wanted = {*job.tasks, *job.past}
    return replace(job, arrays=job.arrays | {name: value for name, value in mine.items() if role(name) in wanted})


def keep(update: Update, job: Job, memory: Memory) -> tuple[Update, Memory]:
    """(the update without what stays, the memory with it) after training the Job that `bring` made."""
    stays = {name for name in update.arrays if role(name) not in ("", SHARED)}
    own = {name: value for name, value in job.arrays.items() if role(name) in {role(name) for name in stays}}
    moved = {name: value + update.arrays[name] if name in stays else value for name, value in own.items()}
    sent = {name: value for name, value in update.arrays.items() if name not in stays}
    return replace(update, arrays=sent), memory | {f"{_OWN}{name}": value for name, value in moved.items()}
