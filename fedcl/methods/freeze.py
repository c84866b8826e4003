"""Train the trunk in the first stage only: with a module per task nothing is forgotten, by construction.

What is frozen is not in the optimiser at all, so neither momentum nor weight decay moves it by a bit, and it is
neither sent back nor averaged. Works with the task known or not, but a head that all tasks share goes on moving; keeps
no data; sends the parameters that moved.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedcl.contracts import Method


@dataclass(frozen=True)
class Freeze(Method):
    """Freeze the trunk from a stage on.

    Attributes:
        after: stages that train the trunk, ≥ 0; 0 keeps its starting weights.
    """

    after: int = 1
    records: ClassVar[Literal["none"]] = "none"

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"after = {self.after} must be ≥ 0")

    def trainable(self, name: str, stage: int) -> bool:
        """Trunk parameters until stage `after`, all others always."""
        return stage < self.after or not name.startswith("trunk.")
