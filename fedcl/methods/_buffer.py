"""A hospital's own memory of raw samples: what goes in, and what is drawn. It never leaves the client store.

Keys: x [M, *shape], y [M] (the output of its head), task [M] (its task's index), filled (how many), offered (how many
so far), and whatever else is kept of each sample. Shapes are fixed when the first sample comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcl.contracts import Batch, Context, Memory, Params


def check(size: int, bytes: int) -> None:
    """Raise ValueError for a buffer that cannot be."""
    if size < 0 or bytes < 0 or size + bytes == 0:
        raise ValueError(
            f"size = {size}, bytes = {bytes}: a buffer holds at least one sample; 0 is no limit of its kind"
        )


def room(size: int, bytes: int, row: Mapping[str, Tensor]) -> int:
    """How many samples a buffer holds: at most `size`, in at most `bytes` (0 is no limit).

    Args:
        size: samples.
        bytes: of all that is kept of them.
        row: what is kept, each [B, …].
    """
    each = sum(value[0].nbytes for value in row.values())
    by_bytes = max(bytes // each, 1) if bytes else size
    return min(size, by_bytes) if size else by_bytes


def rows(ctx: Context, batch: Batch, **more: Tensor) -> dict[str, Tensor]:
    """What is kept of each sample of a batch."""
    return {"x": batch.x, "y": batch.y, "task": torch.full_like(batch.y, ctx.task.index), **more}


def answered(ctx: Context, params: Params, batch: Batch) -> dict[str, Tensor]:
    """The same with the net's logits now, of all classes of a shared head; -inf where the task's has no such output."""
    new = rows(ctx, batch)
    logits = batch.x.new_full((len(batch.y), ctx.outputs), -torch.inf)
    if len(batch.y):
        found = ctx.each(params, batch.x, new["task"], whole=True).detach()
        logits[:, : found.shape[1]] = found
    return new | {"logits": logits}


def reservoir(ctx: Context, new: Mapping[str, Tensor], memory: Memory, size: int, bytes: int) -> Memory:
    """Offer samples one by one to a uniform sample of all that were ever offered (Vitter 1985, algorithm R).

    The n-th sample, counted from 1, takes slot r ~ U{0 … n − 1} if r < M; the first M fill the buffer.
    """
    if not len(new["y"]):
        return memory
    memory = _made(new, memory, room(size, bytes, new))
    held, count = len(memory["y"]), len(new["y"])
    n = int(memory["offered"]) + torch.arange(count)
    drawn = (torch.rand(count, generator=ctx.generator, dtype=torch.float64) * (n + 1)).long()
    return _put(torch.where(n < held, n, drawn), new, memory)


def balanced(ctx: Context, new: Mapping[str, Tensor], memory: Memory, size: int, bytes: int) -> Memory:
    """Offer samples one by one, a full buffer giving up a sample of the class that has most (Chrysakis & Moens 2020).

    A sample of a class that has most itself replaces one of its own with probability (held of it) / (offered of it).
    """
    if not len(new["y"]):
        return memory
    memory = _made(new, memory, room(size, bytes, new))
    held = len(memory["y"])
    labels = list(zip(memory["task"].tolist(), memory["y"].tolist(), strict=True))[: int(memory["filled"])]
    sizes, slots = Counter(labels), []
    for key in zip(new["task"].tolist(), new["y"].tolist(), strict=True):
        count = f"offered/{key[0]}-{key[1]}"
        memory[count] = memory.get(count, torch.tensor(0)) + 1
        if len(labels) < held:
            slots.append(len(labels))
            labels.append(key)
            sizes[key] += 1
            continue
        first, second = torch.rand(2, generator=ctx.generator, dtype=torch.float64).tolist()
        largest = [label for label, n in sorted(sizes.items()) if n == max(sizes.values())]
        if key in largest and first >= sizes[key] / int(memory[count]):
            slots.append(held)
            continue
        giver = key if key in largest else largest[int(first * len(largest))]
        own = [slot for slot, label in enumerate(labels) if label == giver]
        slots.append(own[int(second * len(own))])
        labels[slots[-1]] = key
        sizes.subtract([giver])
        sizes[key] += 1
    return _put(torch.tensor(slots), new, memory)


def independent(ctx: Context, new: Mapping[str, Tensor], memory: Memory, share: float) -> Memory:
    """Keep each sample with the same chance, whatever the others are: the buffer grows with every task."""
    chosen = torch.rand(len(new["y"]), generator=ctx.generator, dtype=torch.float64) < share
    kept = {key: value[chosen.to(value.device)] for key, value in new.items()}
    if "y" in memory:
        kept = {key: torch.cat([memory[key], value]) for key, value in kept.items()}
    return memory | kept | {"filled": torch.tensor(len(kept["y"]))}


def draw(ctx: Context, memory: Memory, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Samples drawn with replacement, and whether there are any: (each [count, …], 0-d bool)."""
    filled = memory["filled"].cpu()  # where the generator is
    index = (torch.rand(count, generator=ctx.generator, dtype=torch.float64) * filled).long()
    found = {k: v[index.to(v.device)] for k, v in memory.items() if v.dim() and "/" not in k}
    return found, filled > 0


def distance(logits: Tensor, kept: Tensor) -> Tensor:
    """Mean squared distance of logits [B, C] to kept ones, over the outputs that both have, a 0-d tensor."""
    both = logits.isfinite() & kept.isfinite()
    apart = logits.masked_fill(~both, 0.0) - kept.masked_fill(~both, 0.0)
    return apart.square().sum() / both.sum().clamp_min(1)


def loss(ctx: Context, params: Params, drawn: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of drawn samples, each by its own task's head, a 0-d tensor."""
    logits = ctx.each(params, drawn["x"], drawn["task"])
    return nn.functional.cross_entropy(logits, drawn["y"])


def _made(new: Mapping[str, Tensor], memory: Memory, size: int) -> Memory:
    """The memory with an empty buffer, where there is none yet; a copy, since it is written to."""
    if "y" in memory:
        return dict(memory)
    empty = {key: value.new_zeros(size, *value.shape[1:]) for key, value in new.items()}
    return memory | empty | {"filled": torch.tensor(0), "offered": torch.tensor(0)}


def _put(slots: Tensor, new: Mapping[str, Tensor], memory: Memory) -> Memory:
    """Write samples to slots [B], later ones over earlier ones; a slot past the end is nowhere."""
    held, count = len(memory["y"]), len(slots)
    last = torch.full((held,), -1).scatter_reduce(0, slots[slots < held], torch.arange(count)[slots < held], "amax")
    (target,) = torch.nonzero(last >= 0, as_tuple=True)
    kept = dict(memory)
    for key, value in new.items():
        source = last[target].to(value.device)
        kept[key] = memory[key].index_copy(0, target.to(value.device), value[source])
    kept["offered"] = memory["offered"] + count
    kept["filled"] = kept["offered"].clamp_max(held)
    return kept
