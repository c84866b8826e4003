"""Numbers as people read them."""

from __future__ import annotations

import math


def percent(share: float, digits: int = 1) -> str:
    """A fraction in per cent without the sign: 0.9731 → "97.3"; NaN is "–"."""
    return f"{100 * share + 0.0:.{digits}f}".replace("-0.0", "0.0") if math.isfinite(share) else "–"


def size(count: float) -> str:
    """Bytes: 219489 → "219 kB"."""
    return f"{_scaled(count, ('', 'k', 'M', 'G', 'T'))}B"


def count(number: float) -> str:
    """A number of things: 33162 → "33.2 k"."""
    return _scaled(number, ("", "k", "M", "G")).rstrip()


def duration(seconds: float) -> str:
    """12.34 → "12.3 s", 192 → "3:12 min", 7300 → "2:01 h"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def _scaled(number: float, prefixes: tuple[str, ...]) -> str:
    place = 0
    while number >= 999.5 and place < len(prefixes) - 1:
        number /= 1000
        place += 1
    text = f"{number:.3g}" if place else f"{number:.0f}"
    return f"{text} {prefixes[place]}"
