"""Differential privacy of whole hospitals: each update is clipped as one vector, and noise hides what it says.

u ← u · min(1, C / ‖u‖₂), with u all floating-point arrays of an update together, 0-d ones too; integers are left alone.
`server`: the server adds N(0, (σΔ)²) to the sum of the updates, which then all weigh the same, and is trusted to.
`hospital`: each hospital adds it to its own before it leaves, and need trust nobody. Δ = C where what a hospital sends
may be zeros (zero-out, Kairouz et al. 2021, definition 1.1), 2C where it may be anything (replace-one). That a hospital
takes part, and in which tasks, is not hidden: sums are divided by how many there are. A hospital is in every task: its
ε is sequential over rounds and tasks. With the few hospitals of a cross-silo federation the noise is large.

References:
    McMahan, Ramage, Talwar, Zhang. Learning Differentially Private Recurrent Language Models. ICLR 2018. arXiv
        1710.06963.
    Andrew, Thakkar, McMahan, Ramaswamy. Differentially Private Learning with Adaptive Clipping. NeurIPS 2021. arXiv
        1905.03871.
    Kairouz, McMahan, Song, Thakkar, Thakurta, Xu. Practical and Private (Deep) Learning without Sampling or Shuffling.
        ICML 2021. arXiv 2103.00039.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.accounting.accountant import Relation
from fedcl.accounting.calibration import least
from fedcl.accounting.release import Release
from fedcl.config import Config
from fedcl.contracts import Method, Params, Phase, Update
from fedcl.mechanism import Asked, Mechanism
from fedcl.methods import Combination
from fedcl.noise import Draw, added

_CLIP, _WITHIN = "clip", "within"
_FLOOR = 1e-12  # of a norm: an update of zeros stays one


@dataclass(frozen=True)
class ClientDP(Mechanism):
    """Clipped updates and Gaussian noise.

    Attributes:
        clip: C, > 0; with `adaptive` the one to begin with.
        noise: σ, the noise's standard deviation by the sensitivity Δ; 0 is chosen so that the run costs `epsilon`.
        epsilon: ε > 0 of the whole run for each hospital, at privacy.delta, where σ is not given.
        where: who adds the noise: the `server`, to the sum, or each `hospital`, to its own update.
        relation: of neighbouring federations: zero_out or replace_one.
        adaptive: C follows the `quantile` γ of the updates' norms, C ← C exp(−η (b̄ − γ)), with b̄ the noised share of
            updates shorter than C (Andrew et al. 2021, eq. 2). Needs the server's noise.
        quantile: γ, in (0, 1).
        rate: η, > 0.
        count_noise: half the deviation of b̄'s count by σ, > ½: it takes 1 / (2 · count_noise)² of the budget.
    """

    clip: float = 1.0
    noise: float = 0.0
    epsilon: float = 8.0
    where: Literal["server", "hospital"] = "server"
    relation: Literal["zero_out", "replace_one"] = "zero_out"
    adaptive: bool = False
    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float = 5.0
    unit: ClassVar[Literal["hospital"]] = "hospital"
    covers: ClassVar[frozenset[str]] = frozenset({"update", "upload"})
    unshown: ClassVar[frozenset[str]] = frozenset({_WITHIN})

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.noise < 0 or self.epsilon <= 0:
            raise ValueError(
                f"clip = {self.clip} and epsilon = {self.epsilon} must be > 0, noise = {self.noise} ≥ 0; 0 is chosen "
                "for epsilon"
            )
        if self.where not in ("server", "hospital") or self.relation not in ("zero_out", "replace_one"):
            raise ValueError(f"where = {self.where!r} must be server or hospital, relation zero_out or replace_one")
        if not 0 < self.quantile < 1 or self.rate <= 0 or self.count_noise <= 0.5:
            raise ValueError(
                f"quantile = {self.quantile} must be in (0, 1), rate = {self.rate} > 0, "
                f"count_noise = {self.count_noise} > 0.5"
            )
        if self.adaptive and self.where == "hospital":
            raise ValueError("adaptive clipping needs the count of all hospitals: take where = 'server'")

    def neighbours(self) -> Relation:
        """As its option says."""
        return self.relation

    @property
    def asks(self) -> bool:  # type: ignore[override]
        """How many updates were shorter than C."""
        return self.adaptive

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """The server's noise is on a sum."""
        return self.where == "server"

    def unfit(self, config: Config, method: Method) -> str:
        """What a server makes of uploads one by one would have no noise."""
        parts = method.parts if isinstance(method, Combination) else {"": method}
        if late := [name for name, part in parts.items() if "upload" in part.hooks() and part.sends != "round"]:
            return f"covers what training sends, and method {late[0]!r} uploads more at a task's end"
        if self.where == "server" and "server" in method.hooks():
            return (
                "adds its noise to sums of updates, and this method's server half reads uploads one by one; "
                "take where = 'hospital'"
            )
        if self.where == "server" and config.federation.compress != "none":
            return "bounds updates before they are compressed, which may make them longer; take compress = 'none'"
        if exact := [name for name, part in parts.items() if part.exact]:
            return f"clips updates and puts noise on all of them, which breaks what {exact[0]!r} promises"
        return ""

    def settled(self, cost: Callable[[ClientDP], float]) -> ClientDP:
        """σ for `epsilon`."""
        if self.noise:
            return self
        sigma = least(self.epsilon, lambda sigma: cost(replace(self, noise=sigma)))
        return replace(self, noise=sigma)

    def terms(self, state: Mapping[str, float]) -> dict[str, float]:
        """This round's C."""
        return {_CLIP: state.get(_CLIP, self.clip)}

    def seal(self, update: Update, phase: Phase, terms: Mapping[str, float], draw: Draw) -> Update:
        """Clip all that training sends as one vector; add a hospital's own noise."""
        if phase != "train":
            return update
        clip = terms[_CLIP]
        floats = {("arrays", n): v for n, v in update.arrays.items() if v.is_floating_point()}
        floats |= {("extras", n): v for n, v in update.extras.items() if v.is_floating_point()}
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in floats.values()))
        # What is not finite would be rejected, and show: it counts as zeros.
        scale = min(1.0, clip / max(norm, _FLOOR)) if math.isfinite(norm) else math.nan
        sealed = {
            f"{kind}/{name}": torch.zeros_like(value) if math.isnan(scale) else value * scale
            for (kind, name), value in floats.items()
        }
        if self.where == "hospital":
            sealed = added(sealed, self._deviation(clip), draw)
        parts: dict[str, dict[str, Tensor]] = {"arrays": dict(update.arrays), "extras": dict(update.extras)}
        for kind, name in floats:
            parts[kind][name] = sealed[f"{kind}/{name}"]
        told = {**update.metrics, _WITHIN: float(norm <= clip)} if self.adaptive else update.metrics
        weight = float(bool(update.arrays))  # also of who had no samples, and sends zeros into a sum
        return replace(update, arrays=parts["arrays"], extras=parts["extras"], weight=weight, metrics=told)

    def blur(self, sums: Params, terms: Mapping[str, float], draw: Draw) -> Params:
        """The sum of one part's deltas, and the server's noise."""
        if self.where == "hospital":
            return sums
        return added(sums, self._deviation(terms[_CLIP]), draw)

    def learn(self, state: Mapping[str, float], reports: Sequence[Mapping[str, float]], draw: Draw) -> dict[str, float]:
        """The next round's C."""
        within = [report[_WITHIN] for report in reports if _WITHIN in report]
        if not within:
            return dict(state)
        # What one hospital says moves the count by 1 at most, under both relations.
        count = sum(within) + float(draw({"": ()}, 2 * self.count_noise * self.noise)[""])
        move = -self.rate * (min(max(count / len(within), 0.0), 1.0) - self.quantile)
        return {**state, _CLIP: state.get(_CLIP, self.clip) * math.exp(move)}

    def _deviation(self, clip: float) -> float:
        """Standard deviation of the noise: σΔ; with a noised count beside it, so much more that both cost σ."""
        sensitivity = clip * (2 if self.relation == "replace_one" else 1)
        own = 1 - 1 / (2 * self.count_noise) ** 2 if self.adaptive else 1.0
        return self.noise * sensitivity / math.sqrt(own)

    def releases(self, asked: Asked, config: Config, method: Method) -> list[Release]:
        """One Gaussian release for each update of training."""
        if asked.phase != "train":
            return []
        return [
            Release(
                artefact="training updates",
                hospital=asked.client,
                task=next(iter(asked.tasks), ""),
                stage=asked.stage,
                round=asked.round,
                records=asked.records(*asked.tasks),
                unit="hospital",
                relation=self.relation,
                mechanism="clipping and noise",
                sigma=self.noise,
                clip=self.clip,
            )
        ]
