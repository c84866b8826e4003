"""Flower's client processes without their two seconds of imports: forked from one that has done them.

Flower starts the command `flwr-clientapp`, which it finds on the PATH, for every message. A hospital's PATH begins with
a stub of that name, which hands its arguments to this process; a fork of it runs Flower's own command. Where this
process is gone, the stub becomes that command itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from importlib.metadata import entry_points
from pathlib import Path

from fedcl.runtime import flower

_COMMAND = "flwr-clientapp"
_STUB = """#!{python} -IS
import json, os, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect({place!r})
        door.sendall(json.dumps(sys.argv[1:]).encode())
except OSError:
    os.execv({command!r}, [{command!r}, *sys.argv[1:]])
"""


def install(folder: Path) -> tuple[Path, list[str]]:
    """Write the stub; returns the folder that the PATH is to begin with, and the command that runs this."""
    place, stubs = folder / "launcher", folder / "bin"
    stubs.mkdir()
    text = _STUB.format(python=sys.executable, place=str(place), command=flower.command(_COMMAND))
    (stubs / _COMMAND).write_text(text, encoding="utf-8")
    (stubs / _COMMAND).chmod(0o755)
    return stubs, [sys.executable, "-m", "fedcl.deploy.launcher", str(place)]


def main(place: str) -> None:
    """Import once, then fork for each connection; ends with the process that started it."""
    (command,) = entry_points(group="console_scripts", name=_COMMAND)
    run = command.load()
    import fedcl.runtime.relay  # noqa: F401  (what the bundle imports)

    Path(place).unlink(missing_ok=True)
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are buried by the system
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen()
        door.settimeout(1.0)
        while os.getppid() == parent:
            try:
                visitor, _ = door.accept()
            except TimeoutError:
                continue
            with visitor:
                visitor.settimeout(5.0)
                said = visitor.makefile("rb").read()
            if said and os.fork() == 0:
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(_run(run, [_COMMAND, *json.loads(said)]))


def _run(command: object, arguments: list[str]) -> int:
    """Flower's command, with these arguments: its exit code."""
    sys.argv = arguments
    try:
        command()  # type: ignore[operator]
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
