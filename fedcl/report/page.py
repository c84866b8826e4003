"""A run's page: its head, the headline numbers, and which section has which figures and tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedcl.report import exchange, figures, nets, plan, privacy, rounds, sites, tables
from fedcl.report.layout import Section, Tile, Top, document, fragment
from fedcl.report.tables import share
from fedcl.results import Result, small
from fedcl.units import count, duration, size


def render(result: Result) -> str:
    """The page as HTML text."""
    facts, (text, values) = status(result), config(result.path)
    foot = "Every number on this page comes from metrics.jsonl beside it, where stages and rounds count from 0."
    sections = [*_learning(result), *_around(result), *_terms(result, text)]
    switches = [*figures.switches(result), nets.switch(result)]
    return document(head(result, facts, values), tiles(result, facts), sections, switches, foot)


def _learning(result: Result) -> list[Section]:
    """What was learned, and what was lost."""
    return [
        Section(
            "accuracy",
            "Accuracy",
            "What the model knows after each stage. With the task known it is told which task a sample belongs to; "
            "with the task inferred it must find that out.",
            figures.matrices(result),
            [tables.task_table(result)],
        ),
        Section(
            "forgetting",
            "Forgetting",
            "What a task lost between its best stage and the last one. Where the last mark lies left of the others the "
            "task was forgotten; where it lies right, it gained from later ones.",
            [*figures.forgetting(result), figures.balance(result), sites.trade(result)],
        ),
        Section(
            "curves",
            "Learning curves",
            figures=[*figures.task_curves(result), *rounds.validation(result)],
            short="Curves",
        ),
        Section(
            "hospitals",
            "Hospitals",
            figures=[
                sites.hospital_curves(result),
                sites.merging(result),
                sites.drift(result),
                sites.final(result),
                *rounds.updates(result),
            ],
            tables=[tables.hospital_table(result)],
        ),
    ]


def _around(result: Result) -> list[Section]:
    """Who had what, and what it took."""
    faults = tables.fault_table(result)
    well = "" if faults else "None: every client answered in every round, and every answer was accepted."
    costs = [exchange.traffic(result), rounds.traffic(result), rounds.duration(result), rounds.loss(result)]
    return [
        Section("data", "Who has what, when", figures=[plan.split(result), plan.schedule(result)], short="Data"),
        Section("net", "The net", figures=[nets.size(result), *nets.units(result), *nets.use(result)]),
        Section(
            "weights",
            "The trunk's weights",
            "Where the weights lay before and after a stage, how important each was for the tasks before, and how far "
            "it moved.",
            nets.weights(result),
            short="Weights",
        ),
        Section("cost", "Cost", figures=costs),
        Section(
            "privacy",
            "What each party sees",
            figures=privacy.spent(result),
            tables=[*privacy.budgets(result), *privacy.audit(result), *exchange.sent(result)],
            text=fragment("words.html", words=privacy.words(result)),
            short="Privacy",
        ),
        Section("alarms", "Alarms", tables=tables.alarm_table(result)),
        Section("faults", "Faults", tables=faults, text=fragment("words.html", words=[well] if well else [])),
    ]


def _terms(result: Result, text: str) -> list[Section]:
    """What the numbers mean, and how to get them again."""
    lead = (
        "R[s, t] is the accuracy on task t after stage s of S, R_c that of hospital c; first(t) and last(t) are the "
        "first and the last stage in which anyone trained t. Forgetting and transfer are over tasks last trained "
        "before the final stage. Undefined cells are left out of every mean; – is a metric without a defined cell."
    )
    metrics = fragment(
        "metrics.html",
        metrics=tables.metric_table(result),
        compat=tables.compat_table(result),
        extras=tables.extras(result),
    )
    setup = fragment("setup.html", path=str(result.path), environment=environment(result.path), config=text)
    return [
        Section("metrics", "Metrics and their definitions", lead, text=metrics, short="Metrics"),
        Section("setup", "Setup", text=setup),
    ]


def status(result: Result) -> dict[str, Any]:
    """status.json with its `seconds` defined; a run that has recorded its final figures is finished."""
    facts = {"state": "unknown", "clock": "wall clock, whole run"} | small(result.path, "status.json")
    ended = any(r.phase == "final" for r in result.records) and len(result.accuracy) == len(result.schedule)
    if facts["state"] == "running" and ended:  # it writes this page just before it says so
        facts["state"] = "finished"
        facts.pop("seconds", None)
    if "seconds" not in facts:
        spent = [r.value for r in result.records if r.phase == "train" and r.name == "seconds"]
        facts |= {"seconds": float(np.nansum(spent)), "clock": "wall clock, all rounds"}
    return facts


def environment(run: Path) -> dict[str, str]:
    """env.json and the method's conventions, lists and groups on one line each."""

    def words(value: object) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {words(part)}" for key, part in value.items())
        return " ".join(map(words, value)) if isinstance(value, list) else str(value)

    facts = small(run, "env.json")
    if conventions := {name: told for name, told in small(run, "federation.json").get("method", {}).items() if told}:
        facts["method"] = conventions
    return {key: words(value) for key, value in facts.items()}


