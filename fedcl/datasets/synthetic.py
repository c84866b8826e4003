"""Made-up samples of any number, shape and number of classes: a prototype for each class, plus noise.

For tests, benchmarks and first steps; nothing to fetch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedcl.contracts import Samples

Count = Annotated[int, Field(ge=1)]


def build(
    root: Path,
    *,
    samples: Annotated[int, Field(ge=2)] = 5000,
    classes: Count = 10,
    shape: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 28, 28),
    noise: Annotated[float, Field(ge=0)] = 1.0,
    sites: Annotated[int, Field(ge=0)] = 0,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Samples:
    """X [samples, *shape] float32 around 0, classes of equal size in random order.

    Args:
        root: not used.
        samples: how many in all.
        classes: how many classes.
        shape: of a sample; one number is a table, three are an image.
        noise: deviation of a feature around its class's prototype, whose own features have deviation 1.
        sites: hospitals that the samples come from in turn, each with an offset of its own; 0 is none.
        seed: of the made-up data; the run's seed does not change them.
    """
    generator = np.random.default_rng([seed, samples, classes])
    y = generator.permutation(np.arange(samples) % classes)
    prototypes = generator.standard_normal((classes, *shape), np.float32)
    x = generator.standard_normal((samples, *shape), np.float32)
    x *= np.float32(noise)
    x += prototypes[y]
    names = tuple(f"class {k}" for k in range(classes))
    if not sites:
        return Samples(x, y, names, tabular=len(shape) == 1)
    site = generator.integers(sites, size=samples)
    x += np.float32(0.5) * generator.standard_normal((sites, *shape), np.float32)[site]
    titles = tuple(f"site {k}" for k in range(sites))
    return Samples(x, y, names, site=site, sites=titles, tabular=len(shape) == 1)
