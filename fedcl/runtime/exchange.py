"""Jobs out, answers in, over any Flower Grid: in the order of the clients, bounded in time, counted in bytes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

import fedcl
from fedcl.contracts import Answer, FedclError, Job
from fedcl.runtime import compat, wire

_TYPES = {"train": "train", "consolidate": "query.consolidate", "evaluate": "evaluate", "mask": "query.mask"}
IDENTIFY = "query.identify"
_SURE = 2  # questions that were answered: one alone may have been taken before the message


def versions() -> dict[str, str]:
    """What must agree between the server and its clients, and what is good to know."""
    return {"fedcl": fedcl.__version__, "flwr": metadata.version("flwr"), "torch": metadata.version("torch")}


class Roll:
    """Asks each node the same question, when it shows up, and again after an error.

    Args:
        grid: any of Flower's.
        kind: type of the message, which is empty.
    """

    def __init__(self, grid: Grid, kind: str) -> None:
        self._grid, self._kind = grid, kind
        self._asked: set[int] = set()
        self._open: dict[str, int] = {}  # question → node

    def look(self) -> Iterator[tuple[int, Message]]:
        """The replies that have come since: (node, reply)."""
        new = sorted(set(self._grid.get_node_ids()) - self._asked)
        questions = self._grid.push_messages([Message(RecordDict(), node, self._kind) for node in new]) if new else []
        self._open |= dict(zip(questions, new, strict=True))
        self._asked |= set(new)
        while replies := self._grid.pull_messages(list(self._open)) if self._open else ():
            for reply in replies:
                node = self._open.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    self._asked -= {node} if reply.has_error() else set()
                    yield node, reply


class Calls:
    """Finds messages that a node will never answer: it has answered what it was asked after them.

    A SuperNode does one message at a time. One that was killed and is back has forgotten what it was at, and where the
    SuperLink has not missed it meanwhile, nobody says so.

    Args:
        grid: one whose nodes do one message at a time.
        lull: seconds of silence between two questions; 0 asks none.
    """

    def __init__(self, grid: Grid, lull: float) -> None:
        self._grid, self._lull = grid, lull
        self._next = time.monotonic() + lull if lull else math.inf
        self._open: dict[str, str] = {}  # question → the message that it came after
        self._answered: Counter[str] = Counter()

    def lost(self, waiting: Mapping[str, int]) -> list[str]:
        """Of the messages that wait for their answers (message → node), those that wait in vain."""
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + self._lull
        for reply in list(self._grid.pull_messages(list(self._open))) if self._open else ():
            after = self._open.pop(reply.metadata.reply_to_message_id, None)
            if after is not None and not reply.has_error():
                self._answered[after] += 1
        silent = [message for message in waiting if message not in self._open.values()]
        questions = [Message(RecordDict(), waiting[message], IDENTIFY) for message in silent]
        self._open |= dict(zip(self._grid.push_messages(questions), silent, strict=True)) if silent else {}
        return [message for message in waiting if self._answered[message] >= _SURE]


class Exchange:
    """Talks to the clients of a Grid by their index.

    Args:
        grid: any of Flower's.
        clients: how many there are.
        poll: seconds between two looks for replies; 0 where the Grid waits by itself.
        patience: seconds to wait for the clients to show up.
        needed: how many must be there for the run to begin; 0 is all.
        lull: seconds of silence after which a client is asked whether it is at work; 0: the Grid loses no message.

    Raises:
        FedclError: too few showed up, or one runs another version of fedcl.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        poll: float = 0.05,
        patience: float = 300.0,
        needed: int = 0,
        lull: float = 0.0,
    ) -> None:
        self._grid, self._poll, self._lull = grid, poll, lull
        self._nodes: dict[int, int] = {}  # client → node
        self._roll = Roll(grid, IDENTIFY)
        self._trouble = ""  # the last reason why a node could not say who it is
        self._meet(clients, patience, needed or clients)

    def ask(self, jobs: Sequence[tuple[int, Job]], timeout: float) -> Iterator[Answer]:
        """Send all jobs; yield the answers by client index, as soon as their turn comes.

        A client that is silent for `timeout` seconds, raises, or sends what cannot be read gives an Answer with
        an error. Replies to anything else (a late one, a second one) are dropped.
        """
        if any(client not in self._nodes for client, _ in jobs):
            self._look()
        encoded: dict[int, ArrayRecord] = {}  # one encoding for all clients that get the same arrays
        messages: dict[int, Message] = {}
        for client, job in jobs:
            if client not in self._nodes:
                continue
            for arrays in (job.arrays, job.broadcast):
                if id(arrays) not in encoded:
                    encoded[id(arrays)] = wire.encode_arrays(arrays)
            content = wire.encode_job(job, encoded[id(job.arrays)], encoded[id(job.broadcast)])
            messages[client] = Message(content, self._nodes[client], _TYPES[job.phase], group_id=str(job.round))
        identities = dict(zip(messages, self._grid.push_messages(messages.values()), strict=True))
        end = time.monotonic() + timeout
        waiting = {identities[client]: self._nodes[client] for client in identities}  # in order
        calls, lost = Calls(self._grid, self._lull), set[str]()
        arrived: dict[str, Message] = {}  # out of turn
        for client, _ in jobs:
            if client not in identities:
                yield Answer(client, None, "not connected", 0, 0)
                continue
            identity = identities[client]
            while not (identity in arrived or identity in lost) and time.monotonic() < end:
                replies = list(self._grid.pull_messages(waiting))
                for reply in replies:
                    if (to := reply.metadata.reply_to_message_id) in waiting:
                        del waiting[to]
                        arrived[to] = reply
                if not replies:
                    time.sleep(self._poll)
                lost.update(calls.lost(waiting))
            waiting.pop(identity, None)
            if identity in lost and identity not in arrived:
                yield Answer(client, None, "its message was lost: it was started anew meanwhile", 0, 0)
                continue
            yield self._read(client, messages[client], arrived.pop(identity, None), timeout)

    def _read(self, client: int, sent: Message, reply: Message | None, timeout: float) -> Answer:
        down = wire.size(sent.content)
        if reply is None:
            return Answer(client, None, f"no answer within {timeout:g} s", down, 0)
        if reply.has_error():
            return Answer(client, None, compat.reason(reply), down, 0)
        up = wire.size(reply.content)
        try:
            update = wire.decode_update(reply.content)
        except (KeyError, ValueError, TypeError, FedclError) as error:
            return Answer(client, None, f"unreadable answer: {type(error).__name__}: {error}", down, up)
        if update.client != client:
            return Answer(client, None, f"answer in the name of client {update.client}", down, up)
        return Answer(client, update, "", down, up)

    def _meet(self, clients: int, patience: float, needed: int) -> None:
        """Wait until all clients are there; when patience ends, go on if there are enough of them."""
        end = time.monotonic() + patience
        while True:
            self._look()
            missing = sorted(set(range(clients)) - set(self._nodes))
            late = time.monotonic() >= end
            if not missing or (late and clients - len(missing) >= needed):
                return
            if late:
                why = f"; the last to fail said: {self._trouble}" if self._trouble else ""
                raise FedclError(f"clients {missing} of {clients} did not show up within {patience:g} s{why}")
            time.sleep(self._poll)

    def _look(self) -> None:
        """Learn which client a new node is; node ids say nothing (random on Ray)."""
        for node, reply in self._roll.look():
            if reply.has_error():
                self._trouble = compat.reason(reply)
            else:
                self._nodes[identity(reply.content)] = node


def identity(content: RecordDict) -> int:
    """The client that a node says it is.

    Raises:
        FedclError: it runs another version of fedcl.
    """
    record = content.config_records["identity"]
    client, theirs, ours = int(record["client"]), str(record.get("fedcl")), fedcl.__version__  # type: ignore[arg-type]
    if theirs != ours:
        raise FedclError(f"client {client} runs fedcl {theirs}, the server {ours}; install the same on both")
    return client
