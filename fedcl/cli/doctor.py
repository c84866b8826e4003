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
    broken += _machine()
    broken += _data()
    _extras()
    for problem in broken:
        typer.echo(f"broken: {problem}", err=True)
    if broken:
        raise typer.Exit(1)
    typer.echo("\nall that fedcl needs is here")


def _packages() -> Iterator[str]:
    """Print what is installed; yield what is missing or cannot be imported."""
    typer.echo(f"fedcl        {_version('fedcl')} in {Path(__file__).parents[1]}")
    typer.echo(f"python       {platform.python_version()}")
    for name, extra in _requirements():
        if extra:
            continue
        version = _version(name)
        typer.echo(f"{name:12} {version or 'missing'}")
        if not version:
            yield f"{name} is not installed; install fedcl again, from where you have it"
    importlib.import_module("fedcl.runtime")  # switches off what would call home
    for module in _IMPORTED:
        try:
            importlib.import_module(module)
        except Exception as error:
            yield f"{module} cannot be imported: {type(error).__name__}: {error}; reinstall it"


def _machine() -> Iterator[str]:
    """Print what there is to compute on; yield devices that torch lists and cannot use."""
    try:
        import torch
    except Exception:  # said already
        return
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    typer.echo(f"\ndevices      {', '.join(map(_device, names))}")
    for name in names:
        try:
            torch.ones(2, 2, device=name).mm(torch.ones(2, 2, device=name)).sum().item()
        except RuntimeError as error:
            yield f"torch {torch.__version__} cannot compute on {name}: {str(error).partition(chr(10))[0]}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    typer.echo(f"cpus         {cores} for this process; torch's own choice is {torch.get_num_threads()} threads")
    page = os.sysconf("SC_PAGE_SIZE")
    memory = [page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES") if name in os.sysconf_names]
    typer.echo(f"memory       {units.size(memory[0])}{f', {units.size(memory[1])} free' if len(memory) > 1 else ''}")
    typer.echo(f"disk here    {units.size(shutil.disk_usage(Path.cwd()).free)} free")
    if not os.access(Path.cwd(), os.W_OK):
        yield f"{Path.cwd()} cannot be written; runs go there unless --output names another place"


def _device(name: str) -> str:
    import torch

    if not name.startswith("cuda"):
        return name
    facts = torch.cuda.get_device_properties(name)
    return f"{name} {facts.name}, {units.size(facts.total_memory)}"


def _data() -> Iterator[str]:
    """Print what is found; yield a data root that is none."""
    from fedcl import datasets, plugins

    status = {name: datasets.find(name) for name in plugins.names("datasets")}
    found = [name for name, each in status.items() if each.found]
    typer.echo(f"\ndata root    {datasets.home()}")
    typer.echo(f"data found   {', '.join(found)}")
    typer.echo("             `fedcl data list` names what fetches the others" if len(found) < len(status) else "")
    named = os.environ.get("FEDCL_DATA", "")
    if named and not Path(named).is_dir():
        typer.echo(f"             $FEDCL_DATA is {named}, which is not there yet; `fedcl data fetch` makes it")
    elif datasets.home().exists() and not os.access(datasets.home(), os.R_OK | os.X_OK):
        yield f"the data root {datasets.home()} cannot be read"


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
