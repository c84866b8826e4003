"""Choosing settings on validation data: trials that never hold a test sample, then one look at the test data.

Every trial is an ordinary run with `data.blind`: its test samples are dropped as soon as they are split off, and
validation samples stand in their place, so that no code of a trial could look at them. `space` says what may be
chosen, `study` chooses (optuna's TPE, Bergstra et al. 2011), `page` shows.
"""

from __future__ import annotations

from fedcl.tuning.space import Choice, Range, Space
from fedcl.tuning.study import Told, Tuned, tune

__all__ = ["Choice", "Range", "Space", "Told", "Tuned", "tune"]
