"""Small grey images in rows, beside what was made of them: a drawing that needs no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from fedcl.report.svg import Head, el, picture, text

Grey = Sequence[Sequence[int]]  # [H, W] of 0…255
_SIDE, _GAP, _LABEL = 44.0, 6.0, 150.0


def grid(head: Head, rows: Mapping[str, Sequence[Grey]]) -> Markup:
    """One row for each name, its images side by side."""
    most = max(map(len, rows.values()))
    parts = []
    for down, (name, images) in enumerate(rows.items()):
        y = down * (_SIDE + _GAP)
        parts.append(text(_LABEL - 10, y + _SIDE / 2 + 4, name, "name", "end"))
        parts += [_image(image, _LABEL + across * (_SIDE + _GAP), y) for across, image in enumerate(images)]
    return picture(head, _LABEL + most * (_SIDE + _GAP), len(rows) * (_SIDE + _GAP), parts)


def _image(image: Grey, x: float, y: float) -> str:
    """Pixels as squares; light is 255 whatever the page's colours are."""
    size = _SIDE / max(len(image), len(image[0]))
    squares = [
        el(
            "rect",
            x=f"{x + column * size:.2f}",
            y=f"{y + row * size:.2f}",
            width=f"{size + 0.05:.2f}",
            height=f"{size + 0.05:.2f}",
            fill=f"#{value:02x}{value:02x}{value:02x}",
        )
        for row, line in enumerate(image)
        for column, value in enumerate(line)
    ]
    return el("g", "".join(squares), shape_rendering="crispEdges")
