"""A trunk's starting weights, from a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedcl.contracts import FedclError

_HEADS = ("fc.", "head.", "heads.", "classifier.", "tasks.", "gates.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's; no trunk here has one


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Start the trunk from a file; task modules and heads stay as they are.

    Names may have the prefix `trunk.`. Classifier heads and BatchNorm statistics in the file are passed over,
    so torchvision's ResNet-18 loads: its convolutions, and BatchNorm's weight and bias into GroupNorm's.

    Args:
        net: has the attribute `trunk`, or is the trunk.
        path: `model.weights`: safetensors, or a state dict that torch saved (.pt, .pth).

    Raises:
        FedclError: the file is missing or unreadable, or does not fit the trunk; then nothing has changed.
    """
    trunk = getattr(net, "trunk", net)
    found = _own(_read(Path(path).expanduser()))
    wanted = trunk.state_dict()
    faults = [f"missing {name} {list(value.shape)}" for name, value in wanted.items() if name not in found]
    faults += [f"{name} is not in the trunk" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name].shape)}, the trunk's {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise FedclError(
            f"model.weights = {str(path)!r} does not fit the trunk: {shown}. "
            "Set model.name and model.options to the net that was saved, or take another file"
        )
    trunk.load_state_dict(found)


def _own(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the trunk's names, without heads and BatchNorm statistics."""
    if any(name.startswith("trunk.") for name in state):
        return {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}
    return {
        name: value for name, value in state.items() if not name.startswith(_HEADS) and not name.endswith(_STATISTICS)
    }


def _read(path: Path) -> dict[str, Tensor]:
    key = f"model.weights = {str(path)!r}"
    if not path.is_file():
        raise FedclError(f"{key}: there is no such file; name a .safetensors, .pt or .pth, or leave it empty")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise FedclError(
            f"{key} cannot be read ({reason}); save it with safetensors, or with torch.save(net.state_dict(), path)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FedclError(f"{key} holds no state dict of tensors; save it with torch.save(net.state_dict(), path)")
    return state
