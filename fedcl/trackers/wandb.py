"""Weights & Biases: offline in RUN/tracking/wandb, unless WANDB_MODE says otherwise.

`wandb sync RUN/tracking/wandb/offline-run-*` uploads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fedcl.contracts import Tracked, Tracker


class Wandb(Tracker):
    """One W&B run for the whole run; offline, each sitting leaves a folder with the same run id.

    Args:
        run: what is tracked.
        project: name of the W&B project.
    """

    needs = "wandb"

    def __init__(self, run: Tracked, project: str = "fedcl") -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.id = run.id or run.identity
        run.folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=project,
            name=run.name,
            id=self.id,
            dir=str(run.folder),
            config=dict(run.settings),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(disable_git=True, disable_code=True, x_disable_stats=True, console="off"),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One row of the history; `step` is a figure of its own, since W&B's must never stand still."""
        self._run.log({"step": step, **figures})

    def end(self, state: str) -> None:
        """Close the W&B run."""
        self._run.finish(exit_code=0 if state == "finished" else 1)
