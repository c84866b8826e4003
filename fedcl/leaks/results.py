"""What attacks found, in the run's directory: results.json and roc.csv, and the same as tables of text."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcl.contracts import FedclError
from fedcl.leaks.plan import FOLDER

RESULTS, CURVES = "results.json", "roc.csv"
_COLUMNS = ("stage", "task", "score", "fpr", "tpr")

Found = dict[str, Any]


def read(run: Path) -> Found:
    """What was found so far: by "membership", "reconstruction" and "audit"."""
    file = run / FOLDER / RESULTS
    try:
        found: Found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FedclError(f"{file} is damaged ({error}); remove it, and run `fedcl attack` again") from error
    return found


def write(run: Path, what: str, told: Found) -> None:
    """Put one attack's results beside the others'."""
    _replace(run / FOLDER / RESULTS, json.dumps(read(run) | {what: told}, allow_nan=False))


def write_curves(run: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """The ROC curves as CSV; stages count from 0, as in metrics.jsonl."""
    lines = [",".join(_COLUMNS), *(",".join(f"{point[c]}" for c in _COLUMNS) for point in points)]
    _replace(run / FOLDER / CURVES, "\n".join(lines) + "\n")


def read_curves(run: Path) -> list[dict[str, str]]:
    """The same, read back."""
    with (run / FOLDER / CURVES).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise FedclError(f"{path}: {error.strerror}; attacks are written into the run's directory") from error


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────

Lines = tuple[str, list[str], list[list[str]]]  # caption, head, rows


def tables(found: Found) -> list[Lines]:
    """All results as text, for the terminal and the page."""
    made: list[Lines] = []
    if told := found.get("membership"):
        made.append(_membership(told))
        made += [_buffers(told)] if told["buffers"] else []
    if told := found.get("reconstruction"):
        made.append(_reconstruction(told))
    if told := found.get("audit"):
        made.append(_audit(told))
    return made


def _membership(told: Found) -> Lines:
    caption = (
        f"Membership: {told['models']} models with half of the candidates each, init {told['init']}; [95 % interval]"
    )
    head = ["task", "after stage", "who sees", "score", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "in / out"]
    rows = [[row["task"], str(row["stage"] + 1), row["observer"], row["score"], *_rates(row)] for row in told["rows"]]
    return caption, head, rows


def _buffers(told: Found) -> Lines:
    caption = "Membership at the end, of members that a hospital keeps for replay and of the others"
    head = ["task", "members", "score", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "in / out"]
    return caption, head, [[row["task"], row["members_are"], row["score"], *_rates(row)] for row in told["buffers"]]


def _rates(row: Found) -> list[str]:
    auc, *rates = row["auc"], row["tpr@0.01"], row["tpr@0.001"]
    cells = [f"{auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}]"]
    cells += [f"{100 * v:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({n} false)" for v, low, high, n in rates]
    return [*cells, f"{row['members']} / {row['others']}"]


def _reconstruction(told: Found) -> Lines:
    caption = f"Reconstruction from {told['sees']}: one step at the start of stage {told['stage'] + 1}"
    head = ["attack", "records", "knows besides", "PSNR, median [least, most]", "mean image", "SSIM", "tries"]
    rows = []
    for row in told["rows"]:
        if "right" in row:
            right = f"{row['right']} of {row['tries']} labels"
            name = f"{row['attack']}, of the last bias"
            rows.append([name, str(row["batch"]), "nothing", right, "", "", str(row["tries"] // row["batch"])])
            continue
        middle, low, high = row["psnr"]
        ratio = f"{middle:.1f} dB [{low:.1f}, {high:.1f}]"
        alike = f"{row['ssim']:.3f}" if "ssim" in row else ""
        one = [row["attack"], str(row["batch"]), row["knows"], ratio, f"{row['baseline']:.1f} dB", alike]
        rows.append([*one, str(row["tries"])])
    return caption, head, rows


def _audit(told: Found) -> Lines:
    claimed = "∞" if told["claimed"] is None else f"{told['claimed']:.3f}"
    verdict = "CAUGHT" if told["caught"] else "ε̂ ≤ ε"
    caption = f"Audit of {told['mechanism']}, the answer to one step: {told['statement']}"
    head = ["trials", "AUC", "ε̂, at 95 % at least", "ε claimed", "verdict"]
    auc = told["auc"]
    row = [str(told["trials"]), f"{auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}]"]
    return caption, head, [[*row, f"{told['found']:.3f}", claimed, verdict]]
