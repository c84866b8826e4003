"""Every name of Flower that is not public API, and the switches that must be set before Flower is imported.

`tests/runtime/test_compat.py` names what fedcl leans on, so that a new Flower fails there first.
"""

from __future__ import annotations

import os
import re
import uuid


def stay_offline() -> None:
    """Switch off Flower's telemetry and update check, Ray's statistics and Hugging Face's hub.

    Flower reads its switches when it is imported, so this comes first in every process.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


stay_offline()

from flwr.app import Error, Message, RecordDict  # noqa: E402
from flwr.common.constant import ErrorCode  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

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
    "stay_offline",
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
