"""Labels read off the last bias, whose gradient is p − onehot(y) for each sample.

`mean_p` [C] is what the net says on average, mean softmax: the server measures it on samples of its own. On a net that
was trained on the data p depends on the label, and the histograms fail.
"""

from __future__ import annotations

import torch
from torch import Tensor


def label(db: Tensor) -> int:
    """The label of a batch of one: the only negative entry of db [C] (Zhao et al. 2020, iDLG, equation 4)."""
    return int(db.argmin())


def histogram(db: Tensor, mean_p: Tensor) -> Tensor:
    """Shares of the labels in a batch, [C], from the last bias's mean gradient db_c = p̄_c − π_c.

        π̂_c ∝ max(0, p̄_c − db_c)

    Wainakh et al. 2022 count labels with it. A delta of training is to be divided by −(learning rate × steps) first.
    """
    return _normalised(mean_p - db)


def fisher_histogram(fb: Tensor, mean_p: Tensor) -> Tensor:
    """The same from the last bias's empirical Fisher diagonal F_b[c] = π_c (1 − p_c)² + (1 − π_c) p_c².

        π̂_c ∝ max(0, (F_b[c] − p̄_c²) / (1 − 2 p̄_c))

    Raises:
        ValueError: a p̄_c is ½, where F_b[c] is ¼ whatever the labels are.
    """
    slope = 1 - 2 * mean_p
    if bool((slope.abs() < 1e-6).any()):
        raise ValueError("a class has a mean probability of ½: its Fisher information tells nothing of the labels")
    return _normalised((fb - mean_p.square()) / slope)


def _normalised(shares: Tensor) -> Tensor:
    """Uniform where nothing is left."""
    shares = shares.clamp(min=0)
    total = shares.sum()
    return shares / total if float(total) > 0 else torch.full_like(shares, 1 / len(shares))
