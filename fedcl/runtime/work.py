"""What a worker process does: `python -m fedcl.runtime.work DESCRIPTOR`, started by `fedcl.runtime.worker`."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcl.runtime.worker import Outcome, Setup, Survey

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


def main(descriptor: int) -> None:
    """Answer messages until the parent is gone; a Setup comes before the first, and is answered by "ready"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()
    connection: Connection[Any, Any] = Connection(descriptor)
    import torch  # noqa: F401  (while the parent does something else)

    app: ClientApp | None = None
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        if isinstance(item, Setup):
            app = build(item)
            connection.send("ready")
            continue
        if isinstance(item[0], Survey):
            outcome = answer(functools.partial(survey, item[0]), *item[1:])
        else:
            assert app is not None
            outcome = answer(app, *item)
        connection.send(outcome)
        if outcome.fatal:
            return


def build(setup: Setup) -> ClientApp:
    """The ClientApp for all clients of the federation that is mapped here."""
    import torch

    from fedcl import federation as federations
    from fedcl import holdings, methods
    from fedcl.client import Client
    from fedcl.config import Config
    from fedcl.runtime import apps, shared
    from fedcl.store import Store

    torch.set_num_threads(setup.threads)
    config = Config.model_validate_json(setup.config)
    config = config.model_copy(update={"run": config.run.model_copy(update={"device": setup.device})})
    match setup.data:
        case int(descriptor):
            federation = shared.read(descriptor)
        case str(path):
            federation = shared.read_path(Path(path))
        case None if setup.described:
            federation = holdings.build(config, setup.own, setup.client, json.loads(setup.described))
        case None:
            federation = federations.build(config)
    store = Store(Path(setup.store), durable=True)
    return apps.client_app(Client(config, federation, methods.build(config), store))


def survey(asked: Survey, message: Message, context: Context) -> Message:
    """What this hospital says of its own data."""
    from flwr.app import ConfigRecord, Message, RecordDict

    from fedcl import holdings
    from fedcl.config import Config
    from fedcl.runtime.exchange import versions

    config = Config.model_validate_json(asked.config)
    holding = holdings.describe(config, asked.own, asked.client, asked.name)
    said = ConfigRecord({"client": asked.client, "holding": holding.pack(), **versions()})
    return Message(RecordDict({"identity": said}), reply_to=message)


def answer(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Outcome:
    """Let the app answer; what it raises becomes an error, as on a SuperNode."""
    import torch

    try:
        return Outcome(app(message, context), context)
    except (torch.OutOfMemoryError, MemoryError) as error:
        first = str(error).partition("\n")[0]
        return Outcome(None, None, f"out of memory: {first}", fatal=True)  # a fresh process has all of it back
    except Exception as error:
        broken = isinstance(error, torch.AcceleratorError)  # after a CUDA fault nothing works any more
        return Outcome(None, None, f"{type(error).__name__}: {error}", fatal=broken)


def die_with_parent() -> None:
    """Wait for the lifeline to be closed, and end."""
    os.read(0, 1)  # nobody writes there: it returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
