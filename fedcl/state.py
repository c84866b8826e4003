"""All that the server remembers between rounds, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedcl.contracts import Memory, Params


@dataclass
class Group:
    """The clients that average together, and what they share."""

    clients: tuple[int, ...]
    params: Params = field(default_factory=dict)  # trunk, all task modules, gates and their masks
    rules: dict[str, Memory] = field(default_factory=dict)  # state of the aggregator ("") and of each task's merger
    method: Memory = field(default_factory=dict)  # the method's server half
    broadcast: Memory = field(default_factory=dict)  # what its parts last said …
    said: dict[str, int] = field(default_factory=dict)  # … and in which announcement, by part; the first is 1
    statistics: Params = field(default_factory=dict)  # of features, for inferring the task
    seen: list[int] = field(default_factory=list)  # global class ids met so far, sorted
    snapshots: dict[int, Params] = field(default_factory=dict)  # stage → merged model, while somebody still needs it

    @property
    def announced(self) -> int:
        """How many announcements there were."""
        return max(self.said.values(), default=0)

    def announce(self, news: Memory) -> None:
        """Say something to all clients; what comes before the first / of a key is the part that says it."""
        self.broadcast = self.broadcast | news
        self.said = self.said | dict.fromkeys((key.partition("/")[0] for key in news), self.announced + 1)

    def news(self, told: int) -> Memory:
        """All that those parts said which spoke since an announcement; a client that was away gets it later."""
        return {key: value for key, value in self.broadcast.items() if self.said[key.partition("/")[0]] > told}


@dataclass
class State:
    """Where the run stands."""

    groups: list[Group]
    stage: int = 0
    round: int = 0  # of the stage; all rounds done means that the stage is to be closed
    versions: dict[int, str] = field(default_factory=dict)  # client → its memory's version
    told: dict[int, int] = field(default_factory=dict)  # client → the last announcement that it has
    begun: list[int] = field(default_factory=list)  # clients that have trained in this stage
    late: dict[int, list[int]] = field(default_factory=dict)  # client → stages it still has to consolidate
    protection: dict[str, Any] = field(default_factory=dict)  # what was let out so far, see `protect`
    seconds: float = 0.0  # of earlier sittings

    def pack(self) -> tuple[Params, dict[str, Any]]:
        """(tensors, JSON) for a checkpoint."""
        tensors: Params = {}
        for index, group in enumerate(self.groups):
            stores: dict[str, Params] = {"params": group.params, "method": group.method}
            stores |= {"broadcast": group.broadcast, "statistics": group.statistics}
            stores |= {f"rules:{part}": memory for part, memory in group.rules.items()}
            stores |= {f"snapshot:{stage}": params for stage, params in group.snapshots.items()}
            for store, content in stores.items():
                tensors |= {f"{index}|{store}|{name}": value for name, value in content.items()}
        plain = {name: value for name, value in vars(self).items() if name != "groups"}
        plain["groups"] = [{"clients": g.clients, "said": g.said, "seen": g.seen} for g in self.groups]
        return tensors, plain

    @classmethod
    def unpack(cls, tensors: Params, plain: dict[str, Any]) -> State:
        """The reverse of `pack`."""
        groups = [Group(tuple(g["clients"]), said=g["said"], seen=g["seen"]) for g in plain["groups"]]
        for key, value in tensors.items():
            index, store, name = key.split("|", 2)
            group = groups[int(index)]
            kind, _, part = store.partition(":")
            if kind == "rules":
                group.rules.setdefault(part, {})[name] = value
            elif kind == "snapshot":
                group.snapshots.setdefault(int(part), {})[name] = value
            else:
                getattr(group, store)[name] = value
        rest = {name: value for name, value in plain.items() if name != "groups"}
        for name in ("versions", "told", "late"):  # JSON's keys are strings
            rest[name] = {int(client): value for client, value in rest[name].items()}
        return cls(groups=groups, **rest)
