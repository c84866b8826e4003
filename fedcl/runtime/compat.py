"""Every name of Flower that is not public API.

`tests/runtime/test_compat.py` names what fedcl leans on, so that a new Flower fails there first.
"""

from __future__ import annotations

import re
import uuid

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

telemetry.FLWR_TELEMETRY_ENABLED = "0"  # for programs that have imported Flower before us

__all__ = [
    "APP_CRASHED",
    "APP_RAISED",
    "Run",
    "empty_run",
    "failure",
    "identify",
    "reason",
    "request",
    "stamp",
    "unavailable",
]

APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
APP_CRASHED = int(ErrorCode.CLIENT_APP_CRASHED)


def identify(run_id: int, node_id: int) -> None:
    """Say who this process is; Flower cannot build an instruction Message without."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 0
    TaskIdentity.node_id = node_id


def empty_run(run_id: int) -> Run:
    """The Run record that a Grid must be able to show."""
    return Run.create_empty(run_id)


def stamp(message: Message) -> str:
    """Give a message its id, as the SuperLink would, and return it."""
    identity = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = identity
    return identity


def request(message: Message, content: RecordDict) -> Message:
    """A message as its receiver gets it: the same metadata around other content."""
    return Message(metadata=message.metadata, content=content)  # type: ignore[call-overload,no-any-return]


def reason(reply: Message) -> str:
    """Why an error reply says that it failed, without what Flower wraps around it."""
    said = reply.error.reason or "unknown error"
    wrapped = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", said, re.DOTALL)
    if not wrapped:
        return said
    return wrapped[2] if wrapped[1] == "RuntimeError" else f"{wrapped[1]}: {wrapped[2]}"


def unavailable(reply: Message) -> bool:
    """Whether an error reply says that its node was away, which may pass."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def failure(request: Message, reason: str, code: int = APP_RAISED) -> Message:
    """The error reply that Flower sends when a ClientApp raises, or when its process ends."""
    return Message(Error(code, reason), reply_to=request)
