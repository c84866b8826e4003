"""Keeps a few processes running, and their ids in a folder, until it is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

_PAUSE = 1.0  # seconds before a process that ended is started again
_GRACE = 10.0  # seconds between asking a process to end and ending it


class Stop(Exception):
    """SIGTERM or Ctrl-C."""


class Keeper:
    """Started processes: each one's id is in `<folder>/pids/<name>`, its output in `<folder>/logs/<name>.log`.

    Args:
        folder: of the node.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, tuple[Sequence[str], Mapping[str, str], bytes]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._read: dict[str, int] = {}  # bytes of the log that were looked through
        self._again: dict[str, float] = {}
        for name in ("pids", "logs"):
            (folder / name).mkdir(exist_ok=True)
        self.note("keeper", os.getpid())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)

    def note(self, name: str, pid: int) -> None:
        """Write down a process's id, so that it can be stopped by it."""
        (self.folder / "pids" / name).write_text(str(pid))

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], lost: bytes = b""
    ) -> subprocess.Popen[bytes]:
        """Start a process; `look` starts it again when it ends, and ends it where its log says that it is `lost`."""
        self._kept[name] = (arguments, environment, lost)
        with self._log(name).open("ab") as log:
            self._read[name] = log.tell()
            process = subprocess.Popen(
                arguments, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._processes[name] = process
        self.note(name, process.pid)
        return process

    def look(self) -> None:
        """Start again what has ended, after a pause; end what is lost."""
        for name, process in list(self._processes.items()):
            if process.poll() is None:
                if self._is_lost(name):
                    process.terminate()
                continue
            if name not in self._again:
                self._again[name] = time.monotonic() + _PAUSE
            elif time.monotonic() >= self._again[name]:
                del self._again[name]
                _end_group(process)
                self.start(name, *self._kept[name])

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _is_lost(self, name: str) -> bool:
        """Whether the log has said so since it was looked at last."""
        lost = self._kept[name][2]
        if not lost:
            return False
        with self._log(name).open("rb") as log:
            log.seek(self._read[name])
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read[name] += len(whole)
        return lost in whole

    def close(self) -> None:
        """End all processes, the last one first, and forget their ids."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # this is the end already
        for process in reversed(self._processes.values()):
            process.terminate()
        end = time.monotonic() + _GRACE
        for process in self._processes.values():
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end_group(process)
        for file in (self.folder / "pids").iterdir():
            file.unlink()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what a process has started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop
