"""The client store: all that a hospital's method and optimiser remember, by version, the last two kept.

A version is named by the job that left it ("<stage>-<round>-<phase>"). A Job says which one to start from, so that a
retry, a late answer that the server dropped, or a resumed run never counts a sample twice.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedcl.contracts import FedclError, Memory

_KEEP = 2


class Store:
    """Memories of the clients of one process: a cache before the folder `root/<client>/<version>.safetensors`.

    Args:
        root: the folder; None keeps everything in memory only.
        write_through: whether `save` also writes; otherwise `flush` does, together with the server's checkpoint.
    """

    def __init__(self, root: Path | None = None, write_through: bool = False) -> None:
        self._root = root
        self._write_through = write_through
        self._cache: dict[int, dict[str, Memory]] = {}
        self._written: dict[int, list[str]] = {}

    def load(self, client: int, version: str) -> Memory:
        """The memory of that version; "" is an empty one.

        Raises:
            FedclError: the store has no such version, or its file is damaged.
        """
        if not version:
            return {}
        cached = self._cache.get(client, {})
        if version not in cached:
            cached = self._cache.setdefault(client, {})
            cached[version] = self._read(client, version)
        return dict(cached[version])

    def save(self, client: int, version: str, memory: Memory) -> None:
        """Keep a version, and the one before it."""
        versions = self._cache.setdefault(client, {})
        versions.pop(version, None)
        versions[version] = memory
        for old in list(versions)[:-_KEEP]:
            del versions[old]
        if self._write_through:
            self.flush()

    def flush(self) -> None:
        """Write the newest version of each client where it is not on disk yet; drop all but the last two files."""
        if self._root is None:
            return
        for client, versions in self._cache.items():
            newest = list(versions)[-1]
            written = self._written.setdefault(client, [])
            if newest in written[-1:]:
                continue
            folder = self._root / str(client)
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{newest}.tmp"
            save_file({name: value.contiguous() for name, value in versions[newest].items()}, temporary)
            os.replace(temporary, folder / f"{newest}.safetensors")
            written.append(newest)
            keep = set(written[-_KEEP:])
            for file in folder.glob("*.safetensors"):
                if file.stem not in keep:
                    file.unlink()

    def forget(self) -> None:
        """Drop what is cached and not written: the next `load` reads the folder, as after a restart."""
        self._cache.clear()
        self._written = {}
        if self._root is not None:
            for file in sorted(self._root.glob("*/*.safetensors"), key=lambda file: file.stat().st_mtime_ns):
                self._written.setdefault(int(file.parent.name), []).append(file.stem)

    def _read(self, client: int, version: str) -> Memory:
        if self._root is not None:
            path = self._root / str(client) / f"{version}.safetensors"
            if path.exists():
                try:
                    return load_file(path)
                except Exception as error:
                    raise FedclError(f"client memory {path} is damaged ({error}); start anew with --fresh") from error
        raise FedclError(f"client {client} has no memory of version {version!r}; start anew with --fresh")
