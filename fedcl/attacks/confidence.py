"""How sure a net is of a sample's label, on a scale on which members and non-members look Gaussian.

    φ(x, y) = log p_y / (1 − p_y) = z_y − log Σ_{c ≠ y} exp z_c

Carlini et al. 2022 (LiRA), section IV-C; φ from logits keeps what p_y = 1 − 1e-9 loses in float32. The cross-entropy
is log(1 + e^{−φ}), which falls with φ: a threshold on φ is the loss threshold of Yeom et al. 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """Measure φ, finite for finite logits.

    Args:
        logits: [..., n, C] with C ≥ 2; the logit of a closed class may be -inf, unless it is the label's or all but
            the label's are.
        y: labels [n], in 0…C − 1.

    Returns:
        φ [..., n], in the logits' precision.

    Raises:
        ValueError: shapes do not fit, or φ is not finite.
    """
    if logits.dim() < 2 or logits.shape[-1] < 2 or y.shape != logits.shape[-2:-1]:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(y.shape)}: not [..., n, C ≥ 2] and [n]")
    own = torch.nn.functional.one_hot(y, logits.shape[-1]).bool()
    of_label = logits.gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]
    phi = of_label - logits.masked_fill(own, -torch.inf).logsumexp(-1)
    if not bool(phi.isfinite().all()):
        raise ValueError("logits are infinite or NaN where φ needs them")
    return phi
