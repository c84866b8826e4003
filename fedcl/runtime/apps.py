"""The ClientApp and the ServerApp: fedcl's client and server as Flower sees them, the same in every runtime."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcl.client import Client
from fedcl.contracts import Ask
from fedcl.runtime import wire
from fedcl.runtime.exchange import Exchange


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

    @app.query("identify")
    def identify(message: Message, context: Context) -> Message:
        identity = ConfigRecord({"client": int(context.node_config["partition-id"])})
        return Message(RecordDict({"identity": identity}), reply_to=message)

    return app


def server_app(clients: int, serve: Callable[[Ask], None]) -> ServerApp:
    """A ServerApp that meets its clients and hands `serve` the way to ask them."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(Exchange(grid, clients).ask)

    return app
