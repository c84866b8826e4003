"""What a method's server half learns from the merged net alone, once a stage: it asks the net, and no hospital.

Nothing of the hospitals is at hand here but the model that they made together: no samples, no statistics, no uploads.
"""

from __future__ import annotations

import torch

from fedcl import features, rng
from fedcl.config import Config
from fedcl.contracts import Context, Job
from fedcl.device import Device
from fedcl.federation import Federation
from fedcl.methods import Combination
from fedcl.net import Net
from fedcl.plan import Plan
from fedcl.state import Group


class Synthesis:
    """The hook `synthesize` of a method, for each group of clients.

    It computes on `run.device` where the server's machine has that, otherwise on the CPU.

    Args:
        config: the experiment.
        federation: its tasks and the shape of its samples; samples are not touched.
        method: whose hook it is.
        plan: for what comes when.
    """

    def __init__(self, config: Config, federation: Federation, method: Combination, plan: Plan) -> None:
        self._config, self._federation, self._method, self._plan = config, federation, method, plan
        self._asked = "synthesize" in method.hooks()
        self._net: Net | None = None  # a second one in the process, made when it is needed

    def close(self, group: Group, stage: int) -> None:
        """Ask the method at a stage's end; what it says goes to the group's clients with their next Job.

        Not after the last stage, when nobody would hear it, nor where nobody of the group had a task.
        """
        now = self._plan.tasks(stage, group.clients)
        if not self._asked or not now or stage + 1 == len(self._federation.schedule):
            return
        device = self._device()
        if self._net is None:
            with rng.torch_global(self._config.start, "init"):  # weights that are loaded over; no draw is lost
                self._net = Net(self._config, self._federation, device.torch)
        net, params = self._net, device.memory(group.params)
        net.load(params)
        net.net.eval()
        net.train_only(())
        net.allow(now[-1], group.seen)
        overall = self._plan.overall(stage, self._config.train.rounds - 1)
        tasks = tuple(task.id for task in self._plan.past(stage + 1, group.clients, ()))
        job = Job("consolidate", stage, overall, (), params, past=tasks, seen=tuple(group.seen))
        bounds = features.bounds(self._config.data, self._federation.shape)
        context = Context(
            **net.answers(now[-1], job),
            net=net.net,
            task=now[-1],
            stage=stage,
            client=-1,
            lr=0.0,
            generator=rng.torch_stream(self._config.seed, "synthesize", client=group.clients[0], round=overall),
            outputs=net.outputs,
            buffers=net.buffers(params),
            shape=self._federation.shape,
            bounds=bounds and (bounds[0].to(device.torch), bounds[1].to(device.torch)),
        )
        state, news = self._method.synthesize(context, dict(net.parameters(params)), device.memory(group.method))
        group.method = {name: value.cpu() for name, value in state.items()}
        group.announce({name: value.detach().cpu() for name, value in news.items()})

    def _device(self) -> Device:
        run = self._config.run
        there = run.device.partition(":")[0] != "cuda" or torch.cuda.is_available()
        return Device(run if there else run.model_copy(update={"device": "cpu"}))
