"""FedWeIT: a base through a mask for each task, plus the task's own sparse weights, plus those of other hospitals.

Yoon et al. 2021 (ICML), eq. 2: hospital c sees each layer for its task t as

    θ = B ⊙ m^(t) + A^(t) + Σ_j α_j A_j

with the base B (the trunk), a mask m = σ(logits) over output units, sparse weights A, and attention α over the A_j
received of other hospitals. Eq. 3: + λ1 (Σ |m^(t)| + Σ_{i≤t} |A^(i)|) + λ2 Σ_{i<t} ‖ΔB ⊙ m^(i) + ΔA^(i)‖²: old weights
should stay what they were, and the old A move along to absorb how the base drifts.

Each round a hospital sends B where its mask is not closed, which it is for the share `closed` of a layer's units, and
the mask; elsewhere its step is exactly zero. The server averages over those that sent a unit; what nobody sends stays.
At a task's end each sends A, with exact zeros up to λ1, and before the next task all get everybody's latest A, once.
A travels, and lies at a hospital until it is used, as what is not zero and where that is, where that is smaller. B's
zero steps travel as zeros; federation.compress = "sparse" leaves them out.
m, A, α, the bias and the head stay at the hospital. Needs the task's identity; keeps no data, but a copy of the trunk
for each task to hold and `model.adapters` + 1 to answer with.

As the authors' code: the bias is the task's own, A starts at B / 3, λ1 also cuts A to exact zeros when answering, and
the mean is over those that sent, weighted by samples here (the paper divides by all). Otherwise than the paper: the
base has one state, so what a hospital would move under a closed mask is not kept; Δ is since the end of task i, on the
merged model, not since the last task; α starts at 0; where there are more other hospitals than `model.adapters`, the
next ones by index are taken, not random ones; layers that are no convolution or linear move in the first stage only.

References:
    Yoon, Jeong, Lee, Yang, Hwang. Federated Continual Learning with Weighted Inter-client Transfer. ICML 2021.
        arXiv 2003.03196.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedcl import flat, structure
from fedcl.config import Config, Masks
from fedcl.contracts import Batch, Context, Memory, Method, Moment, Params, Step, role
from fedcl.models.dynamic_net import needs_task, pruned

_Held = list[tuple[str, Tensor, Tensor]]  # of earlier tasks: (name of A, m [units, 1, …], weight to hold)


@dataclass(frozen=True)
class FedWeIT(Method):
    """FedWeIT.

    Attributes:
        strength: λ2, ≥ 0; the authors' 100, with a factor ½ in their code and none here.
        sparsity: λ1, ≥ 0, and the size up to which a weight of A counts as 0; the authors' 0.001.
        closed: share of a layer's units whose base is not sent, those of the smallest m, in [0, 1); the authors' 0.3.
        start: A starts at this share of B; the authors' 1/3.
        step: `proximal` applies λ2 after the optimiser's step in closed form, stable at every λ2; `explicit` adds it to
            the loss (needs about η λ2 < 0.5).
    """

    strength: float = 100.0
    sparsity: float = 0.001
    closed: float = 0.3
    start: float = 1 / 3
    step: Literal["proximal", "explicit"] = "proximal"
    sends: ClassVar[Literal["task", "round", "both"]] = "both"
    masks: ClassVar[Masks] = "adaptive"
    personal: ClassVar[bool] = True
    needs_past: ClassVar[bool] = True
    edits_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.sparsity < 0:
            raise ValueError(f"strength = {self.strength} and sparsity = {self.sparsity} must be ≥ 0")
        if not 0 <= self.closed < 1:
            raise ValueError(f"closed = {self.closed} must be in [0, 1)")
        if self.step not in ("proximal", "explicit"):
            raise ValueError(f"step = {self.step!r} must be one of proximal, explicit")

    def conventions(self) -> dict[str, object]:
        """λ1 and λ2 mean nothing without these."""
        return {"factor": 1.0, "reduction": "sum over weights", "since": "the task's end", "step": self.step}

    def unfit(self, config: Config) -> str:
        """A task's weights are of no use to who does not know the task, and what is sent has to be averaged."""
        if config.federation.aggregator != "fedavg":
            return "averages over those that sent a unit: federation.aggregator must be 'fedavg'"
        return needs_task(config.model, "adaptive")

    def trainable_past(self, name: str) -> bool:
        """Of earlier tasks, only A."""
        return name.startswith("gates.") and name.endswith(".adaptive")

    # ── at a hospital ────────────────────────────────────────────────────────────────────────────────────────────

    def new_module(self, client: int, module: Params, shared: Params, memory: Memory) -> Params:
        """A and the bias from the base, and what other hospitals sent: those after this one first, then the first."""
        like = {layer: module[f"{prefix}.adaptive"] for prefix, layer in _layers(module)}
        most = min(len(module[f"{prefix}.received"]) for prefix, _ in _layers(module))
        senders = {int(key.split("/")[1]) for key in memory if key.startswith("theirs/")} - {client}
        chosen = sorted(senders, key=lambda c: (c < client, c))[:most]
        theirs = [_unpacked(memory, f"theirs/{other}/", like) for other in chosen]
        filled = dict(module)
        for prefix, layer in _layers(module):
            filled[f"{prefix}.adaptive"] = self.start * _like(
                module[f"{prefix}.adaptive"], shared[f"trunk.{layer}.weight"]
            )
            if f"{prefix}.bias" in module:
                filled[f"{prefix}.bias"] = _like(module[f"{prefix}.bias"], shared[f"trunk.{layer}.bias"])
            filled[f"{prefix}.threshold"] = torch.full_like(module[f"{prefix}.threshold"], self.sparsity)
            slots = torch.zeros_like(module[f"{prefix}.received"])
            for slot, other in zip(slots, theirs, strict=False):
                slot.copy_(other[layer])
            filled[f"{prefix}.received"] = slots
        return filled

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """λ1 (Σ m + Σ |A|), and λ2 Σ ‖B ⊙ m^(i) + A^(i) − what it was‖² where it is explicit; a 0-d tensor."""
        sizes = [value.abs().sum() for name, value in params.items() if name.endswith(".adaptive")]
        gates = [torch.sigmoid(params[f"{prefix}.logits"]).sum() for prefix, _ in _layers(params)]
        total = self.sparsity * torch.stack([*sizes, *gates]).sum()
        if self.step == "explicit":
            for layer in _bases(params):
                base = params[f"trunk.{layer}.weight"]
                for name, gate, held in _held(ctx, layer, params, memory):
                    total = total + self.strength * (base * gate + params[name] - held).square().sum()
        return total

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """Hold earlier tasks' weights in closed form, and the base where the mask is closed or there is none.

        argmin ½ ‖B − B'‖² + ½ Σ ‖A_i − A_i'‖² + η λ2 Σ ‖B ⊙ m_i + A_i − θ_i‖²: with p = 2ηλ2 / (1 + 2ηλ2),
        B = (B' − p Σ m_i (A_i' − θ_i)) / (1 + p Σ m_i²) and A_i = A_i' − p (B ⊙ m_i + A_i' − θ_i).
        """
        edited, after, opened = dict(step.after), step.after, self._open(step.after)
        pull = 2 * ctx.lr * self.strength if self.step == "proximal" else 0.0
        pull = pull / (1 + pull)
        for name, value in after.items():
            layer, _, kind = name.removeprefix("trunk.").rpartition(".")
            if role(name) == "" and layer not in opened and ctx.stage > 0:
                edited[name] = ctx.start[name]
            elif role(name) == "" and layer in opened and kind == "weight":
                held = _held(ctx, layer, after, memory)
                above = sum((gate * (after[old] - target) for old, gate, target in held), torch.zeros_like(value))
                below = sum((gate.square() for _, gate, _ in held), value.new_zeros(()))
                base = torch.where(
                    _rows(opened[layer], value), (value - pull * above) / (1 + pull * below), ctx.start[name]
                )
                edited[name] = base
                for old, gate, target in held:
                    edited[old] = after[old] - pull * (base * gate + after[old] - target)
        return edited, memory

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Which units were sent; and whose modules are more than a start by now."""
        kept = {key: value for key, value in memory.items() if not key.startswith(("open/", "mine/"))}
        trained = {f"trained/{prefix.split('.')[1]}": torch.ones((), dtype=torch.bool) for prefix, _ in _layers(params)}
        return kept | trained | {f"open/{layer}": value for layer, value in self._open(params).items()}

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """The weights to hold, at the merged base; and A, to be sent, unless the hospital sat out the whole task."""
        kept = {key: value for key, value in memory.items() if not key.startswith(("open/", "mine/"))}
        if f"trained/{ctx.task.id}" not in memory:
            return kept
        mine: Params = {}
        for prefix, layer in _layers(params):
            if prefix.split(".")[1] == ctx.task.id:
                adaptive, base = params[f"{prefix}.adaptive"].detach(), params[f"trunk.{layer}.weight"].detach()
                gate = torch.sigmoid(params[f"{prefix}.logits"].detach())
                kept[f"gate/{ctx.task.id}/{layer}"] = gate
                kept[f"held/{ctx.task.id}/{layer}"] = base * _rows(gate, base) + adaptive
                mine[layer] = pruned(adaptive, self.sparsity)
        return kept | _packed(mine, f"mine/{ctx.client}/")

    def upload(self, memory: Memory) -> Memory:
        """After a round, the mask of what was sent; after a task, A."""
        return {key: value for key, value in memory.items() if key.startswith(("open/", "mine/"))}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """The mask of every layer or of none; and A with its places, in its own name, or no A."""
        weights = {
            name.removeprefix("trunk."): params[f"{name}.weight"]
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and name.startswith("trunk.")
        }
        opened = {key: value for key, value in upload.items() if key.startswith("open/")}
        like = {f"open/{name}": torch.empty(len(value), dtype=torch.bool) for name, value in weights.items()}
        if why := structure.unlike(opened, like) if opened else "":
            return why
        mine = {key.removeprefix(f"mine/{client}/"): value for key, value in upload.items() if key not in opened}
        if mine and flat.PLACES not in mine:
            return f"mine/{client}/{flat.PLACES} is missing"
        try:
            if mine:
                flat.dense(mine, flat.count(weights), torch.device("cpu"))
        except ValueError as error:
            return f"mine/{client}: {error}"
        return ""

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Everybody's A of the task that each ended last."""
        return memory | broadcast

    # ── at the server ────────────────────────────────────────────────────────────────────────────────────────────

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """(the share of samples behind each unit of this round, the A that came)."""
        news = {key.replace("mine/", "theirs/", 1): u[key] for _, u in uploads for key in u if key.startswith("mine/")}
        masks = [(weight, upload) for weight, upload in uploads if any(key.startswith("open/") for key in upload)]
        total = sum(weight for weight, _ in masks)
        shares: Memory = {}
        for weight, upload in masks:
            for key in (key for key in upload if key.startswith("open/")):
                shares[key] = shares.get(key, torch.zeros_like(upload[key], dtype=torch.float32)) + upload[key] * (
                    weight / total
                )
        return shares, news

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """The mean over those that sent a unit, from the mean over all."""
        if moment.round == 0:
            return params, state
        edited = dict(params)
        for key, share in state.items():
            name = f"trunk.{key.removeprefix('open/')}.weight"
            whole = _rows(torch.where(share > 0, share, 1.0), params[name])
            edited[name] = torch.where(whole < 1, before[name] + (params[name] - before[name]) / whole, params[name])
        return edited, state

    def _open(self, params: Params) -> dict[str, Tensor]:
        """By layer, the units [units] that a task trained now lets through, bool: all but the smallest gates."""
        found: dict[str, Tensor] = {}
        for prefix, layer in _layers(params):
            logits = params[f"{prefix}.logits"].detach()
            largest = logits.topk(len(logits) - int(self.closed * len(logits))).indices
            opened = torch.zeros_like(logits, dtype=torch.bool).index_fill(0, largest, True)
            found[layer] = opened | found[layer] if layer in found else opened
        return found


