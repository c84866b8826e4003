"""The same laws for every trunk, and for what draws at random in a step: interrupted and resumed, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import BASE, assert_same, light, merged, stop_after

from fedcl import plugins
from fedcl.config import Config
from fedcl.simulation import Interrupted, simulate

IMAGES = {"options": {"samples": 240, "classes": 4, "shape": [1, 8, 8]}}
SMALL = {
    "cnn": {"channels": [4, 4], "width": 16},
    "mlp": {"hidden": [16]},
    "resnet18": {"width_multiplier": 0.0625},
    "vit": {"dim": 16, "depth": 1, "heads": 2},
}
# Settings at which each rule of growth does something in a few rounds.
EAGER = {
    "threshold": {"ratio": 0.99, "window": 1, "patience": 2, "smallest": 0.0, "where": "both"},
    "progressive": {"ratio": 0.99, "window": 1, "patience": 2, "smallest": 0.0},
    "search": {"candidates": 4},
    "prune": {"importance": "fisher", "at": 0.5},
    "den": {"above": 0.0, "split": 0.01},
}
VARIANTS = {
    **{name: {"model": {"name": name, "options": SMALL.get(name, {})}} for name in plugins.names("models")},
    **{f"{name} of trunks": {"federation": {"aggregator": name}} for name in plugins.names("aggregators")},
    **{
        f"{name} of modules": {"federation": {"merger": name}, "stream": {"schedule": "shuffled"}}
        for name in plugins.names("mergers")
    },
    "own modules, replayed, late hospitals": {
        "federation": {"merger": "personal"},
        "method": "replay",
        "stream": {"schedule": "staggered"},
    },
    **{
        f"a net that grows: {name}": {
            "model": {"growth": name, "options": {"hidden": [8, 8]}},
            "growth": {name: options},
        }
        for name, options in EAGER.items()
    },
    "attention that grows": {
        "model": {
            "name": "vit",
            "options": {"dim": 16, "depth": 1, "heads": 2, "adapters": True},
            "growth": "progressive",
        },
        "growth": {"progressive": EAGER["progressive"]},
    },
    "nets that grow apart": {
        "federation": {"merger": "personal"},
        "stream": {"schedule": "shuffled"},
        "model": {"growth": "threshold"},
        "growth": {"threshold": EAGER["threshold"]},
    },
    "each grows alone": {
        "federation": {"kind": "local"},
        "model": {"growth": "threshold"},
        "growth": {"threshold": EAGER["threshold"]},
    },
    "Fishers summed of a net that grows": {
        "methods": {"ewc": {"share": "sum"}},
        "model": {"growth": "threshold"},
        "growth": {"threshold": EAGER["threshold"]},
    },
    "made-up samples of a net that grows": {
        "method": "target",
        "model": {"growth": "den", "options": {"hidden": [8, 8]}},
        "growth": {"den": EAGER["den"]},
    },
    "momentum of a net that grows": {
        "method": "si+lwf",
        "model": {"growth": "threshold+prune"},
        "growth": {"threshold": EAGER["threshold"], "prune": {"at": 0.5}},
        "federation": {"aggregator": "fedadam", "fraction": 0.5},
        "train": {"reset": "never"},
    },
    "dropout": {"model": {"options": {"hidden": [16, 16], "dropout": 0.3}}},
    "augmentation": {"data": {"augment": ["RandomCrop(8, padding=1)", "RandomHorizontalFlip()"]}},
    "weight normalisation": {"model": {"options": {"hidden": [16]}, "weight_norm": True}},
    "shared head": {"model": {"heads": "shared", "options": {"hidden": [16]}}},
    "some hospitals a round": {"federation": {"clients": 4, "fraction": 0.5}},
    "shuffled tasks": {"stream": {"schedule": "shuffled"}},
    "late hospitals": {"stream": {"schedule": "staggered"}},
    "a task comes back": {"stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]}},
    "Fishers summed": {"methods": {"ewc": {"share": "sum"}}},
    "Fishers apart": {"methods": {"ewc": {"form": "separate"}}},
    "consolidated locally": {"federation": {"consolidate_on": "local"}},
    "each alone": {"federation": {"kind": "local"}},
    "pooled": {"federation": {"kind": "central"}},
    "all at once": {"federation": {"kind": "joint"}},
    "SGD's momentum kept": {"train": {"reset": "never"}},
    "SGD's momentum kept, tasks come back": {
        "train": {"reset": "never"},
        "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]},
    },
    "two methods": {"method": "ewc+freeze"},
    "a penalty and replay": {"method": "ewc+replay"},
    "distillation and a projection": {"method": "lwf+gpm", "train": {"reset": "never"}},
    "inputs summed": {"method": "gpm", "methods": {"gpm": {"share": "sum"}}},
    "a balanced buffer": {"method": "replay", "methods": {"replay": {"keep": "balanced", "when": "step"}}},
    "a herded buffer in one head": {
        "method": "replay",
        "methods": {"replay": {"keep": "herding"}},
        "model": {"heads": "shared", "options": {"hidden": [16]}},
    },
    "Gaussians": {"method": "retain", "methods": {"retain": {"on": "gaussian"}}},
    "a stream that passes once": {"method": "der", "train": {"stream": "online"}},
    "a stream, some hospitals a round": {"train": {"stream": "online", "rounds": 3}, "federation": {"fraction": 0.5}},
    "a stream that consolidates": {"train": {"stream": "hybrid", "consolidate_every": 1}},
    "a curriculum": {"method": "replay", "train": {"order": "curriculum"}},
    "a head by place": {"model": {"heads": "domain", "options": {"hidden": [16]}}, "method": "lwf"},
    "modules that train along, by precision, and tasks come back": {
        "method": "replay",
        "federation": {"merger": "fisher"},
        "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]},
    },
    "gates that are asked alone": {"method": "lwf+hat", "stream": {"schedule": "shuffled"}},
    "momentum of the server, kept": {
        "method": "lwf+hat",
        "federation": {"aggregator": "fedavgm", "merger": "fedadam"},
        "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]},
        "train": {"reset": "never"},
    },
    "masks, and tasks come back": {
        "method": "packnet",
        "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]},
    },
    "own weights, and tasks come back": {
        "method": "fedweit",
        "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [0, -1, 1]]},
    },
    "own weights, some hospitals a round, convolutions": {
        "method": "fedweit",
        "federation": {"clients": 4, "fraction": 0.5, "consolidate_on": "local"},
        "model": {"name": "cnn", "options": SMALL["cnn"]},
    },
    "made-up samples, late hospitals": {"method": "target", "stream": {"schedule": "staggered"}},
    "made-up samples in one head, each alone": {
        "method": "target",
        "federation": {"kind": "local"},
        "model": {"heads": "shared", "options": {"hidden": [16]}},
    },
    "made-up samples through masks": {"method": "hat+target", "methods": {"target": {"split": False}}},
    "gates, late hospitals": {"method": "hat", "stream": {"schedule": "staggered"}},
    "everything anew, late hospitals": {"method": "cumulative", "stream": {"schedule": "staggered"}},
    "all at once, Fishers apart": {"federation": {"kind": "joint"}, "methods": {"ewc": {"form": "separate"}}},
    "permuted": {"stream": {"kind": "domain"}},
    "rotated": {"stream": {"kind": "domain", "domain": "rotated"}},
}


QUICK = {"data": IMAGES, "stream": {"tasks": 2}, "train": {"epochs": 1, "rounds": 2}}


def _config(variant: str, output: Path) -> Config:
    start = merged(BASE | {"model": {"expansion_units": 8}}, **QUICK)
    run = {"output": str(output), "checkpoint_every": 1}
    if "grow" in variant:
        start = merged(start, train={"rounds": 4})
    return Config.model_validate(merged(light(merged(start, **VARIANTS[variant])), run=run))


def test_every_rule_of_growth_is_among_them():
    assert set(EAGER) == set(plugins.names("growth"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_is_uninterrupted(tmp_path, variant, monkeypatch):
    whole = simulate(_config(variant, tmp_path / "whole"))
    stop_after(monkeypatch, 1 if "all at once" in variant else 8 if "grow" in variant else 3)
    with pytest.raises(Interrupted):
        simulate(_config(variant, tmp_path / "parts"))
    monkeypatch.undo()
    assert_same(whole, simulate(_config(variant, tmp_path / "parts")))
    assert [record for record in whole.records if record.phase == "fault"] == []
