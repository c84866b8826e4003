"""What a finished run leaks: the attacks of `fedcl.attacks`, on the run's own pipeline.

records plan shadows work              the run again and again, each time with half of the candidates …
buffers membership                     … and which of them a model was trained on
moment observe reconstruction          what one update shows the server
canaries                               whether a claimed ε holds
curve pictures results page            what was found, as files and as a page
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedcl.leaks import canaries, membership, page, plan, reconstruction, results, shadows
from fedcl.leaks.plan import Asked, Models
from fedcl.leaks.reconstruction import Budget
from fedcl.leaks.results import Found
from fedcl.leaks.shadows import Progress

__all__ = ["WHAT", "Asked", "Effort", "Found", "Progress", "What", "attack"]

What = Literal["membership", "reconstruction", "audit"]
WHAT: tuple[What, ...] = ("membership", "reconstruction", "audit")


@dataclass(frozen=True)
class Effort:
    """How much is spent."""

    asked: Asked = Asked()  # noqa: RUF009 (frozen)
    budget: Budget = Budget()  # noqa: RUF009 (a tuple)
    trials: int = 600  # of an audit

    @classmethod
    def quick(cls) -> Effort:
        """A look: little is told by so few models."""
        return cls(Asked(models=6, candidates=100), Budget(steps=150, single=1, eight=1), trials=200)


def attack(
    run: Path,
    what: Sequence[What] = ("membership", "reconstruction"),
    effort: Effort | None = None,
    *,
    stage: int = 0,
    jobs: int = 0,
    notify: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Found:
    """Attack a finished run, and write what was found into its folder `attacks`.

    Models that are trained already are not trained again: the same call goes on where it was stopped.

    Args:
        run: the run directory.
        what: which attacks.
        effort: models, candidates, searches, trials.
        stage: whose first step is reconstructed from, from 0.
        jobs: models that are trained at a time; 0 is as many as the machine has room for, 1 is in this process.
        notify: told of each model.
        stop: asked now and then; true ends the training of models there.

    Returns:
        All results so far, as results.json has them.

    Raises:
        FedclError: the run cannot be attacked, or is not one for this attack.
    """
    target, effort = plan.target(run), effort or Effort()
    if "membership" in what:
        models = Models(target, effort.asked)
        if not shadows.train(models, jobs, notify, stop):
            return results.read(run)
        told, points = membership.measure(models)
        results.write_curves(run, points)
        results.write(run, "membership", told)
    if "reconstruction" in what:
        results.write(run, "reconstruction", reconstruction.measure(target, stage, effort.budget))
    if "audit" in what:
        results.write(run, "audit", canaries.measure(target, effort.trials))
    page.write(run)
    return results.read(run)
