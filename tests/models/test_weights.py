from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedcl.config import Model
from fedcl.contracts import FedclError
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import DynamicNet, load_weights


def net(seed: int, hidden: int = 5) -> DynamicNet:
    torch.manual_seed(seed)
    built = dynamic_net.build(Model(options={"hidden": [4, hidden]}), (1, 3), 2)
    built.add_task("t0", 2, 3)
    return built


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("prefix", [True, False])
def test_the_trunk_starts_from_a_file_and_nothing_else_moves(tmp_path: Path, suffix: str, prefix: bool) -> None:
    source, target = net(1), net(2)
    heads = {name: value.clone() for name, value in target.state_dict().items() if not name.startswith("trunk.")}
    state = source.state_dict() if prefix else {**source.trunk.state_dict(), "fc.weight": torch.zeros(2, 5)}
    load_weights(target, save(dict(state), tmp_path / f"w{suffix}"))
    assert all(torch.equal(value, source.trunk.state_dict()[k]) for k, value in target.trunk.state_dict().items())
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in heads.items())


def test_torchvisions_resnet18(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(weights=None).state_dict()
    file = save(theirs, tmp_path / "resnet18.pth")
    with pytest.raises(FedclError, match=r"conv1.weight is \[64, 3, 7, 7\], the trunk's \[64, 3, 3, 3\]"):
        load_weights(dynamic_net.build(Model(name="resnet18"), (3, 32, 32), 2), file)
    target = dynamic_net.build(Model(name="resnet18", options={"stem": "large"}), (3, 32, 32), 2)
    load_weights(target, file)
    for name, value in target.trunk.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    target = net(2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(FedclError, match=r"layers.1.weight is \[6, 4\], the trunk's \[5, 4\]"):
        load_weights(target, save(net(1, hidden=6).state_dict(), tmp_path / "wide.pt"))
    short = {name: value for name, value in net(1).state_dict().items() if name != "trunk.layers.1.bias"}
    with pytest.raises(FedclError, match=r"missing layers.1.bias \[5\]"):
        load_weights(target, save(short, tmp_path / "short.safetensors"))
    deep = net(1).trunk.state_dict() | {"layers.2.weight": torch.zeros(1)}
    with pytest.raises(FedclError, match=r"layers.2.weight is not in the trunk"):
        load_weights(target, save(deep, tmp_path / "deep.pt"))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FedclError, match=r"model.weights = .*gone.pt.*no such file"):
        load_weights(net(0), tmp_path / "gone.pt")
    for name in ("junk.pt", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"not a tensor in sight")
        with pytest.raises(FedclError, match="cannot be read"):
            load_weights(net(0), tmp_path / name)
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(FedclError, match="no state dict"):
        load_weights(net(0), tmp_path / "list.pt")
    torch.save(net(0), tmp_path / "module.pt")  # a whole module would run code
    with pytest.raises(FedclError, match="cannot be read"):
        load_weights(net(0), tmp_path / "module.pt")
