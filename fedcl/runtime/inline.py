"""All clients in this process, one after another: a Flower Grid without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcl.runtime import apps, compat, local
from fedcl.runtime.apps import Launch
from fedcl.runtime.local import LocalGrid, clone


class InlineGrid(LocalGrid):
    """Delivers a message when its reply is pulled, so that the server can merge replies one at a time.

    It cannot pre-empt: a timeout ends the waiting between two clients, not a client's training.
    """

    def __init__(self, app: ClientApp, clients: int, run_id: int = 1) -> None:
        super().__init__(clients, run_id)
        self._app = app
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Accept messages; returns their ids."""
        identities = []
        for message in messages:
            identity = compat.stamp(message)
            self._waiting[identity] = message
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        """The reply to the first of these that still waits: its client runs now."""
        for identity in message_ids:
            if (message := self._waiting.pop(identity, None)) is not None:
                return [self._deliver(message)]
        return []

    def _deliver(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        # The app gets copies, and its state is kept only if it succeeds, as under Ray and on a SuperNode.
        request = compat.request(message, clone(message.content))
        work = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=dict(context.node_config),
            state=clone(context.state),
            run_config=dict(context.run_config),
        )
        try:
            reply = self._app(request, work)
            self._contexts[context.node_id] = work
        except Exception as error:
            reply = compat.failure(request, f"{type(error).__name__}: {error}")
        compat.stamp(reply)
        return reply


def run(launch: Launch) -> None:
    """Run the two apps here: returns when the ServerApp does."""
    app = apps.client_app(launch.client())
    local.serve(apps.server_app(launch.clients, launch.serve), InlineGrid(app, launch.clients))
