"""The ClientApp and the ServerApp: fedcl's client and server as Flower sees them, the same in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcl import methods
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import Ask, Event
from fedcl.federation import Federation
from fedcl.run_dir import RunDir
from fedcl.runtime import wire
from fedcl.runtime.exchange import Exchange, versions
from fedcl.store import Store


@dataclass(frozen=True)
class Launch:
    """What a way to run is given: every `runtime/<name>.py` has a `run(launch)`."""

    config: Config
    federation: Federation
    store: Store  # of clients that run in this process
    run: RunDir
    notify: Callable[[Event], None]
    serve: Callable[[Ask], None]  # the server, given the way to ask its clients

    @property
    def clients(self) -> int:
        """How many clients there are: one where data are pooled."""
        return len(self.federation.members)

    def client(self) -> Client:
        """A worker for all clients of this process."""
        return Client(self.config, self.federation, methods.build(self.config), self.store)

    def tell(self, text: str) -> None:
        """Show a line to whoever watches."""
        self.notify(Event("notice", 0, 0, {"text": text}))


def client_app(client: Client) -> ClientApp:
    """A ClientApp that acts for the client that a node says it is (`partition-id`)."""
    app = ClientApp()

    def act(message: Message, context: Context) -> Message:
        index = int(context.node_config["partition-id"])
        update = client.run(index, wire.decode_job(message.content))
        # Flower keeps a node's state in memory and moves it with every message: it holds a pointer only.
        context.state["memory"] = ConfigRecord({"version": update.version})
        return Message(wire.encode_update(update), reply_to=message)

    app.train()(act)
    app.evaluate()(act)
    app.query("consolidate")(act)
    app.query("mask")(act)

    @app.query("identify")
    def identify(message: Message, context: Context) -> Message:
        identity = ConfigRecord({"client": int(context.node_config["partition-id"]), **versions()})
        return Message(RecordDict({"identity": identity}), reply_to=message)

    return app


def server_app(
    clients: int,
    serve: Callable[[Ask], None],
    poll: float = 0.05,
    patience: float = 300.0,
    needed: int = 0,
    lull: float = 0.0,
) -> ServerApp:
    """A ServerApp that meets its clients and hands `serve` the way to ask them.

    Args:
        clients: how many there must be.
        serve: the server's loop.
        poll: seconds between two looks for replies; 0 where the Grid waits by itself.
        patience: seconds to wait for them to show up.
        needed: how many must be there then; 0 is all.
        lull: seconds of silence after which a client is asked whether it is at work; 0 where no message gets lost.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(Exchange(grid, clients, poll, patience, needed, lull).ask)

    return app
