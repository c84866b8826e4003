"""The model that a server sends, at the moment of which a reconstruction is tried: at a stage's start."""

from __future__ import annotations

from dataclasses import dataclass

from fedcl import finish, growing, rng
from fedcl.anatomy import stage_file
from fedcl.contracts import FedclError, Params
from fedcl.leaks.plan import Target
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import DynamicNet


@dataclass(frozen=True, eq=False)
class Moment:
    """Before the first round of a stage."""

    stage: int  # from 0
    net: DynamicNet  # with the modules of the stage's tasks
    params: Params


def at(target: Target, stage: int) -> Moment:
    """The model as a stage starts with it, new modules included.

    Raises:
        FedclError: there is no such stage, or its model was not kept.
    """
    config, federation = target.config, target.federation
    if not 0 <= stage < len(federation.schedule):
        raise FedclError(f"--stage {stage + 1}: the run has the stages 1 to {len(federation.schedule)}")
    before: Params = {}
    if stage:
        file = target.path / stage_file(stage - 1)
        if not file.exists():
            raise FedclError(
                f"--stage {stage + 1}: {target.path} did not keep its model of stage {stage}; run it with "
                "--set run.keep_stages=true, or take --stage 1"
            )
        before, _ = finish.read(file)
    with rng.torch_global(config.start, "init"):
        net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads))
    if config.model.weights and not stage:
        dynamic_net.load_weights(net, config.model.weights)
    now = {task for client in federation.schedule[stage] for task in client}
    for task in federation.tasks:
        if task.index in now or any(name.startswith(f"tasks.{task.id}.") for name in before):
            with rng.torch_global(config.start, "init", task=task.index):
                net.add_task(task.id, len(task.classes), config.model.expansion_units)
    tasks = [task for task in federation.tasks if task.index in now]
    params = dict(net.state_dict()) | before | growing.modules(config, net, before, tasks)
    net = finish.restore(config, federation, params)
    return Moment(stage, net, {name: value.detach().clone() for name, value in net.state_dict().items()})
