"""The net of an exported file: one module that takes inputs as the data set has them, and answers for each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedcl import finish
from fedcl.config import Config
from fedcl.contracts import FedclError, Params
from fedcl.models.dynamic_net import SHARED


class Exported(nn.Module):
    """The net of an exported file, in evaluation mode.

    It takes inputs as they are before normalisation, where all hospitals have the same (`info["normalize"]`).
    Of a simulated domain (`stream.kind = "domain"`) it takes them as in training: normalised, then permuted or rotated.

    Attributes:
        net: the DynamicNet.
        tasks: task id → the names of its classes, in the order of the outputs.
        info: all that the file says of itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, params: Params, info: dict[str, Any]) -> None:
        super().__init__()
        config, self.info = Config.model_validate(info["config"]), info
        self._places = {task["id"]: list(task["classes"]) for task in info["tasks"]}
        self.tasks = {task: tuple(info["classes"][c] for c in places) for task, places in self._places.items()}
        sizes = {task: len(places) for task, places in self._places.items()}
        self.net = finish.rebuild(config, tuple(info["shape"]), info["outputs"], sizes, params)
        # A simulated domain is made of samples that are normalised already: there is nothing to do before it.
        scaling, shape = ({} if config.stream.kind == "domain" else info["normalize"]), info["shape"]
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            given = scaling.get(name, [neutral])
            given = given * shape[0] if len(given) == 1 else given  # one number for all channels
            given = given + [neutral] * (shape[0] - len(given))  # flags of missing values are not scaled
            self.register_buffer(name, torch.tensor(given).reshape(-1, *[1] * (len(shape) - 1)))
        self.eval()

    def forward(self, x: Tensor, task: str = "") -> Tensor:
        """Samples x [B, *shape] → logits of the task's classes [B, classes].

        Args:
            x: float32, or uint8 (0…255), which is divided by 255. Missing values are to be imputed and flagged.
            task: its id; "" gives all outputs of a head that tasks share.

        Raises:
            FedclError: there is no such task.
        """
        shared = self.net.owner("") == SHARED
        if task not in self.tasks and not (shared and not task and self.net.masks == "none"):
            raise FedclError(f"task {task!r} is not in this file; there are: {', '.join(self.tasks)}")
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        logits: Tensor = self.net((x - self.mean) / self.std, task or SHARED)
        return self._own(logits, task) if task else logits

    def every(self, x: Tensor) -> dict[str, Tensor]:
        """Samples x [B, *shape] → the logits of each task, by its id; without masks the trunk is computed once."""
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        x, tasks = (x - self.mean) / self.std, list(self.tasks)
        if self.net.masks != "none":  # one by one: which tasks see the same is no question for a traced program
            found = [self.net(x, task) for task in tasks]
        elif self.net.owner("") == SHARED:
            found = [self.net(x, SHARED)] * len(tasks)
        else:
            found = self.net(x, tasks)
        return {task: self._own(logits, task) for task, logits in zip(tasks, found, strict=True)}

    def _own(self, logits: Tensor, task: str) -> Tensor:
        """Of a shared head, the outputs that are the task's classes."""
        if self.net.owner("") != SHARED:
            return logits
        places = self._places[task]
        return logits[:, : len(places)] if self.net.by_place() else logits[:, places]
