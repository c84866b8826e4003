"""Samples as a whole: what can be learned from, and several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcl.contracts import UNASSIGNED, FedclError, Samples


def check(name: str, samples: Samples, whole: bool = True) -> Samples:
    """Refuse what would only fail, or mislead, much later; where these are not all samples, a class may be rare."""
    x, y, count = samples.x, samples.y, len(samples.classes)
    columns = {"y": y, "site": samples.site, "split": samples.split, "origin": samples.origin}
    for column, values in columns.items():
        if values is not None and values.shape != (len(x),):
            raise FedclError(f"{name}: x has {len(x)} samples, but {column} has the shape {values.shape}")
    if len(x) == 0:
        raise FedclError(f"{name}: there are no samples")
    if y.dtype != np.int64:
        raise FedclError(f"{name}: y is {y.dtype}; give class ids as int64")
    if y.min() < 0 or y.max() >= count:
        raise FedclError(
            f"{name}: labels run from {y.min()} to {y.max()}, but there are {count} classes (0…{count - 1})"
        )
    if x.dtype not in (np.uint8, np.float32):
        raise FedclError(f"{name}: x is {x.dtype}; give uint8 (0…255) or float32")
    if x.dtype == np.float32:
        bad = np.isinf(x) if samples.missing else ~np.isfinite(x)
        if bad.any():
            flat = bad.reshape(len(x), -1)
            raise FedclError(
                f"{name}: x has {bad.sum()} values that are NaN or infinite, in {flat.any(0).sum()} of "
                f"{flat.shape[1]} columns and {flat.any(1).sum()} of {len(x)} samples; mend them, or set "
                "data.options.missing=true (missing=True in Python) where NaN means 'not measured'"
            )
    if samples.missing and x.ndim != 2:
        raise FedclError(f"{name}: missing values are for tables [N, features], x has the shape {x.shape}")
    sizes = np.bincount(y, minlength=count)
    if whole and sizes.min() < 2:
        rare = ", ".join(f"{samples.classes[k]!r} ({sizes[k]})" for k in np.flatnonzero(sizes < 2)[:5])
        raise FedclError(
            f"{name}: a class needs at least 2 samples, one to train and one to test; too few of: {rare}. "
            "Leave the class out, merge it with another one, or add samples"
        )
    return samples


def join(names: Sequence[str], parts: Sequence[Samples]) -> Samples:
    """One data set after another: class ids, sites and origins are counted on."""
    shapes = {name: part.x.shape[1:] for name, part in zip(names, parts, strict=True)}
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise FedclError(f"--dataset {'+'.join(names)}: the samples of a sequence need one shape, these have {each}")
    bytes_only = all(part.x.dtype == np.uint8 for part in parts)
    undecided = [np.full(len(part.y), UNASSIGNED, np.int8) for part in parts]
    sites = [part.site for part in parts if part.site is not None]
    sited = len(sites) == len(parts)
    titles = [name for part in parts for name in part.classes]
    if len(set(titles)) < len(titles):  # "0" of mnist is not "0" of kmnist
        titles = [f"{name} {own}" for name, part in zip(names, parts, strict=True) for own in part.classes]
    return Samples(
        x=np.concatenate([part.x if bytes_only else _unit(part.x) for part in parts]),
        y=_counted_on([part.y for part in parts], [len(part.classes) for part in parts]),
        classes=tuple(titles),
        site=_counted_on(sites, [len(part.sites) for part in parts]) if sited else None,
        sites=tuple(site for part in parts for site in part.sites) if sited else (),
        split=np.concatenate(
            [none if part.split is None else part.split for part, none in zip(parts, undecided, strict=True)]
        ),
        missing=any(part.missing for part in parts),
        tabular=any(part.tabular for part in parts),
        origin=np.repeat(np.arange(len(parts)), [len(part.y) for part in parts]),
        origins=tuple(names),
    )


def _counted_on(ids: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Ids of several sets, each starting where the one before ends."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([own + start for own, start in zip(ids, starts, strict=True)])


def _unit(x: np.ndarray) -> np.ndarray:
    """Grey levels 0…255 as 0…1; float32 stays as it is."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x
