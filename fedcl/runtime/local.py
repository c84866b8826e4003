"""What the Grids of this machine share: fixed nodes, one for each client, and their Flower state."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
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


class LocalGrid(Grid):
    """A Grid whose nodes 1000, 1001, … are clients 0, 1, … of this machine.

    Args:
        clients: how many.
        run_id: Flower's number of the run.
    """

    def __init__(self, clients: int, run_id: int = 1) -> None:
        compat.identify(run_id, node_id=1)
        self._run = compat.empty_run(run_id)
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

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Accept messages; returns their ids."""

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        """Replies to these that are there by now."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        """Push, then pull until all have answered or time is up; in the order of the nodes."""
        return send_and_receive(self, messages, timeout)


def send_and_receive(
    grid: Grid, messages: Iterable[Message], timeout: float | None, poll: float = 0.0
) -> Sequence[Message]:
    """What Flower's method of that name is to do, by a Grid's own push and pull."""
    missing = set(grid.push_messages(messages))
    end = time.monotonic() + (float("inf") if timeout is None else timeout)
    replies: list[Message] = []
    while missing and time.monotonic() < end:
        found = grid.pull_messages(sorted(missing))
        missing -= {reply.metadata.reply_to_message_id for reply in found}
        replies += found
        time.sleep(0 if found else poll)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def serve(server: ServerApp, grid: Grid, run_id: int = 1) -> None:
    """Run a ServerApp on a Grid: returns when it does."""
    server(grid, Context(run_id=run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}))
