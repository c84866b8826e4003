"""What all sections of the config have in common, and those that decide no number."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Alarms(BaseModel):
    """What is told as soon as it shows. None changes what is learned; 0 switches a rule off."""

    model_config = STRICT

    on: bool = True
    """False: nothing is measured for them."""
    forgetting: Share = 0.2
    """A task's accuracy sank by so much since its best."""
    drift: Annotated[float, Field(ge=0)] = 6.0
    """A hospital's updates are so many times as long as the median hospital's, three rounds in a row."""
    opposed: Share = 0.6
    """Its updates point against the others', three rounds in a row: their mean cosine is below minus this."""
    divergence: Annotated[float, Field(ge=0)] = 3.0
    """A hospital's training loss is so many times that of guessing, and has risen in the stage."""
    labels: Share = 0.15
    """The merged model disagrees with a share of a hospital's training labels that is so far above what the other
    hospitals' labels of the same classes lead to expect."""
    duplicates: Share = 0.02
    """Share of a hospital's samples with an exact copy of another label, or on the other side of the test split."""
    gaps: Share = 0.05
    """Share of a hospital's test samples whose class it has no training sample of."""
