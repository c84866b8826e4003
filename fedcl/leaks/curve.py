"""ROC curves on two logarithmic axes: what an attack finds at few false positives is at the left. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from fedcl.report.charts import Series, curves
from fedcl.report.svg import Axis, Head, colour

Points = Sequence[tuple[float, float]]  # (false-positive rate, true-positive rate), rising


def roc(head: Head, found: Sequence[tuple[str, Points]]) -> Markup:
    """Curves by name, and the diagonal of guessing."""
    least = min((fpr for _, points in found for fpr, _ in points if fpr > 0), default=1e-3)
    low = min(math.floor(math.log10(least)), -2)
    series = [
        Series(name, [(math.log10(f), math.log10(t)) for f, t in points if f > 0 and t >= 10**low], colour(place))
        for place, (name, points) in enumerate(found)
    ]
    series.append(Series("guessing", [(low, low), (0.0, 0.0)], f"{colour(len(found))} d1"))
    across, up = (Axis(title, low, 0.0, _power, whole=True) for title in ("false positives", "true positives"))
    return curves(head, series, across, up)


def _power(exponent: float) -> str:
    share = 100 * 10**exponent
    return f"{share:g} %"
