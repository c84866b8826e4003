"""What the net is made of, stage by stage: units, how much of them each task uses, and where the trunk's weights lie.

Sizes and uses go into metrics.jsonl. Where weights lay before and after a stage, how far each moved, and how important
it was for earlier tasks go into distributions.json as histograms, a few kB a stage whatever the net's size.
`before.safetensors` holds the weights from a stage's beginning to its end, so that a resumed run has them too. With
`run.keep_stages` the whole model after each stage is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedcl import growing, structure
from fedcl.contracts import FedclError, Memory, Params, Task, Update
from fedcl.models.dynamic_net import DynamicNet
from fedcl.plan import Plan
from fedcl.run_dir import RunDir
from fedcl.state import Group, State
from fedcl.store import Store

FILE = "distributions.json"
_BEFORE = "before.safetensors"
_BINS = 81
_SEEN = 2**26  # bytes of all clients' models of a stage, at most, that are kept for attacks
_HOSPITALS = 8  # so many hospitals' importances are averaged: each is as large as the net
_SAMPLE = 1_000_000  # values that a quantile is taken from


def stage_file(stage: int, group: int = -1) -> str:
    """Where a run keeps the model after a stage, counted from 0; of one group of clients, where there are several."""
    return f"stages/{stage}.safetensors" if group < 0 else f"stages/{stage}-{group}.safetensors"


def seen_file(stage: int, client: int) -> str:
    """Where a run keeps a client's model of a stage's last round, as the server can make it of the client's update."""
    return f"stages/{stage}-of-{client}.safetensors"


