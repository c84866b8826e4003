"""The flags that stand for a setting of the config. They are text here: the config says what is wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from fedcl import plugins


class Flag(NamedTuple):
    """One row of the table."""

    name: str
    key: str  # of the config
    metavar: str  # "" is a switch
    default: str
    help: str
    panel: str


CONFIG, RUN = "Config", "This command"  # panels of what else a command takes

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML file; flags win.", rich_help_panel=CONFIG)
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting, e.g. methods.ewc.strength=300.", rich_help_panel=CONFIG
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", min=0, metavar="INT", help="Runs at a time (0: as many as fit).", rich_help_panel=RUN)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)]

_DATA, _TRAIN, _WHERE = "Who has what, when", "Model and training", "Where and how"

FLAGS = (
    Flag("clients", "federation.clients", "INT", "5", "Hospitals", _DATA),
    Flag("fraction", "federation.fraction", "SHARE", "1.0", "Share of them that train in a round", _DATA),
    Flag("dataset", "data.name", "NAME", "digits", "See `fedcl list`; a+b is a sequence", _DATA),
    Flag("stream", "stream.kind", "KIND", "class", "class, domain, sequence, site", _DATA),
    Flag("tasks", "stream.tasks", "INT", "5", "Tasks of the stream", _DATA),
    Flag("partition", "partition.name", "NAME", "dirichlet", "iid, dirichlet, shards, quantity, site", _DATA),
    Flag("alpha", "partition.alpha", "FLOAT", "0.5", "Dirichlet concentration; small is skewed", _DATA),
    Flag("schedule", "stream.schedule", "NAME", "same", "same, shuffled, staggered, table", _DATA),
    Flag("model", "model.name", "NAME", "mlp", "The trunk, see `fedcl list`", _TRAIN),
    Flag("heads", "model.heads", "KIND", "task", "task (a module each), shared, domain", _TRAIN),
    Flag("method", "method", "NAME", "ewc", "See `fedcl list`; a+b combines", _TRAIN),
    Flag("growth", "model.growth", "NAME", "none", "threshold, den …; a+b combines", _TRAIN),
    Flag("federation", "federation.kind", "KIND", "federated", "federated, local, central, joint", _TRAIN),
    Flag("rounds", "train.rounds", "INT", "20", "Rounds of a stage", _TRAIN),
    Flag("epochs", "train.epochs", "INT", "5", "Local epochs of a round", _TRAIN),
    Flag("batch-size", "train.batch_size", "INT", "32", "Samples of a step", _TRAIN),
    Flag("lr", "train.lr", "FLOAT", "0.05", "Learning rate", _TRAIN),
    Flag("compress", "federation.compress", "NAME", "none", "Of updates: int8, topk, sparse", _TRAIN),
    Flag("privacy", "privacy.mechanism", "NAME", "none", "dp-sgd, secagg …; a+b combines", _TRAIN),
    Flag("max-epsilon", "privacy.max_epsilon", "FLOAT", "0.0", "No round goes above; 0: no limit", _TRAIN),
    Flag("secure-rng", "privacy.secure_rng", "", "False", "Noise that no seed repeats", _TRAIN),
    Flag("seed", "seed", "INT", "0", "All draws follow from it", _WHERE),
    Flag("threads", "run.threads", "INT", "1", "torch threads; 0 is torch's choice", _WHERE),
    Flag("runtime", "run.runtime", "NAME", "inline", "or processes, ray, superlink", _WHERE),
    Flag("device", "run.device", "NAME", "cpu", "torch device", _WHERE),
    Flag("devices", "run.devices", "LIST", "--device", "cuda:0,cuda:1 or auto", _WHERE),
    Flag("workers", "run.workers", "INT", "0", "At a time on the CPU; 0: cores", _WHERE),
    Flag("clients-per-device", "run.clients_per_device", "INT", "1", "At a time on a GPU", _WHERE),
    Flag("client-timeout", "federation.client_timeout", "SECONDS", "0.0", "For a client's job; 0: none", _WHERE),
    Flag("connection", "run.connection", "NAME", "hospitals", "See `fedcl deploy`", _WHERE),
    Flag("precision", "run.precision", "NAME", "float32", "float32 or bf16", _WHERE),
    Flag("output", "run.output", "DIR", "runs/<name>-<hash>", "Run directory", _WHERE),
)


# Flags whose value is a plug-in's name: the shell completes it.
_NAMES = {
    "dataset": "datasets",
    "model": "models",
    "method": "methods",
    "growth": "growth",
    "compress": "compression",
    "privacy": "privacy",
}


def name_of(key: str) -> str:
    """The flag that sets a key: "train.lr" → "--lr"."""
    return next(f"--{flag.name}" for flag in FLAGS if flag.key == key)


@contextmanager
def mistakes(flags: Mapping[str, str]) -> Iterator[None]:
    """Wrong settings are a line each, with the flag that set it, and end with exit code 2."""
    from fedcl.settings import ConfigErrors

    try:
        yield
    except ConfigErrors as errors:
        for error in errors.errors:
            origin = f" ({name_of(error.key)})" if error.key in flags else ""
            typer.echo(f"{error.key}{origin}{str(error).removeprefix(error.key)}", err=True)
        raise typer.Exit(2) from None


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of the table: its `flags` gets those that were typed, {key: text}.

    A flag that the command has itself is the command's.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    rest = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    flags = [flag for flag in FLAGS if flag.name not in {p.name for p in own}]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        texts = {flag.key: given.pop(flag.name.replace("-", "_")) for flag in flags}
        typed = {key: "true" if text is True else text for key, text in texts.items()}
        command(flags={key: text for key, text in typed.items() if text not in (None, False)}, **given)

    parameters = [*map(_parameter, flags), *rest]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameter(flag: Flag) -> inspect.Parameter:
    option = typer.Option(
        f"--{flag.name}",
        metavar=flag.metavar or None,
        help=f"{flag.help} ({flag.default})" if flag.metavar else flag.help,
        rich_help_panel=flag.panel,
        show_default=False,
        autocompletion=_completion(_NAMES[flag.name]) if flag.name in _NAMES else None,
    )
    name, kind = flag.name.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY
    if not flag.metavar:
        return inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, option])
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, option])


def _completion(kind: str) -> Callable[[], list[str]]:
    def complete() -> list[str]:  # typer reads a function's parameters, of which a partial has none
        return plugins.names(kind)

    return complete
