"""What the folder of a server or of a hospital says: two small TOML files, read by the processes that work there."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedcl.config import Config
from fedcl.errors import FedclError
from fedcl.toml import dumps


class ServerNode(BaseModel):
    """server.toml: the machine that the hospitals connect to."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    host: str
    """Its name or address, as the hospitals reach it."""
    bind: str
    """The address that the SuperLink listens on."""
    port: int
    hospitals: int
    insecure: bool = False
    """No TLS and no authentication: for a rehearsal only."""


class HospitalNode(BaseModel):
    """hospital.toml: one hospital."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    index: int
    """Which client it is, from 0."""
    hospitals: int
    """How many there are."""
    superlink: str
    """host:port of the server."""
    port: int
    """On loopback, for the hospital's own processes."""
    name: str = ""
    """As results name it; empty is "hospital <index>"."""
    data: str = ""
    """Folder of the hospital's own data; empty where each hospital simulates its part of a public data set."""
    device: str = "cpu"
    threads: int = 1
    start_timeout: float = 300.0
    """Seconds for its worker to start and to load the data; one that takes longer is replaced."""
    insecure: bool = False
    mechanisms: list[str] = []
    """It answers only runs that have all of these of `fedcl list privacy`; with "secagg" no update goes out alone."""
    max_epsilon: float = 0.0
    """It answers only runs whose privacy.max_epsilon is at most this; 0 does not ask."""

    def refuses(self, config: Config) -> str:
        """Why the hospital has no part in a run with this config; "" if it has."""
        privacy = config.privacy
        if missing := [name for name in self.mechanisms if name not in privacy.mechanism.split("+")]:
            return f"this hospital answers only runs with {' and '.join(missing)}: its hospital.toml says so"
        if self.max_epsilon and not 0 < privacy.max_epsilon <= self.max_epsilon:
            asked = f"privacy.max_epsilon of {self.max_epsilon:g} or less"
            return f"this hospital answers only runs with a {asked}: its hospital.toml says so"
        return ""


Node = TypeVar("Node", ServerNode, HospitalNode)


def read(kind: type[Node], folder: Path) -> Node:
    """The node that a folder describes.

    Raises:
        FedclError: there is none, or something in it is wrong.
    """
    file = folder / ("server.toml" if kind is ServerNode else "hospital.toml")
    try:
        return kind.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise FedclError(f"{file}: {error.strerror}; `fedcl deploy init` writes it") from error
    except (ValueError, ValidationError) as error:
        raise FedclError(f"{file}: {error}") from error


def write(node: ServerNode | HospitalNode, folder: Path) -> None:
    """Write server.toml or hospital.toml."""
    name = "server.toml" if isinstance(node, ServerNode) else "hospital.toml"
    (folder / name).write_text(dumps(node.model_dump()), encoding="utf-8")
