"""The figures of a run that a comparison can show: what they are called, how they are written, which way is better."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from fedcl import metrics, units
from fedcl.accounting.statement import up
from fedcl.comparison import leakage, protection
from fedcl.results import Result
from fedcl.run_dir import read_status

DEFAULT = ("average_accuracy", "forgetting", "worst_hospital_accuracy", "average_accuracy_inferred", "bytes", "seconds")

_LOWER = {
    *("forgetting", "forgetting_just_learned", "intransigence", "hospital_spread", "macro_forgetting"),
    *("spatial_forgetting", "temporal_forgetting", leakage.FIGURE),
}
_SHORT = {
    "average_accuracy": "accuracy",
    "forgetting": "forgetting",
    "worst_hospital_accuracy": "worst hospital",
    "learning_accuracy": "as learned",
    "average_auroc": "AUROC",
    "bytes": "sent",
    "seconds": "time",
    leakage.FIGURE: "membership AUC",
    "epsilon": "ε (terms below)",
    "epsilon_rdp": "ε by RDP (terms below)",
}
_TITLES = {leakage.FIGURE: "Membership inference, AUC"}
# Formulas of figures that are not metrics of a run.
MEANINGS = {
    leakage.FIGURE: "Loss threshold over training and test samples, or what `fedcl attack` found: a lower bound "
    "of what shows; 50 % is chance",
    "epsilon": "Of the unit that has spent most in the whole run, by PLD; void without its terms",
}
SOME = {leakage.FIGURE, "epsilon", "epsilon_rdp", "uncovered"}  # not every run has them
_COSTS = {
    "bytes": ("Sent in all", "bytes"),
    "bytes_up": ("Sent up", "bytes"),
    "bytes_down": ("Sent down", "bytes"),
    "seconds": ("Time", "seconds"),
    "memory_per_hospital": ("Kept by a hospital", "bytes"),
    "latency_ms": ("Latency", "ms"),
    "latency_start_ms": ("Latency before growth", "ms"),
    "training_examples": ("Samples trained on", "count"),
    "cumulative_compute": ("Of training from scratch", "times"),
    "parameter_growth": ("Parameters, by the first task's", "times"),
    "epsilon": ("ε of the whole run", "epsilon"),
    "epsilon_rdp": ("ε of the whole run by RDP", "epsilon"),
    "uncovered": ("Artefacts that nothing covers", "count"),
    "capacity": ("Capacity, by a net for each task", "share"),
}


class Figure(NamedTuple):
    """How one figure is shown."""

    name: str
    title: str
    kind: str  # share, bytes, seconds, ms, times, count, epsilon
    lower: bool  # whether less is better

    def text(self, value: float, spread: float = math.nan, sign: bool = False) -> str:
        """A mean, and ± its deviation where there is one; shares in per cent."""
        if not math.isfinite(value):
            return "–"
        if self.kind == "epsilon":
            return up(value) + (f" ± {spread:.2g}" if spread > 0.001 * value else "")  # below is the search for σ
        plus = "+" if sign and value > 0 else ""
        if self.kind in ("bytes", "seconds", "count"):
            write = {"bytes": units.size, "seconds": units.duration, "count": units.count}[self.kind]
            return f"{plus}{write(value)}" if value >= 0 else f"−{write(-value)}"
        scale = 100 if self.kind == "share" else 1
        digits = 1 if self.kind == "share" else 2
        shown = plus + f"{scale * value:.{digits}f}".replace("-", "−")
        return shown + (f" ± {scale * spread:.{digits}f}" if math.isfinite(spread) else "")

    @property
    def tested(self) -> bool:
        """Whether differences are tested: costs are what they are, and times hang on what else the machine does."""
        return self.kind == "share"

    @property
    def head(self) -> str:
        """What stands over a column: a short name and the unit."""
        base = self.name.removesuffix("_inferred")
        words = _SHORT.get(base, self.title.removesuffix(", task inferred"))
        words += ", task inferred" if self.name.endswith("_inferred") else ""
        unit = {"share": "%", "ms": "ms", "times": "×"}.get(self.kind, "")
        return f"{words} ({unit})" if unit else words


def find(name: str) -> Figure:
    """How a figure is shown; one that no table knows is a share of which more is better.

    Args:
        name: as `figures_of` calls it.
    """
    if name in _COSTS:
        title, kind = _COSTS[name]
        return Figure(name, title, kind, lower=True)
    base, inferred = name.removesuffix("_inferred"), name.endswith("_inferred")
    title = _TITLES.get(base, base.replace("_", " ").capitalize())
    title = metrics.DEFINITIONS[base][0] if base in metrics.DEFINITIONS else title
    return Figure(name, title + (", task inferred" if inferred else ""), "share", base in _LOWER)


def figures_of(result: Result) -> dict[str, float]:
    """All figures of a run by name."""
    known = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    seconds = float(read_status(result.path).get("seconds", math.nan))
    sent = {"bytes_up": result.bytes_up, "bytes_down": result.bytes_down, "bytes": result.bytes_up + result.bytes_down}
    return known | sent | {"seconds": seconds} | protection.figures(result.path) | leakage.read(result.path)


def names(found: dict[str, float]) -> str:
    """The names that a comparison can show, for an error message."""
    return json.dumps(sorted(found)).strip("[]").replace('"', "")
