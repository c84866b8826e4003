"""What a process of a comparison does: `python -m fedcl.comparison.work DESCRIPTOR`, one run after another."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fedcl.runtime import work
from fedcl.runtime.worker import Outcome

if TYPE_CHECKING:
    from fedcl.config import Config

READY, INTERRUPTED = "ready", "interrupted"


def main(descriptor: int, do: Callable[[Config], object]) -> None:
    """Do the configs that come, JSON, until the parent is gone; each is answered by an Outcome without a reply."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs; a run has its own way to stop
    threading.Thread(target=work.die_with_parent, daemon=True).start()
    connection: Connection[Any, Any] = Connection(descriptor)
    import fedcl.simulation  # noqa: F401  (while the parent does something else)

    connection.send(READY)
    while True:
        try:
            (config,) = connection.recv()
        except EOFError:
            return
        connection.send(Outcome(None, None, run(config, do)))


def run(text: str, do: Callable[[Config], object]) -> str:
    """One run to its end: "" or why it did not come to it."""
    from fedcl.config import Config
    from fedcl.contracts import FedclError
    from fedcl.simulation import Interrupted

    try:
        do(Config.model_validate_json(text))
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except FedclError as error:
        return str(error)
    except Exception as error:  # one run must not take the others with it
        import traceback

        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


def _simulate(config: Config) -> None:
    from fedcl.simulation import simulate

    simulate(config)


if __name__ == "__main__":
    main(int(sys.argv[1]), _simulate)
