"""No protection: each task is simply trained. The lower bound that every method is held against."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedcl.contracts import Method


@dataclass(frozen=True)
class Finetune(Method):
    """Plain training."""

    records: ClassVar[Literal["none"]] = "none"
