"""The same federation in worker processes as in one: bit for bit. Ray and SuperLink have tests of their own."""

from __future__ import annotations

import json

import pytest
from small import assert_same

from fedcl import anatomy

# One of each kind: importances, buffers, teachers, paths, bases, masks of three kinds, everything anew, samples that
# are made up.
METHODS = ("ewc", "replay", "lwf", "si", "gpm", "packnet", "hat", "cumulative", "fedweit", "target")
CASES = {name: {"method": name} for name in METHODS}
CASES |= {
    "a Fisher that is summed over hospitals": {"method": "ewc", "methods": {"ewc": {"share": "sum"}}},
    "consolidation on local models": {"federation": {"consolidate_on": "local"}},
    "optimiser state that is kept": {"train": {"optimizer": "adam", "lr": 0.01, "reset": "never"}},
    "a share of the hospitals": {"federation": {"fraction": 0.5}},
    "pooled data": {"federation": {"kind": "central"}},
    "each alone": {"federation": {"kind": "local"}},
    "a net that grows": {
        "train": {"rounds": 4},
        "model": {"growth": "threshold"},
        "growth": {"threshold": {"ratio": 0.99, "window": 1, "patience": 2, "smallest": 0.0, "where": "both"}},
    },
    "modules that are only asked": {"method": "lwf", "stream": {"schedule": "shuffled"}},
    "another domain": {"stream": {"kind": "domain"}},
}


@pytest.mark.parametrize("case", CASES)
def test_processes_do_what_one_process_does(run, case):
    changes = CASES[case]
    inline = run("inline", **changes)
    workers = run("processes", **changes, **{"run": {"runtime": "processes", "workers": 2}})
    assert_same(inline, workers)
    assert (inline.path / anatomy.FILE).read_bytes() == (workers.path / anatomy.FILE).read_bytes()
    placed = json.loads((workers.path / "placement.json").read_text())
    assert len(placed["slots"]) == min(2, len(placed["clients"]))
