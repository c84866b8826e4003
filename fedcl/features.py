"""What the model gets to see of a sample: missing values imputed and flagged, features normalised.

Nothing here learns from validation or test samples. X is [N, *shape] float32, changed in place; `hospitals`
are the row ranges of each hospital, `training` those of their training samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedcl.contracts import FedclError
from fedcl.sections import Data


def lacking(x: Tensor, training: Sequence[slice]) -> tuple[int, ...]:
    """The columns of x [N, F] in which some hospital's training samples miss a value."""
    there = torch.stack([x[rows].isnan().any(0) for rows in training]).any(0)
    return tuple(there.nonzero().flatten().tolist())


def impute(x: Tensor, hospitals: Sequence[slice], training: Sequence[slice], flagged: Sequence[int]) -> Tensor:
    """Fill NaN with the median of the hospital's own training samples: x [N, F] → flags [N, K] in 0, 1.

    The K columns in which any hospital's training samples lack a value get a flag, in all hospitals alike.
    A column that a hospital never measured stays NaN here; after `normalize` it is to be 0, the mean.
    """
    unknown = x.isnan()
    for rows, own in zip(hospitals, training, strict=True):
        median = x[own].nanquantile(0.5, dim=0)
        x[rows] = torch.where(unknown[rows], median, x[rows])
    return unknown[:, list(flagged)].float()


def normalize(x: Tensor, hospitals: Sequence[slice], training: Sequence[slice], how: object) -> dict[str, Any]:
    """Subtract a mean and divide by a deviation, per channel of an image or per feature of a table.

    Returns {"how": none, train, client or given} and, where all hospitals have the same, "mean" and "std", for JSON.

    Args:
        x: [N, *shape].
        hospitals: all rows of each hospital.
        training: the training rows of each hospital.
        how: `none`, `train`, `client`, or {mean, std}, of `data.normalize`.
    """
    if how == "train":
        mean, std = _moments([x[rows] for rows in training])
        x.sub_(mean).div_(std)
        return {"how": "train", "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    if how == "client":
        for rows, own in zip(hospitals, training, strict=True):
            mean, std = _moments([x[own]])
            x[rows] = (x[rows] - mean) / std
        return {"how": "client"}
    if isinstance(how, dict):
        mean, std = _given(x, "mean", how.get("mean", 0.0)), _given(x, "std", how.get("std", 1.0))
        x.sub_(mean).div_(std)
        return {"how": "given", "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    return {"how": "none"}


def method(data: Data, tabular: bool) -> object:
    """`data.normalize` with `auto` resolved: `train` for tables, `none` for images."""
    if data.normalize != "auto":
        return data.normalize
    return "train" if tabular else "none"


def measured(scaling: Mapping[str, Any]) -> list[str]:
    """What was measured on training samples and changes those of others, of `Federation.scaling`; in plain words."""
    scaled = ["means and deviations of features, by which samples are scaled"]
    imputed = ["medians of features, which stand for missing values"]
    return scaled * (scaling.get("how") in ("train", "client")) + imputed * bool(scaling.get("imputed"))


def bounds(data: Data, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """The least and the largest value that the settings let an image have, by channel [C, 1, 1] or [1, 1, 1].

    None where they do not say: of tables, and where mean and deviation are measured, which then are 0 and 1.
    Images of floating-point numbers are taken to be in 0…1, as those of bytes are.

    Args:
        data: the settings.
        shape: of a sample; three numbers are an image.
    """
    how = method(data, tabular=False)
    if len(shape) != 3 or how in ("train", "client"):
        return None
    x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).repeat(1, shape[0], 1, 1)
    normalize(x, [], [], how)
    return x[0], x[1]


def _moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation over all parts but NaN: [1, C, 1, …] each; a constant feature gets deviation 1."""
    dims = (0, *range(2, parts[0].ndim))
    count = sum((~part.isnan()).sum(dims, keepdim=True) for part in parts)
    total = sum(part.nansum(dims, keepdim=True, dtype=torch.float64) for part in parts)
    mean = torch.as_tensor(total / count)
    squares = sum(((part - mean.float()) ** 2).nansum(dims, keepdim=True, dtype=torch.float64) for part in parts)
    std = torch.as_tensor(squares / count).sqrt()
    return mean.nan_to_num(0.0).float(), torch.where(std > 0, std, 1.0).float()


def _given(x: Tensor, name: str, values: object) -> Tensor:
    given = torch.tensor(values, dtype=torch.float32).reshape(-1)
    if len(given) not in (1, x.shape[1]) or (name == "std" and (given <= 0).any()):
        raise FedclError(
            f"data.normalize.{name} = {values}: give one number, or one for each of the {x.shape[1]} "
            f"{'channels' if x.ndim > 2 else 'features'}{', above 0' if name == 'std' else ''}"
        )
    return given.reshape(1, -1, *[1] * (x.ndim - 2))
