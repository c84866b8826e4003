"""A comparison as CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from fedcl.comparison import protection, stats
from fedcl.comparison.table import Comparison
from fedcl.contracts import FedclError

_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$"}
_LATEX |= {"−": "$-$", "×": r"$\times$", "–": "--", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
_LATEX |= {"\\": r"\textbackslash{}", "ε": r"$\varepsilon$", "δ": r"$\delta$", "σ": r"$\sigma$", "∞": r"$\infty$"}


def all(comparison: Comparison) -> None:
    """Write runs.csv, comparison.csv, comparison.md and comparison.tex into its folder.

    Raises:
        FedclError: the folder cannot be written.
    """
    made = {"runs.csv": runs, "comparison.csv": means, "comparison.md": markdown, "comparison.tex": latex}
    for name, make in made.items():
        save(comparison.path / name, make(comparison))


def save(path: Path, text: str) -> None:
    """Replace a file in one step.

    Raises:
        FedclError: it cannot be written.
    """
    try:
        draft = path.with_name(f"{path.name}.part")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise FedclError(f"{path}: {error.strerror}") from error


def runs(comparison: Comparison) -> str:
    """CSV with one row a run: its settings, state, and every figure as it is (shares as fractions)."""
    rows = list(comparison.records())
    return _csv([list(rows[0]), *(list(row.values()) for row in rows)] if rows else [])


def means(comparison: Comparison) -> str:
    """CSV with one row for each combination and figure: mean, deviation, and the difference to the first row."""
    keys = [axis.key for axis in comparison.axes]
    head = [*keys, "metric", "mean", "sd", "seeds", "best", "baseline", "difference", "low95", "high95", "p", "p_holm"]
    head += ["terms"] if _private(comparison) else []
    lines: list[list[object]] = [[*head]]
    for block in comparison.blocks():
        stated = dict(protection.stated(comparison, block))
        for figure in comparison.metrics:
            values, best = comparison.values(figure.name, block), comparison.best(figure, block)
            differences = comparison.differences(figure, block)
            for place, row in enumerate(comparison.rows()):
                apart: list[object] = [""] * 6
                if place:
                    d, adjusted = differences[place - 1]
                    apart = [comparison.rows()[0], d.mean, d.low, d.high, d.p, adjusted]
                n = int((values[place] == values[place]).sum())
                about = [*([row] if keys else []), *block, figure.name]
                line = [*about, stats.mean(values[place]), stats.deviation(values[place]), n, place == best, *apart]
                spent = figure.kind == "epsilon"
                lines.append([*line, *([stated.get(row, "") if spent else ""] if _private(comparison) else [])])
    return _csv(lines)


def markdown(comparison: Comparison) -> str:
    """Tables of means, then of differences to the first row."""
    parts = [f"# {_heading(comparison)}", ""]
    for block in comparison.blocks():
        parts += [f"## {comparison.title(block)}", ""] if block else []
        head, rows = grid(comparison, block, lambda text: f"**{text}**")
        parts += [*_bars(head, rows), ""]
        head, rows = against(comparison, block)
        parts += [*_bars(head, rows), ""] if rows else []
        stated = protection.stated(comparison, block)
        parts += [*_bars(["ε of", "terms"], stated), ""] if stated else []
    head, rows = protection.covering(comparison) if _private(comparison) else ([], [])
    parts += ["## What covered what left the hospitals", "", *_bars(head, rows), ""] if rows else []
    return "\n".join([*parts, note(comparison), *_failures(comparison), ""])


def latex(comparison: Comparison) -> str:
    r"""One `table` a block, for a document that has \usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}"]
    for block in comparison.blocks():
        head, rows = grid(comparison, block, lambda text: f"\x00{text}\x01")
        cells = [[_tex(cell) for cell in row] for row in rows]
        title = ": ".join(filter(None, [_heading(comparison), comparison.title(block)]))
        lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{_tex(title + '. ' + note(comparison))}}}"]
        lines += [f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"    \toprule"]
        lines += ["    " + " & ".join(map(_tex, head)) + r" \\", r"    \midrule"]
        lines += ["    " + " & ".join(row) + r" \\" for row in cells]
        parts += ["", *lines, r"    \bottomrule", r"  \end{tabular}"]
        if stated := protection.stated(comparison, block):
            parts += ["", r"  \medskip\footnotesize"]
            parts += [f"  {_tex(row)}: {_tex(text)}\\\\" for row, text in stated]
        parts += [r"\end{table}"]
    return "\n".join([*parts, ""])


def grid(comparison: Comparison, block: Sequence[str], mark: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of means ± deviations; `mark` dresses a figure that is best beyond chance."""
    first = comparison.axes[0].key if comparison.axes else ""
    head = [first, *(figure.head for figure in comparison.metrics)]
    rows = [[row] for row in comparison.rows()]
    for figure in comparison.metrics:
        values, best = comparison.values(figure.name, block), comparison.best(figure, block)
        for place, row in enumerate(rows):
            shown = figure.text(stats.mean(values[place]), stats.deviation(values[place]))
            row.append(mark(shown) if place == best else shown)
    return head, rows


def against(comparison: Comparison, block: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of paired differences to the first row, with interval and adjusted p, costs left out.

    None where there is one seed or one row.
    """
    names, tested = comparison.rows(), [figure for figure in comparison.metrics if figure.tested]
    if len(names) < 2 or len(comparison.seeds) < 2:
        return [], []
    head = [f"minus {names[0]}", *(figure.head for figure in tested)]
    rows = [[row] for row in names[1:]]
    for figure in tested:
        for row, (d, adjusted) in zip(rows, comparison.differences(figure, block), strict=True):
            interval = f" [{figure.text(d.low)}, {figure.text(d.high)}]" if d.low == d.low else ""
            test = f", p {chance(adjusted)}" if adjusted == adjusted else ""
            row.append(f"{figure.text(d.mean, sign=True)}{interval}{test}")
    return head, rows


def chance(p: float) -> str:
    """A p-value as papers write it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def note(comparison: Comparison) -> str:
    """What the numbers are."""
    n = len(comparison.seeds)
    if n < 2:
        return "One seed; nothing can be said of differences."
    return (
        f"Mean ± standard deviation over {n} seeds. Bold is better than every other row of its column beyond chance "
        "(paired t-test over seeds, Holm-adjusted, 5 %). Differences are paired, with 95 % confidence interval and "
        "adjusted p."
    )


def _private(comparison: Comparison) -> bool:
    """Whether some run claims an ε."""
    return any("epsilon" in run.figures for run in comparison.runs)


def _heading(comparison: Comparison) -> str:
    return "Comparison of " + (comparison.axes[0].key if comparison.axes else "seeds")


def _failures(comparison: Comparison) -> list[str]:
    lines = [f"- {', '.join(run.labels)}, seed {run.seed}: {run.error}" for run in comparison.failed()]
    return ["", "Failed runs, which count nowhere:", "", *lines] if lines else []


def _bars(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _tex(text: str) -> str:
    written = "".join(_LATEX.get(character, character) for character in text)
    return written.replace("\x00", r"\textbf{").replace("\x01", "}")


def _csv(lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(["" if cell != cell else cell for cell in line] for line in lines)
    return out.getvalue()
