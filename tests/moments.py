"""Small nets that can grow, and the moments at which a rule of growth is asked."""

from __future__ import annotations

import torch

from fedcl.config import Model
from fedcl.contracts import Moment
from fedcl.models import dynamic_net


def built(name="mlp", tasks=("t0", "t1"), **options):
    torch.manual_seed(0)
    model = Model(name=name, options=options or {"hidden": [4, 3]}, expansion_units=5, masks="slices")
    net = dynamic_net.build(model, (1, 8, 8), 4)
    for task in tasks:
        net.add_task(task, 2, 5)
    return net


def at(net, stage, done, rounds=10, loss=None):
    layers = net.growable((f"t{stage}",))
    past = tuple(f"t{k}" for k in range(stage))
    return Moment(stage, done, rounds, (f"t{stage}",), past, {} if loss is None else {f"t{stage}": loss}, layers)
