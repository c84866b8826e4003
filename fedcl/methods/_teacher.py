"""The model of a task's end as a teacher: its parameters, and the tasks that it can speak of.

A hospital that sat out a task has a teacher that does not know it.
"""

from __future__ import annotations

import torch

from fedcl.contracts import Context, Memory, Params

_TEACHER, _KNOWN = "teacher/", "known/"


def taught(ctx: Context, params: Params) -> Memory:
    """What to keep of the merged model at the end of a task."""
    known = {f"{_KNOWN}{task.id}": torch.ones((), dtype=torch.bool) for task in (*ctx.past, ctx.task)}
    return known | {f"{_TEACHER}{name}": value.detach().clone() for name, value in params.items()}


def recall(memory: Memory) -> tuple[Params, frozenset[str]]:
    """(the teacher's parameters, the ids of the tasks that it knows)."""
    params = {key.removeprefix(_TEACHER): value for key, value in memory.items() if key.startswith(_TEACHER)}
    return params, frozenset(key.removeprefix(_KNOWN) for key in memory if key.startswith(_KNOWN))
