"""The exported net as a program that needs no fedcl: torch.export's .pt2, or ONNX.

It takes x [B, *shape] float32 as the data set has it (images 0…1), any B ≥ 1, and answers with the logits of every
task, by the task's id. TorchScript is left out: torch.jit is deprecated, and what it would load, .pt2 loads.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedcl import rng
from fedcl.contracts import FedclError
from fedcl.export.net import Exported

FORMATS = {".pt2": "torch.export", ".onnx": "onnx"}  # suffix → format, of what is a program
_NOTE = "fedcl.json"  # where the file says what it is
_NEAR = 1e-4  # of the largest logit: what another order of sums may change


class _Every(nn.Module):
    def __init__(self, net: Exported) -> None:
        super().__init__()
        self.whole = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.whole.every(x)


def check(form: str) -> None:
    """Raise FedclError where what a format needs is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        if not importlib.util.find_spec(package):
            raise FedclError(f"--format onnx needs {package}: pip install 'fedcl[onnx]'")


def write(net: Exported, output: Path, form: str) -> float:
    """Write the program, read it back, and compare its answers with the net's own.

    Args:
        net: what is written; its `info` goes with it.
        output: the file; one that is there is replaced.
        form: a value of FORMATS.

    Returns:
        The largest difference of a logit on random samples.

    Raises:
        FedclError: the file cannot be written, or it answers otherwise.
    """
    if not output.parent.is_dir():
        raise FedclError(f"--output {output}: there is no folder {output.parent}; choose another place")
    module = _Every(net).eval().requires_grad_(False)
    draws = rng.torch_stream(0, "export")
    # Not a batch of one: torch.export would take 1 for a number that never changes.
    x, more = (torch.rand(n, *net.info["shape"], generator=draws) for n in (2, 5))
    temporary = output.with_name(f".{os.getpid()}.{output.stem}.tmp{output.suffix}")
    try:
        if form == "onnx":
            _onnx(module, x, list(net.tasks), temporary, net.info)
            found = run_onnx(temporary, more)
        else:
            program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            torch.export.save(program, temporary, extra_files={_NOTE: json.dumps(net.info)})
            found = torch.export.load(temporary).module()(more)
        distance = _distance(module(more), found, output)
        os.replace(temporary, output)
    except OSError as error:
        raise FedclError(f"--output {output}: {error}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)
    return distance


def run_onnx(path: Path, x: Tensor) -> dict[str, Tensor]:
    """Answers of an ONNX file on this machine's CPU, by output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"x": x.numpy()})), strict=True))


def _onnx(module: nn.Module, x: Tensor, tasks: list[str], path: Path, info: Mapping[str, Any]) -> None:
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"):  # constants are folded in NumPy, where σ of a large number overflows to 0 or 1
            program = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=tasks,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
    finally:
        quiet.setLevel(before)
    if program is None:
        raise FedclError("torch.onnx.export made no program")
    program.model.metadata_props[_NOTE] = json.dumps(info)
    program.save(path, external_data=False)


def _distance(own: Mapping[str, Tensor], found: Mapping[str, Tensor], output: Path) -> float:
    if own.keys() != found.keys():
        raise FedclError(f"{output}: the program answers for {', '.join(found)} instead of {', '.join(own)}")
    distance = max((float((own[task] - found[task]).abs().max()) for task in own), default=0.0)
    largest = max((float(logits.abs().max()) for logits in own.values()), default=1.0)
    if not distance <= _NEAR * max(largest, 1.0):
        raise FedclError(f"{output}: the program's logits differ by {distance:.1e}; take the format safetensors")
    return distance