class Anatomy:
    """The observer of a run's nets; of the first group, where clients average in several.

    Args:
        run: where it writes.
        plan: for who has which task.
        net: for the layers' names.
        store: the clients' memories, where they are in this process; others on this machine are read from their files.
    """

    def __init__(self, run: RunDir, plan: Plan, net: DynamicNet, store: Store | None) -> None:
        self._run, self._plan, self._net = run, plan, net
        here = plan.config.run.runtime == "processes" or (
            plan.config.run.runtime == "ray" and not plan.config.run.address
        )
        self._store = store or (Store(run.path / "clients") if here else None)

    def begin(self, stage: int, state: State) -> None:
        """Keep the weights that a stage starts from, and their importance for what came before."""
        if state.round:
            return  # resumed: they are kept
        group = state.groups[0]
        kept = {f"weight/{name}": value for name, value in _weights(group.params).items()}
        if stage:
            kept |= {f"importance/{name}": value for name, value in self._importance(state).items()}
        self._run.save_tensors(_BEFORE, kept)

    def end(self, stage: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """Write down the stage's distributions; the records of the net's parts. Stage −1 is before the first."""
        current: list[Task] = []
        if stage >= 0:
            self._keep(stage, groups)
            self._distributions(stage, groups[0].params)
            if stage == len(self._plan.federation.schedule) - 1:
                (self._run.path / _BEFORE).unlink(missing_ok=True)
            current = self._plan.tasks(stage, [client for group in groups for client in group.clients])
        largest = max((group.params for group in groups), key=len)
        sizes = growing.sizes(self._net, [group.params for group in groups])
        records = [{"name": "parameters", "value": sum(sizes.values())}]
        records += [{"task": part, "name": "parameters", "value": count} for part, count in sizes.items()]
        for layer in self._net.growable(()):
            if layer.rows[0].name in largest:
                units = {"name": "units", "value": layer.units(largest)}
                records.append(units | {"task": "trunk", "note": layer.name.removeprefix("trunk.")})
        for task in current:
            for layer_name, units_used, share in uses(largest, task.id):
                about = {"task": task.id, "note": layer_name}
                records.append(about | {"name": "use", "value": share})
                if units_used >= 0:
                    records.append(about | {"name": "units", "value": units_used})
        return [{"phase": "model"} | record for record in records]

    def saw(self, stage: int, number: int, params: Params, update: Update) -> None:
        """Keep the model that an update makes of the parameters that were sent, where the config asks for it."""
        config = self._plan.config
        if not config.run.keep_updates or number < config.train.rounds - 1:
            return
        if sum(value.nbytes for value in params.values()) * config.federation.clients <= _SEEN:
            own = {name: params[name] + delta for name, delta in update.arrays.items()}
            self._run.save_tensors(seen_file(stage, update.client), params | own)

    def _keep(self, stage: int, groups: Sequence[Group]) -> None:
        """The merged models as they are now, where the config asks for them."""
        if not self._plan.config.run.keep_stages:
            return
        for index, group in enumerate(groups):
            self._run.save_tensors(stage_file(stage, index if len(groups) > 1 else -1), group.params)

    def _importance(self, state: State) -> Params:
        """Ω of each weight: the server's where it has it, or else the mean over the first clients' own."""
        group = state.groups[0]
        if found := _importances(group.method, group.params):
            return found
        sums: Params = {}
        clients = [client for client in group.clients if state.versions.get(client)][:_HOSPITALS]
        if self._store is None or not clients or self._plan.config.privacy.mechanism != "none":
            return {}  # a protected hospital's own stay there
        for client in clients:
            try:
                own = _importances(self._store.load(client, state.versions[client]), group.params)
            except FedclError:
                continue  # whoever needs that memory will say so
            own = structure.fit(own, group.params)  # who was away holds importances of the net as it was
            sums = {name: sums[name] + value if name in sums else value for name, value in own.items()}
        return {name: value / len(clients) for name, value in sums.items()}

    def _distributions(self, stage: int, params: Params) -> None:
        try:
            before = load_file(self._run.path / _BEFORE)
        except (OSError, SafetensorError):
            return  # a run of an earlier version, resumed
        try:
            told = json.loads((self._run.path / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        old, now = _aligned(before, "weight/", _weights(params))
        weights, _ = _aligned(before, "importance/", _weights(params))
        if len(old):
            told[str(stage)] = histograms(old, now, weights if len(weights) == len(old) else None)
            self._run.write(FILE, json.dumps(told))


def grown(changed: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Records of parts of the net that changed their size, from (old, new) parameters."""
    growth = {"phase": "growth", "name": "parameters"}
    return [growth | {"task": part, "value": new, "note": f"from {old}"} for part, (old, new) in changed.items()]


def uses(params: Params, task: str) -> list[tuple[str, float, float]]:
    """(layer, units in use or −1, share in use) of what a task has: its module's gate, and its masks over the trunk."""
    found = []
    start = f"gates.{task}."
    own = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
    if "mask" in own:
        open_ = (own["mask"] > 0).float()
        found.append(("module", float(open_.sum()), float((torch.sigmoid(own["logits"]) * open_).mean())))
    for name, value in sorted(own.items()):  # a checkpoint may bring them in another order
        layer, _, kind = name.removeprefix("trunk.").rpartition(".")
        if not name.startswith("trunk."):
            continue
        used = None
        if kind == "open":
            used = value > 0
        elif kind == "owner":  # of weights, not of units
            found.append((layer.replace("-", "."), -1.0, float((value > 0).float().mean())))
        elif kind == "logits":
            used = value > 0  # σ(s · logits) > ½
        if used is not None:
            found.append((layer.replace("-", "."), float(used.sum()), float(used.float().mean())))
    return found


def histograms(old: Tensor, now: Tensor, importance: Tensor | None) -> dict[str, Any]:
    """Densities [81] of weights before and after, of their moves, and of log10 Ω > 0 with the mean |move| of each bin.

    Args:
        old: weights [n] before.
        now: the same weights after.
        importance: Ω [n] ≥ 0 for what came before, if anybody kept it.
    """
    edge = 1.2 * max(_quantile(old.abs(), 0.999), _quantile(now.abs(), 0.999), 1e-12)
    move = now - old
    reach = 1.2 * max(_quantile(move.abs(), 0.995), 1e-12)
    told: dict[str, Any] = {
        "count": len(old),
        "distance": float(move.square().sum().sqrt()),
        "values": {"edge": edge, "before": _density(old, -edge, edge), "after": _density(now, -edge, edge)},
        "moves": {"edge": reach, "density": _density(move, -reach, reach)},
    }
    positive = importance > 0 if importance is not None else torch.zeros(0, dtype=torch.bool)
    if importance is not None and bool(positive.any()):
        size = importance[positive].log10()
        low, high = _quantile(size, 0.002), float(size.max())
        high = max(high, low + 1e-6)
        place = ((size - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
        counts = torch.bincount(place, minlength=_BINS).float()
        moved = torch.bincount(place, weights=move[positive].abs().double(), minlength=_BINS) / counts
        told["importance"] = {
            "low": low,
            "high": high,
            "zero": 1 - float(positive.float().mean()),
            "density": _rounded(counts / len(size) / ((high - low) / _BINS)),
            "moved": [value if value == value else None for value in _rounded(moved)],  # NaN: an empty bin
        }
    return told


def _importances(memory: Memory, params: Params) -> Params:
    """What methods with a quadratic penalty keep of each weight of the trunk; summed over consolidations kept apart."""
    found: Params = {}
    for key, value in memory.items():
        _, _, name = key.partition("/importance/")
        if name in params and name in _weights(params):
            whole = value.sum(0) if value.dim() > params[name].dim() else value
            found[name] = found[name] + whole if name in found else whole
    return found


def _weights(params: Params) -> Params:
    """The trunk's weights, without biases, norms and buffers."""
    return {
        name: value.detach()
        for name, value in params.items()
        if name.startswith("trunk.") and value.dim() > 1 and value.is_floating_point()
    }


def _aligned(before: Params, kind: str, now: Params) -> tuple[Tensor, Tensor]:
    """Weights that were there before and are still, as two rows: those that grew since have no past."""
    pairs = []
    for name, value in now.items():
        old = before.get(f"{kind}{name}")
        if old is not None and old.dim() == value.dim():
            common = tuple(slice(min(a, b)) for a, b in zip(old.shape, value.shape, strict=True))
            pairs.append((old[common].flatten().float(), value[common].flatten().float().cpu()))
    if not pairs:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])


def _quantile(values: Tensor, share: float) -> float:
    return float(values[:: max(len(values) // _SAMPLE, 1)].quantile(share))


def _density(values: Tensor, low: float, high: float) -> list[float]:
    counts = torch.histc(values, bins=_BINS, min=low, max=high)
    return _rounded(counts / len(values) / ((high - low) / _BINS))


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
