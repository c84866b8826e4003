"""A hospital's own images: folders <site>/<split>/<class>/*.png or .jpg; options path, size and color.

The split (train, val, test) may be left out: <site>/<class>/*.png. A class has the same name at all sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedcl.contracts import SPLITS, UNASSIGNED, FedclError, Samples

_KINDS = (".png", ".jpg", ".jpeg")


def build(root: Path, *, path: Path, size: Annotated[int, Field(ge=1)] | None = None, color: bool = False) -> Samples:
    """Read all images: x [N, 1 or 3, height, width] uint8; site is the first folder's name.

    Args:
        root: where a relative path that is not there is sought next.
        path: the folder of the sites.
        size: scale each image to size × size pixels; without it all must have one size already.
        color: three channels; otherwise one, of grey levels.

    Raises:
        FedclError: no such folder, no images in it, one that cannot be read, or images of several sizes.
    """
    path = path if path.is_dir() else root / path
    if not path.is_dir():
        raise FedclError(f"data.options.path: there is no folder {path}")
    found = list(_images(path))
    if not found:
        raise FedclError(f"{path}: no images; they are sought as <site>/<class>/*.png or <site>/<split>/<class>/*.png")
    sites = sorted({site for site, _, _, _ in found})
    classes = sorted({label for _, _, label, _ in found})
    pixels: list[np.ndarray] = []
    for *_, file in found:
        pixels.append(_read(file, size, color))
        if pixels[-1].shape != pixels[0].shape:
            raise FedclError(
                f"{file} is {pixels[-1].shape[:2]} pixels high and wide, but {found[0][-1]} is "
                f"{pixels[0].shape[:2]}; scale them with data.options.size"
            )
    x = np.stack(pixels)
    return Samples(
        x=np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if color else x[:, None],
        y=np.array([classes.index(label) for _, _, label, _ in found], np.int64),
        classes=tuple(classes),
        site=np.array([sites.index(site) for site, _, _, _ in found], np.int64),
        sites=tuple(sites),
        split=np.array([SPLITS.get(part, UNASSIGNED) for _, part, _, _ in found], np.int8),
    )


def _images(path: Path) -> Iterator[tuple[str, str, str, Path]]:
    """(site, split or "", class, file) for each image, in the order of their names."""
    for file in sorted(path.glob("*/**/*")):
        if file.suffix.lower() not in _KINDS:
            continue
        site, *between = file.relative_to(path).parts[:-1]
        if len(between) == 1 and between[0] not in SPLITS:
            yield site, "", between[0], file
        elif len(between) == 2 and between[0] in SPLITS:
            yield site, between[0], between[1], file
        else:
            raise FedclError(f"{file}: images belong into <site>/<class> or <site>/<train|val|test>/<class> of {path}")


def _read(file: Path, size: int | None, color: bool) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            picture = image.convert("RGB" if color else "L")
            return np.asarray(picture if size is None else picture.resize((size, size)))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise FedclError(f"{file} cannot be read: {error}; mend or remove it") from error
