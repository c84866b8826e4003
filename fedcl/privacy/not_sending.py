"""Not sending: what need not leave a hospital stays there.

No noise, and so no ε: what still leaves is as open as before, and the report of the run lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedcl.config import Config
from fedcl.contracts import Aggregator, Method, Phase, Update
from fedcl.infer import needs_statistics
from fedcl.mechanism import LABELS, Mechanism, is_count
from fedcl.merge import rules
from fedcl.methods import Combination
from fedcl.noise import Draw

_KEPT = ("memory",)  # bytes that a hospital keeps: nothing of what is in them


@dataclass(frozen=True)
class NotSending(Mechanism):
    """What stays.

    Attributes:
        figures: losses and accuracies on training, validation and own test data, and figures of labels.
        counts: of samples, also by class and by what is wrong with them; all hospitals then weigh the same.
        uploads: what methods send beside weights: Fisher diagonals, bases, prototypes. Methods that cannot do without
            are refused.
        modules: tasks' modules; needs federation.merger = "personal".
    """

    figures: bool = True
    counts: bool = True
    uploads: bool = True
    modules: bool = False

    @property
    def quiet(self) -> bool:  # type: ignore[override]
        """Counts stay."""
        return self.counts

    @property
    def mutes(self) -> bool:  # type: ignore[override]
        """Figures stay."""
        return self.figures

    def unfit(self, config: Config, method: Method) -> str:
        """What has to be sent all the same."""
        parts = method.parts if isinstance(method, Combination) else {"": method}
        if self.uploads and (senders := [name for name, part in parts.items() if "upload" in part.hooks()]):
            return f"keeps uploads here, and method {senders[0]!r} needs them; take uploads = false"
        if self.uploads and any(type(rule).measure is not Aggregator.measure for rule in rules(config)):
            return f"keeps uploads here, and federation.merger = {config.federation.merger!r} needs some"
        if self.uploads and config.model.infer != "auto" and needs_statistics(config.model):
            return f"keeps uploads here, and model.infer = {config.model.infer!r} needs sums of them; take 'entropy'"
        if self.modules and not rules(config)[1].stays:
            return "keeps modules here: take federation.merger = 'personal', or modules = false"
        if (self.figures or self.counts) and any(part.watches for part in parts.values()):
            return (
                "keeps figures and counts here, and growth is decided by mean validation loss; take figures = false "
                "and counts = false"
            )
        return ""

    def seal(self, update: Update, phase: Phase, terms: Mapping[str, float], draw: Draw) -> Update:
        """Leave out what stays."""
        hidden = {name for name in update.metrics if self.figures and name not in _KEPT and not is_count(name)}
        hidden |= {name for name in update.metrics if self.counts and is_count(name)}
        # Figures of labels are counts, and say something of them only together.
        hidden |= {name for name in update.metrics if (self.figures or self.counts) and name.startswith(LABELS)}
        told = {name: value for name, value in update.metrics.items() if name not in hidden}
        weight = float(update.weight > 0) if self.counts else update.weight
        return replace(update, metrics=told, weight=weight)
