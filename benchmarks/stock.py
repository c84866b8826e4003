"""What one would write with stock Flower for the workload of `runtimes.py`: FedAvg on a CNN, on Ray or on a SuperLink.

python benchmarks/stock.py CLIENTS ROUNDS FILE       # on Ray; a line with each round's seconds goes to FILE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fedcl.runtime import flower

APP = '''"""FedAvg on a CNN with stock Flower."""
import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

SAMPLES = 200


def model():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    )


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    net = model()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x, y = torch.randn(SAMPLES, 1, 28, 28, generator=generator), torch.randint(10, (SAMPLES,), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    for chunk in torch.split(torch.randperm(SAMPLES), 32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[chunk]), y[chunk]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": SAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    from pathlib import Path

    begin = time.monotonic()

    def note(number, arrays):
        nonlocal begin
        if number:
            with Path(FILE).open("a") as file:
                file.write(f"{time.monotonic() - begin}\\n")
        begin = time.monotonic()

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model().state_dict()), num_rounds=ROUNDS, evaluate_fn=note)
'''


def source(clients: int, rounds: int, times: Path) -> str:
    """The app with its numbers."""
    text = APP.replace("FILE", repr(str(times)))
    return text.replace("CLIENTS", str(clients)).replace("ROUNDS", str(rounds))


def deployed(folder: Path, deployment: Path, clients: int, rounds: int, times: Path) -> list[str]:
    """The command that runs the app on a deployment, and waits for its end."""
    bundle = folder / "stock-app" / "stock_app"
    bundle.mkdir(parents=True)
    (bundle / "__init__.py").touch()
    (bundle / "app.py").write_text(source(clients, rounds, times))
    (bundle.parent / "pyproject.toml").write_text(
        '[project]\nname = "stock-app"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndescription = "FedAvg"\n'
        '[tool.flwr.app]\npublisher = "fedcl"\n[tool.flwr.app.components]\n'
        'serverapp = "stock_app.app:server"\nclientapp = "stock_app.app:client"\n[tool.flwr.app.config]\n'
    )
    environment = flower.environment(deployment / "server" / "flower")
    needed = [f"{key}={environment[key]}" for key in ("FLWR_HOME", "PATH")]
    return ["env", *needed, flower.command("flwr"), "run", str(bundle.parent), flower.CONNECTION, "--stream"]


def main() -> None:
    """On Ray, two clients at a time."""
    clients, rounds, times = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    from flwr.simulation import run_simulation

    module: dict[str, object] = {"__name__": "stock_app"}
    exec(compile(source(clients, rounds, times), "stock_app", "exec"), module)
    run_simulation(
        server_app=module["server"],
        client_app=module["client"],
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    time.sleep(0.5)


if __name__ == "__main__":
    main()
