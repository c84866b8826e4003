"""How near reconstructions are to the truth; a figure without the mean image's beside it says nothing.

Values are in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CAP = 120.0  # dB, where float32 ends
_K1, _K2 = 0.01, 0.03


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """10 log₁₀(1 / MSE) of each pair of [B, *shape], in dB up to `CAP`: [B]. 20 is a blurred likeness, 40 is a copy."""
    errors = (x.double() - truth.double()).flatten(1).square().mean(1)
    return (-10 * errors.clamp(min=10 ** (-CAP / 10)).log10()).clamp(max=CAP)


def ssim(x: Tensor, truth: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each pair of images [B, C, H, W] (Wang et al. 2004, equation 13): [B], 1 where equal.

        SSIM = mean (2 μ_x μ_y + C1) (2 σ_xy + C2) / ((μ_x² + μ_y² + C1) (σ_x² + σ_y² + C2))

    C1 = 0.01², C2 = 0.03², moments under a Gaussian window, the mean over places where the window fits. Smaller images
    get the largest odd window that fits.

    Args:
        x: reconstructions.
        truth: originals, like x.
        window: its width, odd.
        sigma: its standard deviation in pixels.
    """
    a, b = x.double(), truth.double()
    size = min(window, *x.shape[2:])
    size -= 1 - size % 2
    places = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
    bell = torch.exp(-places.square() / (2 * sigma**2))
    bell /= bell.sum()

    def mean(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1)).view(len(x), -1)

    first, second = mean(a), mean(b)
    joint = mean(a * b) - first * second
    spread = mean(a * a) - first.square() + mean(b * b) - second.square()
    light = (2 * first * second + _K1**2) / (first.square() + second.square() + _K1**2)
    return (light * (2 * joint + _K2**2) / (spread + _K2**2)).mean(1)


def matched(x: Tensor, truth: Tensor) -> Tensor:
    """Reconstructions [B, *shape] in the order that is nearest to the truth in total squared error.

    A gradient does not tell the order of a batch, so that taking it from the truth is fair.
    """
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(_distances(truth, x).cpu().numpy())
    return x[torch.as_tensor(order, device=x.device)]


def nearest(candidates: Tensor, truth: Tensor) -> Tensor:
    """For each sample of the truth [B, *shape] the candidate [K, *shape] nearest to it: an upper bound of an attack."""
    return candidates[_distances(truth, candidates).argmin(1)]


def baseline(population: Tensor, truth: Tensor) -> Tensor:
    """PSNR of the mean of a population [N, *shape] as the answer to each sample [B, *shape]: what needs no attack."""
    return psnr(population.double().mean(0).expand_as(truth), truth)


def _distances(truth: Tensor, x: Tensor) -> Tensor:
    """Squared errors [B, K]."""
    return torch.stack([(x - sample).double().flatten(1).square().sum(1) for sample in truth])
