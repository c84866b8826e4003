"""The two thin apps that Flower starts on a deployment: they pass messages on to warm processes.

Nothing here may import torch: Flower starts a Python process for every message.

On the server's machine `server` hands the SuperLink's Grid to the waiting `fedcl simulate` (`runtime.superlink`); on a
hospital's, `client` hands each message to the hospital's worker (`deploy.hospital`). Both sockets are files in a folder
that only their owner can enter.
"""

from __future__ import annotations

from multiprocessing.connection import Client
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import fedcl

client = ClientApp()
server = ServerApp()
_FIRST = ("query.identify", "query.survey")  # what a hospital is asked before anything else


@client.train()
@client.evaluate()
@client.query("consolidate")
@client.query("mask")
@client.query("identify")
@client.query("survey")
def act(message: Message, context: Context) -> Message:
    """Let the hospital's worker answer; one of another version says only which it is."""
    if message.metadata.message_type in _FIRST and context.run_config["fedcl"] != fedcl.__version__:
        own = ConfigRecord({"client": int(context.node_config["partition-id"]), "fedcl": fedcl.__version__})
        return Message(RecordDict({"identity": own}), reply_to=message)
    place = str(context.node_config["worker"])
    try:
        connection = Client(place, family="AF_UNIX")
    except OSError as error:
        raise RuntimeError(
            f"this hospital's worker does not listen at {place} ({error}); is its start script running?"
        ) from error
    with connection:
        connection.send((message, context))
        outcome = connection.recv()
    if outcome.reply is None:
        raise RuntimeError(outcome.error)
    context.state = outcome.context.state
    return outcome.reply  # type: ignore[no-any-return]


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Do on the Grid what the waiting process says, until it says that it is done.

    Raises:
        RuntimeError: it has ended, or says that the run failed; Flower then marks the run as failed.
    """
    place = str(context.run_config["simulate"])
    with Client(place, family="AF_UNIX") as connection:
        connection.send({"run_id": context.run_id, "node_id": context.node_id})
        while True:
            try:
                what, given = connection.recv()
            except EOFError:
                raise RuntimeError("`fedcl simulate` has ended; the same command goes on with the run") from None
            if what == "done":
                if given:
                    raise RuntimeError(given)
                return
            connection.send(_done(grid, what, given))


def _done(grid: Grid, what: str, given: Any) -> tuple[bool, Any]:
    """(whether it went well, what came of it)."""
    try:
        if what == "nodes":
            return True, list(grid.get_node_ids())
        if what == "push":
            messages = [Message(content, node, kind, group_id=group) for content, node, kind, group in given]
            return True, list(grid.push_messages(messages))
        return True, list(grid.pull_messages(given))
    except Exception as error:  # the other side raises it
        return False, f"{type(error).__name__}: {error}"
