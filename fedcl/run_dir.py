"""A run is a directory: config, environment, status, split, metrics, checkpoints, model. The same command resumes it.

Every file is written beside its place and moved there, so that a kill at any moment leaves the old or the new one.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import secrets
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fedcl.config import Config
from fedcl.contracts import FedclError, Params
from fedcl.store import read_tensors
from fedcl.toml import dumps

_PACKAGES = ("fedcl", "torch", "torchvision", "flwr", "numpy", "scikit-learn")


class RunDir:
    """The directory of one run, locked while this object is open.

    Args:
        path: where it lies.
        config: what runs there.
        fresh: move a run that is there already aside, to `<path>~1`, `<path>~2`, …

    Raises:
        FedclError: the directory cannot be written, holds another config's run, or is in use.
    """

    def __init__(self, path: Path, config: Config, fresh: bool = False) -> None:
        self.path = path
        try:
            if fresh and path.exists():
                _lock(path / ".lock").close()  # nobody is at work there
                number = next(n for n in range(1, 1_000_000) if not path.with_name(f"{path.name}~{n}").exists())
                path.rename(path.with_name(f"{path.name}~{number}"))
            path.mkdir(parents=True, exist_ok=True)
            _check(path, config)
            self._lock = _lock(path / ".lock")
            self._metrics = (path / "metrics.jsonl").open("ab")
        except OSError as error:
            raise FedclError(f"run directory {path}: {error.strerror}; choose another --output") from error
        self.listeners: list[Callable[[list[dict[str, Any]]], None]] = []  # told of records as they are written
        self.started = time.monotonic()
        self.saving = 0.0  # seconds that checkpoints have cost
        self.lost = 0  # checkpoints that were there and could not be used, where that was all of them

    def describe(self, config: Config, federation: dict[str, Any], rows: Iterable[tuple[Any, ...]]) -> None:
        """Write what is known before the first round: config, environment, who has what."""
        self.write("config.toml", dumps(config.model_dump()))
        versions = {name: _version(name) for name in _PACKAGES}
        machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
        environment: dict[str, Any] = {
            "python": platform.python_version(),
            "packages": versions,
            "machine": machine,
        }
        environment["command"] = ["fedcl", *sys.argv[1:]]
        self.write("env.json", json.dumps(environment, indent=2))
        self.write("federation.json", json.dumps(federation))
        quoted = functools.cache(_quoted)
        lines = [f"{sample},{hospital},{split},{quoted(label)}\n" for sample, hospital, split, label in rows]
        self.write("split.csv", "sample,hospital,split,class\n" + "".join(lines))

    def status(self, state: str, **facts: Any) -> None:
        """Say where the run stands: running, finished, interrupted or failed."""
        facts["seconds"] = round(time.monotonic() - self.started, 3) + facts.pop("before", 0.0)
        self.write("status.json", json.dumps({"state": state, **facts}, indent=2))

    def log(self, records: Iterable[dict[str, Any]]) -> None:
        """Append lines to metrics.jsonl; NaN is written as null. Then those who listen are told."""
        records = list(records)
        lines = [json.dumps({k: _finite(v) for k, v in record.items()}) + "\n" for record in records]

        def append() -> None:
            self._metrics.write("".join(lines).encode())
            self._metrics.flush()

        self._guard(append)
        for listener in self.listeners:
            listener(records)

    def write(self, name: str, text: str) -> None:
        """Replace a text file in one step."""
        self._guard(lambda: self._replace(name, lambda file: file.write_text(text, encoding="utf-8")))

    def save_tensors(self, name: str, tensors: Params) -> None:
        """Replace a safetensors file in one step."""
        # safetensors refuses tensors that share memory, and views of a message's bytes are read-only.
        own = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        self._guard(lambda: self._replace(name, lambda file: save_file(own, file)))

    def checkpoint(self, tensors: Params, state: dict[str, Any]) -> None:
        """Save the server's state; the last two checkpoints are kept."""
        folder = self.path / "checkpoint"
        self._guard(lambda: folder.mkdir(exist_ok=True))
        number = 1 + max((int(file.stem) for file in folder.glob("*.json")), default=0)  # never a file that is in use
        file = f"checkpoint/{number:06d}.safetensors"
        self.save_tensors(file, tensors)
        manifest = {"number": number, "file": file, "sha256": _digest(self.path / file)}
        manifest |= {"metrics": self._metrics.tell(), "state": state}
        self.write(f"checkpoint/{number:06d}.json", json.dumps(manifest))
        for old in sorted(folder.glob("*.json"))[:-2]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def restore(self, usable: Callable[[dict[str, Any]], bool]) -> tuple[Params, dict[str, Any]] | None:
        """The newest whole checkpoint, with metrics.jsonl cut back to it; None where there is none.

        Args:
            usable: says of a checkpoint's state whether what it refers to (clients' memories) is there.
        """
        found = sorted((self.path / "checkpoint").glob("*.json"), reverse=True)
        for path in found:
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                file = self.path / manifest["file"]
                if _digest(file) != manifest["sha256"] or not usable(manifest["state"]):
                    raise ValueError("damaged")
                tensors = read_tensors(file)
            except (OSError, ValueError, KeyError, SafetensorError):
                path.unlink(missing_ok=True)  # cut short: the one before it is whole
                continue
            self._cut(manifest["metrics"])
            return tensors, manifest["state"]
        self._cut(0)
        self.lost = len(found)
        return None

    def identity(self) -> str:
        """A name of this run that no other has, for what lies elsewhere; a resumed run keeps it."""
        file = self.path / "identity"
        if not file.exists():
            self.write(file.name, secrets.token_hex(8))
        return file.read_text(encoding="utf-8")

    def close(self) -> None:
        """Let go of the directory."""
        self._metrics.close()
        self._lock.close()

    def _cut(self, end: int) -> None:
        self._guard(lambda: self._metrics.truncate(end))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        temporary = self.path / f"{name}.tmp"
        temporary.parent.mkdir(exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, SafetensorError) as error:
            raise FedclError(
                f"cannot write to {self.path}: {error}; make room, then the same command goes on from there"
            ) from error


def is_finished(path: Path, config: Config) -> bool:
    """Whether a run of this config lies there and has come to its end.

    Raises:
        FedclError: another config's run lies there.
    """
    _check(path, config)
    return read_status(path).get("state") == "finished"


def _check(path: Path, config: Config) -> None:
    if (path / "config.toml").exists() and read_config(path).digest() != config.digest():
        raise FedclError(f"{path} holds a run of another config; choose another --output, or --fresh to move it aside")


def _lock(path: Path) -> IO[str]:
    """Hold a directory's lock file; the system lets go of it when the process ends, however it ends."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise FedclError(f"{path.parent} is in use by another process; wait, or choose another --output") from error
    return file


def read_config(run: Path) -> Config:
    """The resolved config of a run directory.

    Raises:
        FedclError: there is none, or it cannot be read.
    """
    try:
        return Config.model_validate(tomllib.loads((run / "config.toml").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FedclError(f"{run} is not a run directory: it has no config.toml") from error
    except (OSError, ValueError) as error:
        raise FedclError(f"{run}: its config.toml is damaged: {error}") from error


def read_status(run: Path) -> dict[str, Any]:
    """Where a run stands; empty where nothing has run yet."""
    try:
        return json.loads((run / "status.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, all its fields; `value` is NaN where the file says null."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [record | {"value": math.nan if record["value"] is None else record["value"]} for record in records]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
