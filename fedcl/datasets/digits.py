"""Handwritten digits, 1,797 real images of 8×8 in 10 classes; scikit-learn carries them, nothing to fetch.

The test half of the source.

References:
    Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository 1998.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedcl.contracts import Samples


def build(root: Path) -> Samples:
    """The digits: x [1797, 1, 8, 8] float32 in 0…1 (16 grey levels), no published test split."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = (raw.images / 16).astype(np.float32)[:, None]
    return Samples(x, raw.target.astype(np.int64), tuple(str(name) for name in raw.target_names))
