"""Which hospital works on which device, and what each worker's environment is. Pure: no device is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcl.config import Run
from fedcl.contracts import FedclError


@dataclass(frozen=True)
class Slot:
    """Room for one worker process."""

    index: int
    device: str  # as the user names it: "cuda:1"
    inner: str  # as torch in the worker names it: "cuda:0", since it sees only its own
    environment: Mapping[str, str]  # what differs from ours, set before the worker's Python starts
    threads: int  # of torch


@dataclass(frozen=True)
class Placement:
    """The slots of a run, and the device that each client works on."""

    slots: tuple[Slot, ...]
    devices: tuple[str, ...]  # by client

    def table(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """(device, the hospitals there) for people."""
        held: dict[str, list[str]] = {}
        for name, device in zip(names, self.devices, strict=True):
            held.setdefault(device, []).append(name)
        return [(f"{d} × {sum(s.device == d for s in self.slots)}", ", ".join(_short(h))) for d, h in held.items()]


def present() -> list[str]:
    """The devices of this machine, as torch numbers them."""
    import torch

    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *mps]


def parse(devices: str, there: Sequence[str]) -> list[str]:
    """The devices that a setting names: "auto", or a list with commas.

    Raises:
        FedclError: one of them is not there.
    """
    if devices.strip() == "auto":
        return [name for name in there if name != "cpu"] or ["cpu"]
    names = ["cuda:0" if name.strip() == "cuda" else name.strip() for name in devices.split(",")]
    for name in names:
        if name not in there:
            raise FedclError(f"run.devices: {name!r} is not there; this machine has {describe(there)}")
    return list(dict.fromkeys(names))


def describe(there: Sequence[str]) -> str:
    """["cpu", "cuda:0", "cuda:1"] → "cpu, cuda:0..1"."""
    gpus = [name for name in there if name.startswith("cuda:")]
    rest = [name for name in there if name not in gpus]
    if len(gpus) > 1:
        gpus = [f"cuda:0..{len(gpus) - 1}"]
    return ", ".join([*rest, *gpus])


def place(
    run: Run,
    work: Sequence[float],
    there: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    cores: int = 0,
) -> Placement:
    """Slots on the devices that the config names, and each client on the device that is least loaded.

    Args:
        run: devices, workers, clients per device, threads.
        work: of each client, what it has to do, in any unit.
        there: the devices of this machine, see `present`.
        environment: ours, of which CUDA_VISIBLE_DEVICES counts: cuda:1 is the second of those.
        cores: of this machine; 0 asks the system.

    Raises:
        FedclError: a device is not there.
    """
    names = parse(run.devices or run.device, there)
    cores = cores or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots: list[Slot] = []
    for name in names:
        count = run.clients_per_device
        if name == "cpu":
            count = min(run.workers or max(cores // max(run.threads, 1), 1), len(work))
        elif len(names) == 1:
            count = min(count, len(work))
        for _ in range(count):
            threads = run.threads or max(cores // (count * len(names)), 1)
            slots.append(Slot(len(slots), name, _inner(name), _environment(name, threads, environment), threads))
    width = {name: sum(slot.device == name for slot in slots) for name in names}
    load = dict.fromkeys(names, 0.0)
    home = [""] * len(work)
    for client in sorted(range(len(work)), key=lambda client: -work[client]):  # the longest first
        device = min(names, key=lambda name: load[name] + work[client] / width[name])
        home[client] = device
        load[device] += work[client] / width[device]
    return Placement(tuple(slots), tuple(home))


def _inner(name: str) -> str:
    return "cuda:0" if name.startswith("cuda:") else name


def _environment(name: str, threads: int, ours: Mapping[str, str]) -> dict[str, str]:
    """What makes a worker see its own device only, and keeps its libraries from taking every core."""
    own = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    if match := re.fullmatch(r"cuda:(\d+)", name):
        visible = [part.strip() for part in ours.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
        own["CUDA_VISIBLE_DEVICES"] = visible[int(match[1])] if visible else match[1]
    else:
        own["CUDA_VISIBLE_DEVICES"] = ""
    return own


def _short(names: Sequence[str]) -> list[str]:
    return list(names) if len(names) <= 6 else [*names[:5], f"… {len(names) - 5} more"]
