"""What a process of an attack does: `python -m fedcl.leaks.work DESCRIPTOR`, one model after another."""

from __future__ import annotations

import sys

from fedcl.comparison.work import main
from fedcl.config import Config


def _train(config: Config) -> None:
    from fedcl.leaks import shadows

    shadows.one(config)


if __name__ == "__main__":
    main(int(sys.argv[1]), _train)