def config(run: Path) -> tuple[str, dict[str, Any]]:
    """config.toml, as text and as values."""
    try:
        text = (run / "config.toml").read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError:
        return "", {}


def head(result: Result, status: Mapping[str, Any], values: Mapping[str, Any]) -> Top:
    """Title, state and when."""
    data = values.get("data", {}).get("name", "")
    method = values.get("method", "")
    planned, done = len(result.schedule), len(result.accuracy)
    partial = f"{done} of {_many(planned, 'stage')} finished: all numbers are those of the finished stages"
    partial = "" if done == planned else f"{partial}, on the tasks met so far."
    when = datetime.fromtimestamp((result.path / "metrics.jsonl").stat().st_mtime, tz=UTC)
    size = f"{_many(len(result.hospitals), 'hospital')}, {_many(len(result.tasks), 'task')}, {_many(planned, 'stage')}"
    name = result.path.resolve().name
    return Top(
        " · ".join(part for part in (data, method) if part) or name,
        state=str(status["state"]),
        facts=(size, name, f"{when:%Y-%m-%d %H:%M} UTC"),
        warning=" ".join(part for part in (partial, str(status.get("error", ""))) if part),
    )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def tiles(result: Result, status: Mapping[str, Any]) -> list[list[Tile]]:
    """The headline numbers: what was learned, and what it cost."""
    m = result.metrics
    pairs = (
        ("Average accuracy", "average_accuracy", "%", False),
        ("Forgetting, peak", "forgetting", "points", False),
        ("Backward transfer", "backward_transfer", "points", True),
        ("Forward transfer", "forward_transfer", "points", True),
        ("Worst hospital", "worst_hospital_accuracy", "%", False),
    )
    learned = []
    for title, name, unit, signed in pairs:
        known, other = (share(m[key], signed).text for key in (name, f"{name}_inferred"))
        if known == other == "–":
            why = "needs a shared head and two tasks" if name == "forward_transfer" else "not defined in this run"
            learned.append(Tile(title, "–", "", (why,)))
            continue
        second = "not defined" if other == "–" else f"{other} {unit}"
        learned.append(Tile(title, known, unit, ("task known", f"{second} task inferred")))
    return [learned, _costs(result, status)]


def _costs(result: Result, status: Mapping[str, Any]) -> list[Tile]:
    start, growth = (result.metrics.get(name, float("nan")) for name in ("parameters_start", "parameter_growth"))
    latency = result.metrics.get("latency_ms", float("nan"))
    speed = f"{latency:.3g} ms" if np.isfinite(latency) else "–"
    change = f"{count(start)} → {count(start * growth)}" if np.isfinite(start * growth) else "not known"
    examples, again = (result.metrics.get(n, float("nan")) for n in ("training_examples", "cumulative_compute"))
    kept = result.metrics.get("memory_per_hospital", float("nan"))
    return [
        Tile("Sent to clients", size(result.bytes_down), "", ("training, consolidation, evaluation",)),
        Tile("Sent by clients", size(result.bytes_up), "", _sent(result)),
        Tile("Time", duration(float(status["seconds"])), "", (str(status["clock"]),)),
        Tile("Parameter growth", f"× {growth:.2f}" if np.isfinite(growth) else "–", "", (change,)),
        Tile("Inference", speed, "", ("per sample",)),
        Tile(
            "Trained on",
            count(examples) if np.isfinite(examples) else "–",
            "",
            (f"from scratch at each stage: × {again:.1f}" if again > 1 else "samples through a step",),
        ),
        Tile("Kept by a hospital", size(kept) if np.isfinite(kept) else "–", "", ("in its own store, at most",)),
    ]


def _sent(result: Result) -> tuple[str, ...]:
    """What a hospital's bytes are, and what they would be if updates were not compressed."""
    phases = "training, consolidation, evaluation"
    if result.bytes_up_raw == result.bytes_up:
        return (phases,)
    return (phases, f"of {size(result.bytes_up_raw)} uncompressed")
