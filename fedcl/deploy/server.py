"""What runs on the server's machine: the SuperLink, with the hospitals' keys registered."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from fedcl.deploy import nodes
from fedcl.deploy.keeper import Keeper, Stop
from fedcl.deploy.nodes import ServerNode
from fedcl.errors import FedclError
from fedcl.runtime import flower

_START = 60.0  # seconds for the SuperLink to be healthy


def run(folder: Path) -> None:
    """Run a server until SIGTERM or Ctrl-C.

    Raises:
        FedclError: the port is in use, the SuperLink does not come up, or a key cannot be registered.
    """
    folder = folder.absolute()
    node = nodes.read(ServerNode, folder)
    environment = flower.environment(folder / "flower")
    _free(node)
    keeper = Keeper(folder)
    try:
        process = keeper.start("superlink", _superlink(folder, node), environment)
        _healthy(folder, node, process)
        if not node.insecure:
            _register(folder, environment)
        (folder / "pids" / "ready").write_text("")
        while True:
            keeper.look()
            time.sleep(0.5)
    except Stop:
        return
    finally:
        keeper.close()


def _superlink(folder: Path, node: ServerNode) -> list[str]:
    arguments = [flower.command("flower-superlink"), "--host", node.bind, "--port", str(node.port)]
    arguments += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
    if node.insecure:
        return [*arguments, "--insecure"]
    files = {"ca-certfile": "ca.crt", "certfile": "server.pem", "keyfile": "server.key"}
    tls = [word for name, file in files.items() for word in (f"--ssl-{name}", str(folder / file))]
    return [*arguments, *tls, "--enable-supernode-auth"]


def _free(node: ServerNode) -> None:
    """Raise unless the port can be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((node.bind, node.port))
        except OSError as error:
            raise FedclError(
                f"port {node.port} of {node.bind}: {error.strerror}; stop what uses it, or change `port` in "
                "server.toml and `superlink` in every hospital.toml"
            ) from error


def _healthy(folder: Path, node: ServerNode, process: subprocess.Popen[bytes]) -> None:
    """Wait for the SuperLink."""
    context = None if node.insecure else ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if context:
        context.check_hostname = False  # asked on the address that it is bound to, which may be no name of it
    address = "127.0.0.1" if node.bind == "0.0.0.0" else node.bind
    url = f"http{'' if node.insecure else 's'}://{address}:{node.port}/health"
    end, why = time.monotonic() + _START, ""
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5, context=context):
                return
        except OSError as error:
            why = str(error)
        time.sleep(0.1)
    raise FedclError(f"the SuperLink did not come up ({why}); what it said is in {folder / 'logs/superlink.log'}")


def _register(folder: Path, environment: dict[str, str]) -> None:
    """Let in the hospitals whose public keys lie here; each key is registered once, in the SuperLink's database."""
    done = folder / "registered"
    known = done.read_text(encoding="utf-8").split("\n\n") if done.exists() else []
    fresh = [key for key in sorted(folder.glob("keys/*.pub")) if key.read_text(encoding="utf-8").strip() not in known]
    running = {
        key: subprocess.Popen(
            [flower.command("flwr"), "supernode", "register", str(key), flower.CONNECTION],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for key in fresh
    }  # fmt: skip
    for key, process in running.items():
        said = process.communicate()[0]
        if process.returncode:
            raise FedclError(f"{key} cannot be registered: {said.strip()[-500:]}")
        known.append(key.read_text(encoding="utf-8").strip())
        done.write_text("\n\n".join(known), encoding="utf-8")
