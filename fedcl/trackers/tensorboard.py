"""TensorBoard: event files in RUN/tracking/tensorboard, for `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping

from fedcl.contracts import Tracked, Tracker


class TensorBoard(Tracker):
    """One event file a sitting; TensorBoard shows those of a folder as one run.

    Args:
        run: what is tracked.
    """

    needs = "tensorboard"

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))
        if not run.id:
            for name, value in run.settings.items():
                self._writer.add_text(f"config/{name}", value, 0)
        self.id = run.name

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars of these names."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, state: str) -> None:
        """Close the file."""
        self._writer.close()
