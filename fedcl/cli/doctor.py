"""`fedcl doctor`: whether all that fedcl needs is here. Asks nobody on the network."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import typer

from fedcl import units

_IMPORTED = ("torch", "torchvision", "flwr", "safetensors", "sklearn", "pydantic")


def doctor() -> None:
    """Check the installation, the machine and the data; exit 1 if something needed is broken."""
    broken = [*_packages()]
    _machine()
    _data()
    _extras()
    for problem in broken:
        typer.echo(f"broken: {problem}", err=True)
    if broken:
        raise typer.Exit(1)
    typer.echo("\nall that fedcl needs is here")


def _packages() -> Iterator[str]:
    """Print what is installed; yield what is missing or cannot be imported."""
    typer.echo(f"python       {platform.python_version()}")
    for name, extra in _requirements():
        if extra:
            continue
        version = _version(name)
        typer.echo(f"{name:12} {version or 'missing'}")
        if not version:
            yield f"{name} is not installed; pip install --force-reinstall fedcl"
    importlib.import_module("fedcl.runtime")  # switches off what would call home
    for module in _IMPORTED:
        try:
            importlib.import_module(module)
        except Exception as error:
            yield f"{module} cannot be imported: {type(error).__name__}: {error}; reinstall it"


def _machine() -> None:
    import torch

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    typer.echo(f"\ndevices      {', '.join(['cpu', *devices])}")
    typer.echo(f"cpus         {os.cpu_count()}; torch's own choice is {torch.get_num_threads()} threads")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    typer.echo(f"memory       {units.size(memory)}")
    typer.echo(f"disk here    {units.size(shutil.disk_usage(Path.cwd()).free)} free")


def _data() -> None:
    from fedcl import datasets, plugins

    status = {name: datasets.find(name) for name in plugins.names("datasets")}
    found = [name for name, each in status.items() if each.found]
    typer.echo(f"\ndata root    {datasets.home()}")
    typer.echo(f"data found   {', '.join(found)}")
    typer.echo("             `fedcl data list` names what fetches the others" if len(found) < len(status) else "")


def _extras() -> None:
    extras: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if extra:
            extras.setdefault(extra, []).append(name)
    typer.echo("")
    for extra, names in extras.items():
        missing = [name for name in names if not _version(name)]
        words = f"missing {', '.join(missing)}; pip install 'fedcl[{extra}]'" if missing else "present"
        typer.echo(f"extra {extra:9} {words}")


def _requirements() -> Iterator[tuple[str, str]]:
    """(package, extra that needs it; "" is always needed) as the installed fedcl declares them."""
    for line in metadata.requires("fedcl") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"](.+?)['\"]", line)
        if name:
            yield name[0], extra[1] if extra else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
