"""A search over settings: ask for the next ones, run them blind, tell what came of them; resumable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcl import defaults, settings
from fedcl.comparison import figures, pool, stats
from fedcl.comparison.grid import Axis, Cell, Grid
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.results import Result
from fedcl.toml import dumps
from fedcl.tuning.space import Space, suggest

if TYPE_CHECKING:
    import optuna

_STUDY = "study.log"  # optuna's journal
_SPACE = "study.json"


@dataclass(frozen=True)
class Told:
    """One trial."""

    number: int
    chosen: dict[str, str]  # config key → value
    value: float  # mean over seeds on validation data, NaN where a run failed
    values: tuple[float, ...]  # by seed
    error: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    path: Path
    metric: str
    trials: tuple[Told, ...]
    best: Told
    settings: dict[str, Any]  # the config's, with what was chosen; no longer blind


def tune(
    base: Mapping[str, Any],
    space: Space,
    folder: Path,
    *,
    trials: int = 20,
    metric: str = "average_accuracy",
    seeds: Sequence[int] = (0,),
    jobs: int = 0,
    notify: Callable[[Told, int], None] = lambda told, trials: None,
    stop: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Search until there are so many trials in this folder; the same call goes on with them.

    Args:
        base: the settings of all trials, as they would stand in a config file.
        space: what to choose, by config key.
        folder: where runs and the study lie.
        trials: how many, with those that are there.
        metric: what to make best, see `comparison.figures`; measured on validation samples.
        seeds: each trial is run with all of them.
        jobs: runs at a time; 0 is as many as the machine has room for.
        notify: told of each trial, and how many there will be.
        stop: asked now and then; then what goes on is saved.

    Raises:
        FedclError: optuna is not installed, the folder holds another search, or no trial came to its end.
        settings.ConfigErrors: the settings are wrong with or without a choice.
    """
    optuna = _optuna()
    blind = settings.resolve(dict(base), ["data.blind=true"])
    study = _open(optuna, folder, base, space, metric, seeds, blind.seed)
    done = [_told(trial) for trial in study.trials if "chosen" in trial.user_attrs]
    waiting: dict[int, tuple[Any, dict[str, str], int]] = {}  # by run: its trial, choice and seed
    found: dict[int, dict[int, tuple[float, str]]] = {}

    def configs() -> Iterator[Config]:
        number = 0
        while len(done) + len(found) < trials:
            trial = study.ask()
            chosen = suggest(trial, space)
            found[trial.number] = {}
            for seed in seeds:
                waiting[number] = (trial, chosen, seed)
                number += 1
                yield _config(base, chosen, seed, folder)

    room = pool.slots(blind, max(trials - len(done), 0) * len(seeds), jobs)
    for end in pool.run(configs() if room else (), room, folder / "logs", stop):
        trial, chosen, seed = waiting.pop(end.number)
        if end.interrupted:
            continue
        found[trial.number][seed] = _measured(base, chosen, seed, folder, metric, end.error)
        if len(found[trial.number]) == len(seeds):
            done.append(_tell(optuna, study, trial, chosen, found.pop(trial.number)))
            notify(done[-1], trials)
    return _best(base, folder, metric, sorted(done, key=lambda told: told.number))


def _best(base: Mapping[str, Any], folder: Path, metric: str, done: Sequence[Told]) -> Tuned:
    """The best of all trials, also as a config file."""
    whole = [told for told in done if math.isfinite(told.value)]
    if not whole:
        raise FedclError(f"no trial came to its end{': ' + done[0].error if done else ''}; see {folder / 'logs'}")
    best = min(whole, key=lambda told: told.value if figures.find(metric).lower else -told.value)
    chosen = settings.tree(dict(base), [f"{key}={value}" for key, value in best.chosen.items()])
    (folder / "best.toml").write_text(dumps(chosen), encoding="utf-8")
    return Tuned(folder, metric, tuple(done), best, chosen)


def final(base: Mapping[str, Any], tuned: Tuned, seeds: Sequence[int]) -> Grid:
    """The one look at the test data: the settings as given and as tuned, for `comparison.run`."""
    trees = {"as given": dict(base), "tuned": tuned.settings}
    cells = [
        Cell((label,), seed, defaults.fill(settings.resolve(tree, [f"seed={seed}"])))
        for label, tree in trees.items()
        for seed in seeds
    ]
    return Grid((Axis("settings", tuple(trees)),), tuple(seeds), tuple(cells))


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise FedclError("a search needs optuna: pip install 'fedcl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(
    optuna: Any, folder: Path, base: Mapping[str, Any], space: Space, metric: str, seeds: Sequence[int], seed: int
) -> optuna.Study:
    """The study in this folder; trials that an interruption cut off are tried again."""
    about = json.dumps([base, {key: repr(part) for key, part in space.items()}, metric, list(seeds)], sort_keys=True)
    file = folder / _SPACE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.read_text(encoding="utf-8") != about:
            raise FedclError(f"{folder} holds another search; choose another --output")
        file.write_text(about, encoding="utf-8")
    except OSError as error:
        raise FedclError(f"{folder}: {error.strerror}; choose another --output") from error
    backend = optuna.storages.journal.JournalFileBackend(str(folder / _STUDY))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        # With several trials at a time those under way count as bad ones, so that they are not all the same.
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=8),
        direction="minimize" if figures.find(metric).lower else "maximize",
        study_name="fedcl",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study  # type: ignore[no-any-return]


def _config(base: Mapping[str, Any], chosen: Mapping[str, str], seed: int, folder: Path) -> Config:
    """A trial's run: blind, in a folder named after what was chosen."""
    name = hashlib.sha256(json.dumps(dict(chosen), sort_keys=True).encode()).hexdigest()[:10]
    fixed = {"seed": str(seed), "data.blind": "true", "run.output": str(folder / "trials" / name / f"seed-{seed}")}
    return settings.resolve(dict(base), [f"{key}={value}" for key, value in chosen.items()], fixed)


def _measured(
    base: Mapping[str, Any], chosen: Mapping[str, str], seed: int, folder: Path, metric: str, error: str
) -> tuple[float, str]:
    """A run's figure, or why there is none."""
    if error:
        return math.nan, error
    known = figures.figures_of(Result.load(_config(base, chosen, seed, folder).directory()))
    if metric not in known:
        return math.nan, f"no run has the figure {metric!r}; there are {figures.names(known)}"
    return known[metric], ""


def _tell(
    optuna: Any,
    study: optuna.Study,
    trial: optuna.Trial,
    chosen: dict[str, str],
    found: Mapping[int, tuple[float, str]],
) -> Told:
    values = [value for value, _ in found.values()]
    error = next((error for _, error in found.values() if error), "")
    value = math.nan if error else stats.mean(np.asarray(values, dtype=np.float64))
    for key, entry in (("chosen", chosen), ("values", values), ("error", error)):
        trial.set_user_attr(key, entry)
    if math.isfinite(value):
        study.tell(trial, value)
    else:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return Told(trial.number, chosen, value, tuple(values), error)


def _told(trial: optuna.trial.FrozenTrial) -> Told:
    about = trial.user_attrs
    value = math.nan if trial.value is None else trial.value
    return Told(trial.number, about.get("chosen", {}), value, tuple(about.get("values", ())), about.get("error", ""))
