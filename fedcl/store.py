"""The client store: all that a hospital's method and optimiser remember, by version.

A version is named by the job that left it ("<stage>-<round>-<phase>"). A Job says which one to start from, so that a
retry, a late answer that the server dropped, or a resumed run never counts a sample twice.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedcl.contracts import FedclError, Memory


class Store:
    """Memories of the clients of one process: a cache before the folder `root/<client>/<version>.safetensors`.

    In memory it keeps what the last Job started from and what came of it; on disk, what checkpoints name, and what
    there is no room for in memory.

    Args:
        root: the folder; None keeps everything in memory only.
        durable: nothing is cached and every version is on disk before it is answered for, because other processes
            work on the same folder, or because this one may be killed.
        room: bytes of memory for the cache, where there is a folder.
    """

    def __init__(self, root: Path | None = None, durable: bool = False, room: int = 1 << 27) -> None:
        self._root, self._durable, self._room = root, durable, room
        self._cache: OrderedDict[int, dict[str, Memory]] = OrderedDict()  # the client used last comes last
        self._bytes = 0
        self._written: set[tuple[int, str]] = set()

    def load(self, client: int, version: str) -> Memory:
        """The memory of that version; "" is an empty one.

        Raises:
            FedclError: the store has no such version, or its file is damaged.
        """
        if not version:
            return {}
        if self._durable:
            return self._read(client, version)
        cached = self._cache.get(client, {})
        if version not in cached:
            cached = cached | {version: self._read(client, version)}
            self._keep(client, cached)
        return dict(sorted(cached[version].items()))  # as from a file: sums follow the order

    def save(self, client: int, version: str, memory: Memory, start: str, amid: bool = False) -> None:
        """Keep what came of a Job, and what it started from: the answer may never be accepted.

        `amid` several Jobs of which all or none are, what the first of them started from is kept as well.
        """
        if self._durable and self._root is not None:
            self._put(client, version, memory)
            return
        versions = self._cache.get(client, {})
        before = versions if amid else {start: versions[start]} if start in versions else {}
        self._written.discard((client, version))
        self._keep(client, before | {version: memory})

    def write(self, versions: Mapping[int, str]) -> None:
        """Put these versions on disk, where they are not yet: a checkpoint is about to name them.

        Raises:
            FedclError: there is no room, or the folder cannot be written.
        """
        if self._root is None:
            return
        for client, version in versions.items():
            if not version or (client, version) in self._written:
                continue
            self._put(client, version, self.load(client, version))
            self._written.add((client, version))

    def prune(self, kept: Sequence[Mapping[int, str]]) -> None:
        """Delete the files of versions that none of these checkpoints names."""
        if self._root is None:
            return
        named = {(client, version) for versions in kept for client, version in versions.items()}
        for client, version in self._written - named:
            (self._root / str(client) / f"{version}.safetensors").unlink(missing_ok=True)
        self._written &= named

    def clean(self, client: int, keep: Sequence[str], before: int) -> None:
        """Delete a client's versions of rounds before this one that are not to be kept."""
        if self._root is None:
            return
        for file in (self._root / str(client)).glob("*.safetensors"):
            if file.stem not in keep and int(file.stem.split("-")[1]) < before:
                file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop what is cached: the next `load` reads the folder, as after a restart."""
        self._cache.clear()
        self._bytes = 0
        files = self._root.glob("*/*.safetensors") if self._root is not None else ()
        self._written = {(int(file.parent.name), file.stem) for file in files}

    def _keep(self, client: int, versions: dict[str, Memory]) -> None:
        """Cache a client's versions; those of the clients that were not used for longest go to disk."""
        self._bytes += _size(versions) - _size(self._cache.get(client, {}))
        self._cache[client] = versions
        self._cache.move_to_end(client)
        while self._root is not None and self._bytes > self._room and len(self._cache) > 1:
            other, old = self._cache.popitem(last=False)
            self._bytes -= _size(old)
            for version, memory in old.items():
                if (other, version) not in self._written:
                    self._put(other, version, memory)
                    self._written.add((other, version))

    def _put(self, client: int, version: str, memory: Memory) -> None:
        """Write one version, beside its place and then there."""
        assert self._root is not None
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in memory.items()}
        folder = self._root / str(client)
        temporary = folder / f".{version}.{os.getpid()}.tmp"  # two workers may be at the same client after a time-out
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary)
            os.replace(temporary, folder / f"{version}.safetensors")
        except (OSError, SafetensorError) as error:
            if temporary.is_file():
                temporary.unlink()
            raise FedclError(
                f"cannot write client memory to {folder}: {error}; make room, then the same command goes on"
            ) from error

    def _read(self, client: int, version: str) -> Memory:
        if self._root is not None:
            path = self._root / str(client) / f"{version}.safetensors"
            if path.exists():
                try:
                    return dict(sorted(read_tensors(path).items()))
                except (OSError, SafetensorError) as error:
                    self._written.discard((client, version))
                    raise FedclError(f"client memory {path} is damaged ({error}); start anew with --fresh") from error
        raise FedclError(f"client {client} has no memory of version {version!r}; start anew with --fresh")


def read_tensors(path: Path) -> Memory:
    """The tensors of a safetensors file, each where a fresh one would lie.

    Some processors' matrix products round otherwise where an operand does not begin at a multiple of 16 bytes; in a
    file they begin anywhere, and a resumed run would part from one that was not interrupted.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    return {name: value.clone() for name, value in load_file(path).items()}


def _size(versions: Mapping[str, Memory]) -> int:
    """Bytes of a client's versions."""
    return sum(value.nbytes for memory in versions.values() for value in memory.values())