def _layers(params: Params) -> Iterator[tuple[str, str]]:
    """(`gates.<task>.trunk.<key>`, the trunk's layer) of each layer whose mask is among the parameters."""
    for name in params:
        parts = name.split(".")
        if len(parts) == 5 and parts[0] == "gates" and parts[4] == "logits":
            yield name.removesuffix(".logits"), parts[3].replace("-", ".")


def _bases(params: Params) -> list[str]:
    return sorted({layer for _, layer in _layers(params)})  # a set's order differs from process to process


def _held(ctx: Context, layer: str, params: Params, memory: Memory) -> _Held:
    """A layer's weights of earlier tasks that the hospital holds."""
    found: _Held = []
    for task in ctx.past:
        name, held = f"gates.{task.id}.trunk.{layer.replace('.', '-')}.adaptive", f"held/{task.id}/{layer}"
        if name in params and held in memory:
            found.append((name, _rows(memory[f"gate/{task.id}/{layer}"], memory[held]), memory[held]))
    return found


def _packed(layers: Params, prefix: str) -> Memory:
    """All layers' sparse weights as one vector's values and places.

    Always both, empty places where all entries are there: what comes later, by the same names, takes the place of both.
    """
    entries = flat.joined(layers)
    found = {flat.PLACES: torch.zeros(0, dtype=torch.int32)} | flat.sparse(entries, entries.nonzero()[:, 0])
    return {f"{prefix}{key}": value for key, value in found.items()}


def _unpacked(memory: Memory, prefix: str, like: Params) -> Params:
    """The reverse, by layer, like `like`."""
    found = {key.removeprefix(prefix): value for key, value in memory.items() if key.startswith(prefix)}
    device = next(iter(like.values())).device
    return flat.parted(flat.dense(found, flat.count(like), device), like)


def _rows(units: Tensor, like: Tensor) -> Tensor:
    """[units] → [units, 1, …], to go with a weight."""
    return units.view(-1, *[1] * (like.dim() - 1))


def _like(module: Tensor, value: Tensor) -> Tensor:
    return value.detach().to(module)
