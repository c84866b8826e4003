"""Draw where the trunk's parameters lie after MNIST, and after Fashion-MNIST without protection and with EWC.

    python experiments/distributions.py [--quick] [--strength 1000] [--output runs/experiments/distributions]

Everything comes from the parameters of two real runs on the stream of stages.toml, one seed: the first model is what
EWC anchored at, which is the merged model of that moment. Writes distributions.svg beside the runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from run import merged, read
from safetensors.torch import load_file

from fedcl import Config, simulate
from fedcl.report.charts import Series, curves
from fedcl.report.svg import Axis, Head, from_zero

STYLE = """<style>
svg { font: 12px system-ui, sans-serif; background: #fff } text { fill: #59616b }
.line { fill: none; stroke-width: 1.8 }
.grid { stroke: #e1e5ea } .axis { stroke: #aab2bc } .leader { stroke: #aab2bc }
.c0 { stroke: #5f6770 } .c1 { stroke: #c94f00 } .c2 { stroke: #00815d } text.name { stroke: none; fill: #16191d }
</style>"""


def parameters(strength: float, quick: bool, output: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The trunk's weights: old, new without protection, new with EWC."""
    plan = read("stages")
    base = merged(plan["base"], plan["quick"] if quick else {})
    runs = {
        "new": {"method": "finetune"},
        "EWC": {"method": "ewc", "methods": {"ewc": {"strength": strength, "form": "separate"}}},
    }
    found = {}
    for name, changes in runs.items():
        folder = output / name
        result = simulate(Config.model_validate(merged(base, changes, {"run": {"output": str(folder)}})))
        found[name] = _trunk(load_file(result.path / "model.safetensors"))
    files = sorted((output / "EWC" / "clients" / "0").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    kept = load_file(files[-1])
    anchors = {key.removeprefix("ewc/anchor/"): value[0] for key, value in kept.items() if "/anchor/trunk" in key}
    return {"old": _trunk(anchors), **found}


def _trunk(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith("trunk.") and name.endswith("weight")}


def draw(found: dict[str, dict[str, torch.Tensor]]) -> str:
    """Densities of all values, and of how far each moved from the old one."""
    old = torch.cat([value.flatten() for value in found["old"].values()])
    now = {
        name: torch.cat([values[key].flatten() for key in found["old"]]) for name, values in found.items()
    }  # fmt: skip
    edge = float(old.abs().quantile(0.999)) * 1.2
    first = _densities(now, edge, "value of a weight", "values", "Weights of the trunk")
    moved = {name: value - old for name, value in now.items() if name != "old"}
    edge = max(float(value.abs().quantile(0.995)) for value in moved.values())
    second = _densities(moved, edge, "move since MNIST", "moves", "How far each weight moved", skip=1)
    return _stacked(first, second)


def _densities(series: dict[str, torch.Tensor], edge: float, title: str, id: str, heading: str, skip: int = 0) -> str:
    lines = []
    for index, (name, values) in enumerate(series.items(), start=skip):
        counts = torch.histc(values.float(), bins=81, min=-edge, max=edge)
        width = 2 * edge / 81
        shares = (counts / len(values) / width).tolist()
        points = [(-edge + width * (k + 0.5), share) for k, share in enumerate(shares)]
        lines.append(Series(name, points, f"c{index}"))
    x = Axis(title, -edge, edge, lambda value: f"{value:g}")
    y = from_zero([b for s in lines for _, b in s.points], "density", lambda value: f"{value:g}")
    return str(curves(Head(id, heading, f"{heading}: {', '.join(series)}"), lines, x, y, width=640.0))


def _stacked(first: str, second: str) -> str:
    """Two drawings, one above the other, in one file."""
    inner = [drawing.replace("<svg", f'<svg y="{300 * place}" width="640" height="290"', 1)
             for place, drawing in enumerate((first, second))]  # fmt: skip
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 600">{STYLE}{"".join(inner)}</svg>\n'


def main() -> None:
    """Run what is missing, draw, and say how far the weights moved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--strength", type=float, default=1000.0)
    parser.add_argument("--output", type=Path, default=Path("runs/experiments/distributions"))
    arguments = parser.parse_args()
    found = parameters(arguments.strength, arguments.quick, arguments.output)
    target = arguments.output / "distributions.svg"
    target.write_text(draw(found), encoding="utf-8")
    for name in ("new", "EWC"):
        moved = sum(float((found[name][key] - value).square().sum()) for key, value in found["old"].items()) ** 0.5
        print(f"{name}: ‖θ − θ_old‖ = {moved:.3f}")
    print(target)


if __name__ == "__main__":
    main()
