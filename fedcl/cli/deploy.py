"""`fedcl deploy`: a federation on real machines, and its rehearsal on one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedcl.cli import terminal

app = typer.Typer(
    help="A federation between real hospitals: certificates, keys, start scripts; and its rehearsal on one machine.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="What `fedcl deploy init` wrote.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    hospitals: Annotated[int, typer.Option(min=1, metavar="INT", help="How many.")] = 3,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="The server's name or address, as hospitals reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="INT", help="Of the SuperLink.")] = 8000,
    data: Annotated[
        str, typer.Option(metavar="PATH", help="A hospital's own data folder there; {} is its number.")
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no keys: for rehearsals only.")] = False,
) -> None:
    """Write certificates, keys, start scripts, systemd units and a compose file."""
    from fedcl.deploy import layout
    from fedcl.errors import FedclError

    with terminal.told(FedclError):
        layout.write(folder, hospitals, host, port, data, insecure)
    if insecure:
        typer.echo(
            "warning: no TLS, no keys: anybody on the network can read, change and join this federation", err=True
        )
    typer.echo(f"{folder}/README.md says what goes where; to rehearse here: fedcl deploy up {folder}")


@app.command()
def up(folder: Folder) -> None:
    """Start the server and all hospitals on this machine."""
    from fedcl.deploy import nodes, rehearsal
    from fedcl.errors import FedclError

    with terminal.told(FedclError):
        rehearsal.up(folder, typer.echo)
        count = nodes.read(nodes.ServerNode, folder / "server").hospitals
    typer.echo(f"now: fedcl simulate --runtime superlink --connection {folder} --clients {count}")


@app.command()
def status(folder: Folder) -> None:
    """Say which of its processes run on this machine; exit 1 if one that should is gone."""
    from fedcl.deploy import rehearsal

    found = rehearsal.status(folder)
    for process in found:
        typer.echo(f"{process.node:12} {process.name:10} {process.pid:8} {'runs' if process.alive else 'is gone'}")
    if not found:
        typer.echo("nothing of it runs here")
    if not all(process.alive for process in found):
        raise typer.Exit(1)


@app.command()
def down(folder: Folder) -> None:
    """Stop all of it that runs on this machine."""
    from fedcl.deploy import rehearsal

    typer.echo(f"{len(rehearsal.down(folder))} processes stopped")


@app.command()
def server(folder: Folder) -> None:
    """What server/start.sh runs: the SuperLink, until it is stopped."""
    from fedcl.deploy import server as node
    from fedcl.errors import FedclError

    with terminal.told(FedclError):
        node.run(folder)


@app.command()
def hospital(folder: Folder) -> None:
    """What hospital-k/start.sh runs: a SuperNode and its worker, until it is stopped."""
    from fedcl.deploy import hospital as node
    from fedcl.errors import FedclError

    with terminal.told(FedclError):
        node.run(folder)
