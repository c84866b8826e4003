"""PackNet and HAT: history is fixed, capacity is used, and the server decides the masks."""

from __future__ import annotations

import pytest
import torch
from small import model

from fedcl.config import Model
from fedcl.contracts import FedclError, Moment
from fedcl.methods.hat import HAT
from fedcl.methods.packnet import PackNet
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import WeightMask

TWO = {"classes": [[0, 1], [2, 3]], "tasks": 2}
ONE = {"classes": [[0, 1]], "tasks": 1}
HARD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "rounds": 5}


def _net(masks, name="mlp", options=None, tasks=2):
    torch.manual_seed(0)
    options = options or {"hidden": [8, 6]}
    net = dynamic_net.build(Model(name=name, options=options, masks=masks), (1, 6, 6), 3)
    for task in range(tasks):
        net.add_task(f"t{task}", 2, 4)
    return net


def _merged(method, net, stage, rounds, of=5):
    moment = Moment(stage, rounds, of, (f"t{stage}",), tuple(f"t{k}" for k in range(stage)))
    params = dict(net.state_dict())
    return method.merged(moment, params, params, {})[0]


def test_fresh_masks_change_nothing_but_gates_that_are_shut():
    plain, packed = _net("none"), _net("weights")
    packed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(plain(x, "t0"), packed(x, "t0"))
    gated = _net("units")
    with torch.no_grad():
        for name, value in gated.named_parameters():
            if ".trunk.layers-1.logits" in name:
                value.fill_(-1.0)  # σ(400 · −1) = 0: no feature passes
    torch.testing.assert_close(gated.features(x, "t0"), torch.zeros(4, 6))


def test_pruning_keeps_the_largest_and_zeroes_the_rest():
    net = _net("weights")
    params = _merged(PackNet(keep=0.25), net, 0, 3)
    owner, weight = params["gates.t0.trunk.layers-0.owner"], params["trunk.layers.0.weight"]
    before = net.state_dict()["trunk.layers.0.weight"]
    kept = owner == WeightMask.FREE
    assert int(kept.sum()) == 72  # of 8 × 36
    assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(weight, torch.where(kept, before, 0.0))
    assert torch.equal(params["trunk.layers.0.bias"], net.state_dict()["trunk.layers.0.bias"])


def test_the_next_task_gets_what_was_pruned():
    net = _net("weights")
    net.load_state_dict(_merged(PackNet(keep=0.25), net, 0, 3))
    params = _merged(PackNet(), net, 1, 0)
    first, second = (params[f"gates.t{task}.trunk.layers-0.owner"] for task in (0, 1))
    assert torch.equal(second == WeightMask.TAKEN, first == WeightMask.FREE)
    assert torch.equal(second == WeightMask.FREE, first == WeightMask.UNUSED)


def test_a_task_that_comes_back_owns_nothing_new():
    net = _net("weights", tasks=1)
    net.load_state_dict(_merged(PackNet(keep=0.25), net, 0, 3))
    params = dict(net.state_dict())
    again, _ = PackNet().merged(Moment(2, 0, 5, ("t0",), ("t0",)), params, params, {})
    assert not (again["gates.t0.trunk.layers-0.owner"] == WeightMask.FREE).any()


@pytest.mark.parametrize("heads", ["task", "shared"])
def test_packnet_forgets_nothing_by_a_bit(run, heads):
    """Momentum and weight decay included: what the first task answered it answers after the second."""
    changes = {"method": "packnet", "train": HARD, "model": {"heads": heads, "mask": "task"}}
    short, long = run("short", **changes, stream=ONE), run("long", **changes, stream=TWO)
    first, second = model(short), model(long)
    used = first["gates.t0.trunk.layers-0.owner"] != WeightMask.UNUSED
    assert 0 < used.double().mean() < 0.6
    for name in ("trunk.layers.0.weight", "trunk.layers.1.weight"):
        mask = first[f"gates.t0.{name.replace('layers.', 'layers-').replace('.weight', '.owner')}"]
        keep = mask != WeightMask.UNUSED
        assert torch.equal(first[name][keep], second[name][keep])
        assert not torch.equal(first[name], second[name])
    assert torch.equal(first["trunk.layers.0.bias"], second["trunk.layers.0.bias"])
    assert long.metrics["forgetting"] == 0.0


