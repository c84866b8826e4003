"""The folders that a federation's machines get: certificates, keys, start scripts, units, connection file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fedcl
from fedcl.deploy import keys, nodes
from fedcl.deploy.nodes import HospitalNode, ServerNode
from fedcl.errors import FedclError
from fedcl.runtime import flower

_RUNTIME_PORT = 9094  # Flower's default; each hospital of one machine needs its own
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def write(folder: Path, hospitals: int, host: str, port: int, data: str, insecure: bool) -> None:
    """Write a deployment.

    Args:
        folder: new, or empty.
        hospitals: how many.
        host: the server's name or address, as hospitals reach it.
        port: of the SuperLink.
        data: a hospital's own data folder, where "{}" stands for its index; "" is none.
        insecure: without TLS and keys.

    Raises:
        FedclError: the folder is in use, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FedclError(f"{folder} is not empty; choose another folder, or delete it")
        _write(folder, hospitals, host, port, data, insecure)
    except OSError as error:
        raise FedclError(f"{folder}: {error.strerror}") from error


def _write(folder: Path, hospitals: int, host: str, port: int, data: str, insecure: bool) -> None:
    local = host in _LOOPBACK
    server = ServerNode(
        host=host, bind="127.0.0.1" if local else "0.0.0.0", port=port, hospitals=hospitals, insecure=insecure
    )
    root = folder / "server"
    (root / "keys").mkdir(parents=True)
    nodes.write(server, root)
    facts: dict[str, Any] = server.model_dump() | {"version": fedcl.__version__, "data": data, "folder": folder.name}
    facts |= {"runtime": _RUNTIME_PORT, "fedcl": Path(sys.executable).parent / "fedcl", "superlink": f"{host}:{port}"}
    _script(root / "start.sh", "server.sh", facts)
    _connection(root, server)
    _unit(root, "fedcl-server", "server", facts)
    places = []
    for index in range(hospitals):
        place = folder / f"hospital-{index}"
        place.mkdir(mode=0o700)
        own = data.replace("{}", str(index))
        node = HospitalNode(
            index=index, hospitals=hospitals, superlink=f"{host}:{port}", port=_RUNTIME_PORT + index, data=own,
            insecure=insecure,
        )  # fmt: skip
        nodes.write(node, place)
        _script(place / "start.sh", "hospital.sh", facts | {"data": own})
        _unit(place, f"fedcl-hospital-{index}", f"hospital {index}", facts)
        places.append(place)
    for name in ("compose.yaml", "README.md"):
        (folder / name).write_text(_render(name, facts), encoding="utf-8")
    if not insecure:
        _certify(folder, root, places, host)


def _certify(folder: Path, root: Path, places: list[Path], host: str) -> None:
    authority = folder / "authority"
    authority.mkdir(mode=0o700)
    ca, ca_key = keys.authority(authority)
    keys.server(root, list(dict.fromkeys([host, "localhost", "127.0.0.1"])), ca, ca_key)
    for place in (root, *places):
        (place / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    for place in places:
        keys.node(place / "hospital.key", root / "keys" / f"{place.name}.pub")


def _connection(root: Path, server: ServerNode) -> None:
    """Flower's connection file: `fedcl simulate` on the server's machine goes to its own SuperLink."""
    home = root / "flower"
    home.mkdir()
    address = server.bind if server.bind != "0.0.0.0" else "127.0.0.1"
    secure = "insecure = true" if server.insecure else f'root-certificates = "{(root / "ca.crt").absolute()}"'
    text = f'[superlink]\ndefault = "{flower.CONNECTION}"\n\n[superlink.{flower.CONNECTION}]\n'
    (home / "config.toml").write_text(f'{text}address = "{address}:{server.port}"\n{secure}\n', encoding="utf-8")


def _script(path: Path, template: str, facts: dict[str, Any]) -> None:
    path.write_text(_render(template, facts), encoding="utf-8")
    path.chmod(0o755)


def _unit(place: Path, unit: str, what: str, facts: dict[str, Any]) -> None:
    named = {"unit": unit, "what": what, "folder": place.name}
    (place / f"{unit}.service").write_text(_render("unit.service", facts | named), encoding="utf-8")


def _render(name: str, facts: dict[str, Any]) -> str:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fedcl.deploy"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return templates.get_template(name).render(facts)
