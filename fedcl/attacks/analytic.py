"""Inputs read off a linear layer's gradient, delta or Fisher diagonal by division.

A layer z = W x + b whose output has the gradient δ has dW = δ xᵀ and db = δ: each row of dW is x times a number that db
tells (Phong et al. 2018, section 3; Geiping et al. 2020, proposition 3.1). Any factor on both, a learning rate or a
clipping, cancels. With several samples a row is a mixture of those that its unit was active for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layer_input(dw: Tensor, db: Tensor) -> Tensor:
    """The input of a linear layer, pooled over its rows by least squares: x̂ = Σ_j db_j dW_j / Σ_j db_j².

    Exact for one sample; else a mean of the samples, weighted by δ².

    Args:
        dw: gradient or delta of the weight [out, in].
        db: of the bias [out].

    Raises:
        ValueError: shapes do not fit, or db is zero.
    """
    _check(dw, db)
    if not bool(db.any()):
        raise ValueError("the bias has no gradient: the layer tells nothing of its input")
    unit = db / db.abs().max()  # squares of small gradients would vanish in float32
    return unit @ dw / unit.square().sum() / db.abs().max()


def row_inputs(dw: Tensor, db: Tensor, least: float = 1e-8) -> Tensor:
    """dW_j / db_j of each row with |db_j| > `least`, [rows, in]: candidates for single samples of a batch.

    Which candidate is whose is not told here: `images.nearest` takes it from the truth, an upper bound.
    """
    _check(dw, db)
    told = db.abs() > least
    return dw[told] / db[told, None]


def direction(dw: Tensor) -> Tensor:
    """The input's direction from a layer without bias: the top right singular vector of dW [out, in], unit length.

    Exact for one sample. Its sign is not told; a layer behind a ReLU has no negative inputs, which then settles it.
    """
    right: Tensor = torch.linalg.svd(dw, full_matrices=False).Vh
    return right[0]


def fisher_input(fw: Tensor, fb: Tensor) -> Tensor:
    """|x̂_i| = √max(0, Σ_j F_b[j] F_W[j, i] / Σ_j F_b[j]²), pooled over rows, from a layer's Fisher diagonal.

    As F_W[j, i] = mean δ_j² x_i² and F_b[j] = mean δ_j², this is |x| for one sample, and for more of them a weighted
    root-mean-square sample.

    Args:
        fw: diagonal of the weight [out, in]; may be noised, and so negative.
        fb: of the bias [out].

    Returns:
        [in], ≥ 0.

    Raises:
        ValueError: shapes do not fit, or fb is zero.
    """
    return layer_input(fw, fb).clamp(min=0).sqrt()


def _check(dw: Tensor, db: Tensor) -> None:
    if dw.dim() != 2 or db.shape != dw.shape[:1]:
        raise ValueError(f"weight {tuple(dw.shape)}, bias {tuple(db.shape)}: [out, in] and [out] are asked for")
