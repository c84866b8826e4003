"""Who holds which samples, and which of them are for training, validation and testing.

Pure functions on labels. `dirichlet` and `shards` consume a generator's draws as flwr-datasets does, so that
the same generator gives the same hospitals there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedcl import rng, sections
from fedcl.contracts import TEST, TRAIN, UNASSIGNED, VAL, FedclError, Samples


def iid(labels: np.ndarray, hospitals: int) -> np.ndarray:
    """Equal shares of the samples as they come: labels [N] → hospital [N]. Sizes differ by one at most."""
    return np.arange(len(labels)) * hospitals // len(labels)


def dirichlet(labels: np.ndarray, hospitals: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Each class is shared out in proportions p ~ Dir(α, …, α): labels [N] → hospital [N].

    Args:
        labels: class ids.
        hospitals: how many, ≥ 1.
        alpha: α, > 0; 0.1 gives most of a class to one hospital, 100 is close to `iid`.
        generator: one draw of proportions for each class, in the order of class ids.

    Source: Hsu, Qi and Brown 2019, arXiv 1909.06335; as `DirichletPartitioner` of flwr-datasets.
    """
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shares = np.cumsum(generator.dirichlet(np.full(hospitals, alpha)))
        owner[rows] = _cut(len(rows), (shares * len(rows)).astype(np.int64))
    return owner


