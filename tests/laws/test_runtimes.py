"""The same federation in worker processes as in one: bit for bit. Ray and SuperLink have tests of their own."""

from __future__ import annotations

import json

import pytest
from small import assert_same

# One of each kind: importances, buffers, teachers, paths, bases, masks over weights and units, everything anew,
# and samples that the server makes.
METHODS = ("ewc", "replay", "lwf", "si", "gpm", "packnet", "hat", "cumulative", "target")
CASES = {name: {"method": name} for name in METHODS}
CASES |= {
    "a Fisher that is summed over hospitals": {"method": "ewc", "methods": {"ewc": {"share": "sum"}}},
    "consolidation on local models": {"federation": {"consolidate_on": "local"}},
    "optimiser state that is kept": {"train": {"optimizer": "adam", "lr": 0.01, "reset": "never"}},
    "a share of the hospitals": {"federation": {"fraction": 0.5}},
    "pooled data": {"federation": {"kind": "central"}},
    "each alone": {"federation": {"kind": "local"}},
    "another domain": {"stream": {"kind": "domain"}},
}


@pytest.mark.parametrize("case", CASES)
def test_processes_do_what_one_process_does(run, case):
    changes = CASES[case]
    inline = run("inline", **changes)
    workers = run("processes", **changes, **{"run": {"runtime": "processes", "workers": 2}})
    assert_same(inline, workers)
    placed = json.loads((workers.path / "placement.json").read_text())
    assert len(placed["slots"]) == min(2, len(placed["clients"]))
