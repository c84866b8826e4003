"""All clients in this process, one after another: a Flower Grid without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcl.runtime import compat

_FIRST_NODE = 1000


def clone(records: RecordDict) -> RecordDict:
    """New containers around the same values: mods may edit a message; array payloads are immutable bytes."""
    copy = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            copy[name] = record.copy()
        elif isinstance(record, ConfigRecord | MetricRecord):
            new = type(record)()
            for key, value in record.items():
                new[key] = list(value) if isinstance(value, list) else value  # type: ignore[assignment]
            copy[name] = new
    return copy


class InlineGrid(Grid):
    """Delivers a message when its reply is pulled, so that the server can merge replies one at a time.

    It cannot pre-empt: a timeout ends the waiting between two clients, not a client's training.
    """

    def __init__(self, app: ClientApp, clients: int, run_id: int = 1) -> None:
        compat.identify(run_id, node_id=1)
        self._app = app
        self._run = compat.empty_run(run_id)
        self._waiting: dict[str, Message] = {}
        self._contexts = {
            _FIRST_NODE + index: Context(
                run_id=run_id,
                node_id=_FIRST_NODE + index,
                node_config={"partition-id": index, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for index in range(clients)
        }

    def set_run(self, run: compat.Run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> compat.Run:
        """The one run."""
        return self._run

    def create_message(  # noqa: D102
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Fixed ones: 1000, 1001, and so on."""
        return list(self._contexts)

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        """Push, then pull until all have answered, in the order of the nodes."""
        identities = self.push_messages(messages)
        replies = [reply for identity in identities for reply in self.pull_messages([identity])]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

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
            reply = compat.failure(request, error)
        compat.stamp(reply)
        return reply


def run(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run the two apps here: returns when the ServerApp does."""
    grid = InlineGrid(client, clients)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server(grid, context)
