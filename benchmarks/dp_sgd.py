"""What a step of DP-SGD (clip and noise) costs over a plain SGD step, and with Opacus where it is installed.

    python benchmarks/dp_sgd.py              # MLP 784-256 and the CNN trunk, each with a task module, batch 32 and 128

All take the same steps of one optimiser class on one thread and are timed in turns; of each the shortest CPU time
counts, and its ratio to the plain step is printed. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcl import noise
from fedcl.clipped import clipped_sum
from fedcl.config import Model
from fedcl.models import dynamic_net

CLIP, SIGMA, RATE = 1.0, 1.0, 1e-4
Step = Callable[[Tensor, Tensor], None]


class Plain(nn.Module):
    """The net for one task, its gate open, as layers that Opacus knows."""

    def __init__(self, net: dynamic_net.DynamicNet) -> None:
        super().__init__()
        self.trunk, self.hidden, self.out = net.trunk, net.tasks["t0"].hidden, net.tasks["t0"].out

    def forward(self, x: Tensor) -> Tensor:
        """Samples to logits."""
        return self.out(torch.relu(self.hidden(self.trunk(x))))


def build(name: str, options: dict[str, Any]) -> dynamic_net.DynamicNet:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(name=name, options=options), (1, 28, 28), 10)
    net.add_task("t0", 10, 32)
    return net


def plain(net: dynamic_net.DynamicNet) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), RATE, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x, "t0"), y).backward()
        optimizer.step()

    return step


def ours(net: dynamic_net.DynamicNet) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), RATE, fused=True)
    params, generator = dict(net.named_parameters()), torch.Generator().manual_seed(0)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x, "t0"), y, reduction="none")

    def draw(shapes: noise.Shapes, std: float) -> dict[str, Tensor]:
        return noise.seeded(shapes, std, generator)

    def step(x: Tensor, y: Tensor) -> None:
        sums, _ = clipped_sum(net, params, losses, (x, y), CLIP)
        for name, value in noise.added(sums, SIGMA * CLIP, draw).items():
            params[name].grad = value.div_(len(x))
        optimizer.step()

    return step


def opacus(net: dynamic_net.DynamicNet, mode: str) -> Step:
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    ghost = mode == "ghost"
    options = {"max_grad_norm": CLIP, "use_ghost_clipping": True} if ghost else {}
    wrapped = (GradSampleModuleFastGradientClipping if ghost else GradSampleModule)(Plain(net), **options)
    kind = DPOptimizerFastGradientClipping if ghost else DPOptimizer
    inner = torch.optim.SGD(wrapped.parameters(), RATE, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.expected_batch_size = len(x)
        optimizer.zero_grad()
        if not ghost:
            F.cross_entropy(wrapped(x), y).backward()
        else:
            losses = F.cross_entropy(wrapped(x), y, reduction="none")
            losses.mean().backward(retain_graph=True)
            optimizer.zero_grad()
            wrapped.disable_hooks()
            (wrapped.get_clipping_coef() * losses).sum().backward()
            wrapped.enable_hooks()
        optimizer.step()

    optimizer = kind(inner, noise_multiplier=SIGMA, max_grad_norm=CLIP, expected_batch_size=1)
    return step


def measure(name: str, options: dict[str, Any], batch: int, repeats: int) -> dict[str, float]:
    """Shortest CPU milliseconds of each way's step."""
    net = build(name, options)
    steps = {"plain": plain(copy.deepcopy(net)), "fedcl": ours(copy.deepcopy(net))}
    if importlib.util.find_spec("opacus"):
        steps |= {mode: opacus(copy.deepcopy(net), mode) for mode in ("hooks", "ghost")}
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        for way, step in steps.items():
            begin = time.process_time()
            step(x, y)
            best[way] = min(best[way], 1e3 * (time.process_time() - begin))
    return best


def main() -> None:
    """Print a line for each net and batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch|opacus")
    for name, options in {"mlp": {"hidden": [256]}, "cnn": {}}.items():
        for batch in arguments.batch:
            best = measure(name, options, batch, arguments.repeats)
            ratios = [f"{way} {value:7.2f} ms (×{value / best['plain']:.2f})" for way, value in best.items()]
            print(f"{name:4} {batch:4d}  {'  '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
