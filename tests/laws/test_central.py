"""One client and FedAvg are central training, against a training loop written out here."""

from __future__ import annotations

import torch
from small import model

from fedcl import federation, rng
from fedcl.models import dynamic_net

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}


def _oracle(config, make_optimizer):
    """Task after task on all data: the same batches, plain torch."""
    data = federation.build(config)
    with rng.torch_global(config.seed, "init"):
        net = dynamic_net.build(config.model, data.shape, len(data.classes))
    for task in data.tasks:
        with rng.torch_global(config.seed, "init", task=task.index):
            net.add_task(task.id, len(task.classes), config.model.expansion_units)
        batch = data.train_data(0, task.index)
        y = (batch.y[:, None] == torch.tensor(task.classes)).int().argmax(1)
        mine = [p for n, p in net.named_parameters() if n.startswith("trunk.") or n.split(".")[1] == task.id]
        for number in range(config.train.rounds):
            generator = rng.torch_stream(config.seed, "train", 0, task.index, task.index * config.train.rounds + number)
            optimizer = make_optimizer(mine)
            for _ in range(config.train.epochs):
                for chunk in torch.randperm(len(y), generator=generator).split(config.train.batch_size):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(batch.x[chunk], task.id), y[chunk]).backward()
                    optimizer.step()
    return net.state_dict()


def _check(run, small, **changes):
    kind = changes["train"]["optimizer"]
    expected = _oracle(small(method="finetune", **changes), OPTIMIZERS[kind])
    result = model(run("run", method="finetune", **changes))
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-6, rtol=1e-6)


def test_one_client_is_central_training_sgd(run, small):
    _check(run, small, federation={"clients": 1}, train={"optimizer": "sgd", "lr": 0.05})


def test_one_client_is_central_training_adamw(run, small):
    adamw = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
    _check(run, small, federation={"clients": 1}, train=adamw)


def test_central_mode_pools_all_hospitals(run, small):
    _check(run, small, federation={"kind": "central"}, train={"optimizer": "sgd"})