def quantity(labels: np.ndarray, hospitals: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Hospital sizes ~ Dir(α, …, α), the same mix of classes everywhere: labels [N] → hospital [N]."""
    return dirichlet(np.zeros_like(labels), hospitals, alpha, generator)


def shards(labels: np.ndarray, hospitals: int, each: int, generator: np.random.Generator) -> np.ndarray:
    """Samples sorted by label are cut into hospitals × `each` shards, dealt at random: → hospital [N].

    Shards differ in size by one sample at most, and none is thrown away.

    Source: McMahan et al. 2017, arXiv 1602.05629, §3; as `ShardPartitioner` of flwr-datasets.
    """
    total = hospitals * each
    order = np.argsort(labels, kind="stable")
    holder = np.empty(total, np.int64)
    holder[generator.permutation(total)] = np.arange(total) // each
    owner = np.empty(len(labels), np.int64)
    owner[order] = holder[np.arange(len(labels)) * total // len(labels)]
    return owner


def follow(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Share out published samples as training samples were: labels [N], table [C, H] → hospital [N].

    A class goes to the hospitals in the proportions of its row, rounded; where nobody trains on it, evenly.
    """
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        row = table[label] if table[label].any() else np.ones_like(table[label])
        below = np.cumsum(row)
        owner[rows] = _cut(len(rows), (2 * below * len(rows) + below[-1]) // (2 * below[-1]))
    return owner


def assign(samples: Samples, rule: sections.Partition, hospitals: int, seed: int) -> np.ndarray:
    """The hospital of every sample: [N] int64, 0 ≤ hospital < `hospitals`.

    Published validation and test samples follow the training samples, class by class; except by `site`.

    Raises:
        FedclError: more hospitals than samples; `site` without sites, or with another number of hospitals.
    """
    if rule.name == "site":
        return _site(samples, hospitals)
    y, generator = samples.y, rng.stream(seed, "partition")
    published = _published(samples)
    # Shuffled first: a data set's order has meaning (writers, years), which must not become a hospital's.
    pool = generator.permutation(np.flatnonzero((published == TRAIN) | (published == UNASSIGNED)))
    if hospitals > len(pool):
        raise FedclError(
            f"--clients {hospitals}: there are only {len(pool)} samples to train on, and each hospital needs "
            f"{rule.min_samples} (partition.min_samples); take fewer clients"
        )
    rules: dict[str, Callable[[], np.ndarray]] = {
        "iid": lambda: iid(y[pool], hospitals),
        "dirichlet": lambda: dirichlet(y[pool], hospitals, rule.alpha, generator),
        "quantity": lambda: quantity(y[pool], hospitals, rule.alpha, generator),
        "shards": lambda: shards(y[pool], hospitals, rule.shards, generator),
    }
    owner = np.empty(len(y), np.int64)
    owner[pool] = rules[rule.name]()
    table = np.bincount(y[pool] * hospitals + owner[pool], minlength=len(samples.classes) * hospitals)
    for part in (VAL, TEST):
        rows = generator.permutation(np.flatnonzero(published == part))
        owner[rows] = follow(y[rows], table.reshape(-1, hospitals))
    return owner


def split(samples: Samples, owner: np.ndarray, data: sections.Data, seed: int) -> np.ndarray:
    """TRAIN, VAL or TEST for every sample: [N] int8.

    A published test or validation split of a data set (of a site) stands. Where there is none, `data.test` of
    a hospital's samples, then `data.val` of what is left, are drawn class by class; a class that a hospital
    has keeps a training sample there.
    """
    published, generator = _published(samples), rng.stream(seed, "split")
    origin = 0 if samples.origin is None else samples.origin
    site = 0 if samples.site is None else samples.site
    source = origin * (len(samples.sites) + 1) + site + np.zeros_like(owner)
    strata = (owner * (source.max() + 1) + source) * len(samples.classes) + samples.y
    free = published == UNASSIGNED
    parts = np.where(free, np.int8(TRAIN), published)
    for part, share in ((TEST, data.test), (VAL, data.val)):
        stands = np.isin(source, source[published == part])
        rows = np.flatnonzero((parts == TRAIN) & (free | ~stands))
        _draw(parts, rows, strata, share, part, generator)
    return parts


def check(owner: np.ndarray, parts: np.ndarray, rule: sections.Partition, hospitals: int) -> None:
    """Refuse a hospital that has too little to train on.

    Raises:
        FedclError: a hospital has fewer than `rule.min_samples` training samples.
    """
    sizes = np.bincount(owner[parts == TRAIN], minlength=hospitals)
    if sizes.min() >= rule.min_samples:
        return
    poor = np.flatnonzero(sizes < rule.min_samples)
    alpha = f"a larger --alpha (now {rule.alpha:g}), " if rule.name in ("dirichlet", "quantity") else ""
    raise FedclError(
        f"--partition {rule.name}: hospital {poor[0]} has {sizes[poor[0]]} training samples, fewer than "
        f"partition.min_samples = {rule.min_samples} (so have {len(poor)} of {hospitals}); take {alpha}"
        f"fewer --clients, another --seed, or a smaller partition.min_samples"
    )


def noisy(rule: sections.Partition, hospitals: int, seed: int) -> list[int]:
    """The hospitals whose labels are noisy."""
    return [int(k) for k in rng.stream(seed, "noise").permutation(hospitals)[: rule.noisy]]


def mislabel(
    samples: Samples, owner: np.ndarray, parts: np.ndarray, rule: sections.Partition, hospitals: int, seed: int
) -> np.ndarray:
    """The labels [N], wrong for a share of what noisy hospitals train on; test labels stay as they are.

    Raises:
        FedclError: there are not so many hospitals.
    """
    y, count = samples.y.copy(), len(samples.classes)
    if rule.noisy > hospitals:
        raise FedclError(
            f"partition.noisy = {rule.noisy}: of {hospitals} hospitals (--clients) 0 to {hospitals} can be"
        )
    generator = rng.stream(seed, "noise")
    generator.permutation(hospitals)  # who they are, see `noisy`
    for hospital in noisy(rule, hospitals, seed):
        rows = generator.permutation(np.flatnonzero((owner == hospital) & (parts != TEST)))
        rows = rows[: round(rule.noise * len(rows))]
        y[rows] = (y[rows] + generator.integers(1, count, len(rows))) % count
    return y


def _site(samples: Samples, hospitals: int) -> np.ndarray:
    if samples.site is None:
        raise FedclError("--partition site: the data set does not say where a sample comes from; take another one")
    if len(samples.sites) != hospitals:
        raise FedclError(
            f"--partition site: there are {len(samples.sites)} sites ({', '.join(samples.sites[:6])}), "
            f"but --clients is {hospitals}; take --clients {len(samples.sites)}, or another --partition"
        )
    return samples.site.astype(np.int64)


def _published(samples: Samples) -> np.ndarray:
    if samples.split is None:
        return np.full(len(samples.y), UNASSIGNED, np.int8)
    return samples.split.astype(np.int8)


def _cut(count: int, ends: np.ndarray) -> np.ndarray:
    """`count` samples in a row, hospital h up to ends[h]: → hospital [count]."""
    return np.searchsorted(ends[:-1], np.arange(count), side="right")


def _draw(
    parts: np.ndarray,
    rows: np.ndarray,
    strata: np.ndarray,
    share: float,
    to: int,
    generator: np.random.Generator,
) -> None:
    """Move a share of each stratum's rows, rounded, to another split, but never a stratum's last one."""
    rows = generator.permutation(rows)
    rows = rows[np.argsort(strata[rows], kind="stable")]
    _, first, counts = np.unique(strata[rows], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, counts)
    quota = np.minimum(np.floor(counts * share + 0.5), counts - 1)
    parts[rows[rank < np.repeat(quota, counts)]] = to
