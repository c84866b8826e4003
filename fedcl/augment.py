"""Augmentation of training images: names with arguments, such as "RandomCrop(28, padding=2)".

Arguments are literals, and nothing is ever evaluated. Draws come from torch's global generator.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedcl.contracts import FedclError


def build(names: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
    """The transforms of torchvision.transforms.v2 in a row; None where there are none.

    Args:
        names: such as "RandomHorizontalFlip" or "RandomCrop(28, padding=2)".

    Returns:
        x [n, channels, height, width] → the same shape, each image with draws of its own.

    Raises:
        FedclError: no such transform, arguments that are not literals or that it refuses; and, when called, a
            transform that changes the size of images.
    """
    if not names:
        return None
    from torchvision.transforms import v2

    known = {name: value for name, value in vars(v2).items() if _is_transform(value, v2.Transform)}
    return partial(_each, v2.Compose([_transform(text, known) for text in names]))


def _each(whole: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if len(x) == 0:
        return x
    augmented = torch.stack([whole(image) for image in x])
    if augmented.shape != x.shape:
        raise FedclError(
            f"data.augment: images of the shape {list(x.shape[1:])} became {list(augmented.shape[1:])}; crop "
            "and resize to the size that they have"
        )
    return augmented


def _is_transform(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and value is not base


def _transform(text: str, known: dict[str, type]) -> Any:
    name, args, kwargs = _parse(text)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see torchvision.transforms.v2"
        raise FedclError(f"data.augment: there is no transform {name!r} (in {text!r}); {hint}")
    try:
        return known[name](*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise FedclError(
            f"data.augment: {text!r}: {error}; the arguments are {name}{inspect.signature(known[name])}"
        ) from error


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name(1, a=2) → (Name, [1], {a: 2})."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, [], {}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("no name with arguments")
        args = [ast.literal_eval(value) for value in call.args]
        kwargs = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords if item.arg}
        if len(kwargs) < len(call.keywords):
            raise ValueError("** is not allowed")
    except (SyntaxError, ValueError) as error:
        raise FedclError(
            f"data.augment: {text!r} is not a transform with plain values, such as 'RandomCrop(28, padding=2)': {error}"
        ) from error
    return call.func.id, args, kwargs