def test_hat_protects_what_the_first_task_uses(run):
    """A weight between two units of an earlier task's mask does not move, whatever the optimiser remembers."""
    changes = {"method": "hat", "train": HARD, "federation": {"clients": 2}}
    first, second = model(run("short", **changes, stream=ONE)), model(run("long", **changes, stream=TWO))
    gates = [torch.sigmoid(400 * first[f"gates.t0.trunk.layers-{k}.logits"]) for k in (0, 1)]
    both = torch.minimum(gates[1][:, None], gates[0][None, :])
    one = first["trunk.layers.1.weight"]
    moved = (second["trunk.layers.1.weight"] - one).abs()
    assert float(moved[both == 1].max()) == 0.0 if bool((both == 1).any()) else True
    assert bool((both == 1).any())
    assert float(moved[both < 0.5].max()) > 0.0
    assert second["gates.t0.trunk.layers-0.logits"].equal(first["gates.t0.trunk.layers-0.logits"])
    assert second["gates.t1.trunk.layers-0.taken"].equal(gates[0])


def test_hat_scales_the_update_by_hand():
    """Gates of earlier tasks: out (1, 0), in (1, ½): 1 − min = [[0, ½], [1, 1]]; the bias by 1 − out."""
    from contexts import context

    from fedcl.contracts import Step

    torch.manual_seed(0)
    net = dynamic_net.build(Model(options={"hidden": [2, 2]}, masks="units"), (3,), 3)
    net.add_task("t0", 2, 4)
    buffers = dict(net.named_buffers())
    buffers["gates.t0.trunk.layers-0.taken"] = torch.tensor([1.0, 0.5])
    buffers["gates.t0.trunk.layers-1.taken"] = torch.tensor([1.0, 0.0])
    ctx = context(net, buffers=buffers)
    before = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    after = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    edited, _ = HAT().edit_update(ctx, Step(before, {}, after), {})
    assert edited["trunk.layers.1.weight"].tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert edited["trunk.layers.1.bias"].tolist() == [0.0, 1.0]
    assert edited["trunk.layers.0.weight"].tolist() == [[0.0] * 3, [0.5] * 3]


def test_a_channel_s_gate_covers_all_its_pixels_in_the_next_layer():
    net = _net("units", "cnn", {"channels": [3], "width": 5}, tasks=1)
    assert net.chain() == ("convs.0", "out")
    assert net.state_dict()["trunk.out.weight"].shape == (5, 27)  # 3 channels of 3 × 3


def test_trunks_without_a_chain_are_refused():
    with pytest.raises(FedclError, match="each feed only the next"):
        _net("units", "resnet18", {"width_multiplier": 0.0625})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "packnet", "train": {"rounds": 1}}, "at least 2"),
        ({"method": "packnet", "model": {"heads": "shared"}}, "task's identity"),
        ({"method": "hat", "model": {"heads": "domain"}}, "task's identity"),
        ({"method": "hat", "model": {"masks": "none"}}, "model.masks"),
        ({"method": "hat+packnet"}, "both mask the trunk"),
        ({"method": "replay+der"}, "both replace the loss"),
        ({"method": "cumulative+ewc"}, "goes alone"),
        ({"method": "gpm+ogd"}, "last edit"),
        ({"method": "gpm+ewc"}, "write ewc.gpm"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(run, tmp_path, changes, message):
    with pytest.raises(FedclError, match=message):
        run("refused", **changes)
    assert not (tmp_path / "refused").exists()
