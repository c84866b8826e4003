"""Jobs out, answers in, over any Flower Grid: in the order of the clients, bounded in time, counted in bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedcl.contracts import Answer, FedclError, Job
from fedcl.runtime import wire

_TYPES = {"train": "train", "consolidate": "query.consolidate", "evaluate": "evaluate"}
IDENTIFY = "query.identify"


class Exchange:
    """Talks to the clients of a Grid by their index.

    Args:
        grid: any of Flower's.
        clients: how many must be there.
        poll: seconds between two looks for replies.
        patience: seconds to wait for the clients to show up.
    """

    def __init__(self, grid: Grid, clients: int, poll: float = 0.05, patience: float = 300.0) -> None:
        self._grid = grid
        self._poll = poll
        self._nodes = self._meet(clients, patience)

    def ask(self, jobs: Sequence[tuple[int, Job]], timeout: float) -> Iterator[Answer]:
        """Send all jobs; yield the answers by client index, as soon as their turn comes.

        A client that is silent for `timeout` seconds, raises, or sends what cannot be read gives an Answer with
        an error. Replies to anything else (a late one, a second one) are dropped.
        """
        encoded: dict[int, ArrayRecord] = {}  # one encoding for all clients that get the same arrays
        messages = []
        for client, job in jobs:
            for arrays in (job.arrays, job.broadcast):
                if id(arrays) not in encoded:
                    encoded[id(arrays)] = wire.encode_arrays(arrays)
            content = wire.encode_job(job, encoded[id(job.arrays)], encoded[id(job.broadcast)])
            messages.append(Message(content, self._nodes[client], _TYPES[job.phase], group_id=str(job.round)))
        identities = list(self._grid.push_messages(messages))
        end = time.monotonic() + timeout
        arrived: dict[str, Message] = {}  # out of turn
        answered: set[str] = set()
        for (client, _), identity, message in zip(jobs, identities, messages, strict=True):
            while identity not in arrived and time.monotonic() < end:
                waiting = [other for other in identities if other not in arrived and other not in answered]
                replies = list(self._grid.pull_messages(waiting))
                for reply in replies:
                    if (to := reply.metadata.reply_to_message_id) not in answered:
                        arrived.setdefault(to, reply)
                if not replies:
                    time.sleep(self._poll)
            yield self._read(client, message, arrived.pop(identity, None), timeout)
            answered.add(identity)

    def _read(self, client: int, sent: Message, reply: Message | None, timeout: float) -> Answer:
        down = wire.size(sent.content)
        if reply is None:
            return Answer(client, None, f"no answer within {timeout:g} s", down, 0)
        if reply.has_error():
            return Answer(client, None, reply.error.reason or "unknown error", down, 0)
        up = wire.size(reply.content)
        try:
            update = wire.decode_update(reply.content)
        except (KeyError, ValueError, TypeError, FedclError) as error:
            return Answer(client, None, f"unreadable answer: {type(error).__name__}: {error}", down, up)
        if update.client != client:
            return Answer(client, None, f"answer in the name of client {update.client}", down, up)
        return Answer(client, update, "", down, up)

    def _meet(self, clients: int, patience: float) -> dict[int, int]:
        """Ask every node which client it is; node ids say nothing (they are random on Ray)."""
        end = time.monotonic() + patience
        nodes: dict[int, int] = {}
        while True:
            unknown = sorted(set(self._grid.get_node_ids()) - set(nodes.values()))
            questions = [Message(RecordDict(), node, IDENTIFY) for node in unknown]
            for reply in self._grid.send_and_receive(questions, timeout=max(end - time.monotonic(), 1.0)):
                if reply.has_content():
                    index = int(reply.content.config_records["identity"]["client"])  # type: ignore[arg-type]
                    nodes[index] = reply.metadata.src_node_id
            missing = sorted(set(range(clients)) - set(nodes))
            if not missing:
                return nodes
            if time.monotonic() >= end:
                raise FedclError(f"clients {missing} of {clients} did not show up within {patience:g} s")
            time.sleep(self._poll)
