"""What a hospital insists on: a run without it gets no answer, whoever asks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedcl.config import Config
from fedcl.deploy import nodes
from fedcl.deploy.hospital import Desk
from fedcl.deploy.nodes import HospitalNode
from fedcl.runtime.exchange import IDENTIFY

PRIVATE = {"privacy": {"mechanism": "dp-sgd+secagg", "max_epsilon": 3.0}}


def _node(**insists: Any) -> HospitalNode:
    return HospitalNode(index=0, hospitals=3, superlink="127.0.0.1:1", port=1, **insists)


@pytest.mark.parametrize(
    ("insists", "config", "why"),
    [
        ({}, {}, ""),
        ({"mechanisms": ["secagg"]}, PRIVATE, ""),
        ({"mechanisms": ["secagg"]}, {}, "only runs with secagg"),
        ({"mechanisms": ["dp-sgd", "client-dp"]}, PRIVATE, "only runs with client-dp"),
        ({"max_epsilon": 3.0}, PRIVATE, ""),
        ({"max_epsilon": 2.0}, PRIVATE, "max_epsilon of 2 or less"),
        ({"max_epsilon": 2.0}, {}, "max_epsilon of 2 or less"),
    ],
)
def test_a_run_that_a_hospital_does_not_want_gets_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insists: dict[str, Any], config: dict[str, Any], why: str
) -> None:
    nodes.write(_node(**insists), tmp_path)
    asked = list[object]()
    monkeypatch.setattr(
        "fedcl.deploy.hospital.Worker",
        lambda *given: SimpleNamespace(
            process=SimpleNamespace(pid=0), ask=lambda *question: asked.append(question), connection=None
        ),
    )
    monkeypatch.setattr(Desk, "_prepare", lambda self, context: None)
    monkeypatch.setattr(Desk, "_hear", lambda self, seconds: SimpleNamespace(fatal=False, error=""))
    desk = Desk(tmp_path, SimpleNamespace(note=lambda *given: None))  # type: ignore[arg-type]
    text = json.dumps(Config.model_validate(config).model_dump())
    context: Any = SimpleNamespace(run_config={"config": text})
    message: Any = SimpleNamespace(metadata=SimpleNamespace(message_type="train"))
    outcome = desk.answer(message, context)
    assert why in outcome.error
    assert bool(asked) is not bool(why)
    message.metadata.message_type = IDENTIFY  # who asks learns the reason with its first Job
    assert desk.answer(message, context).error == ""
