"""Augmentation by name."""

from __future__ import annotations

import pickle

import pytest
import torch

from fedcl import augment
from fedcl.contracts import FedclError


def test_nothing_asked_is_nothing_done() -> None:
    assert augment.build([]) is None


def test_transforms_act_in_a_row_with_draws_of_their_own_for_each_image() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1)
    crop = augment.build(["RandomCrop(8, padding=2)", "RandomHorizontalFlip"])
    assert crop is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = crop(x)
        torch.manual_seed(0)
        assert torch.equal(first, crop(x))
    assert first.shape == x.shape
    assert len({tuple(image.flatten().tolist()) for image in first}) > 20
    assert crop(x[:0]).shape == (0, 1, 8, 8)
    assert pickle.loads(pickle.dumps(crop)) is not None


def test_certain_transforms_do_what_they_say() -> None:
    flip = augment.build(["RandomHorizontalFlip(p=1.0)"])
    assert flip is not None
    x = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(flip(x), x.flip(3))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("RandomCrp(8)", "did you mean 'RandomCrop'"),
        ("Zzz", "see torchvision"),
        ("RandomCrop", r"'RandomCrop': .*arguments are RandomCrop\(size"),
        ("RandomCrop(8, padd=1)", "arguments are RandomCrop"),
        ("RandomHorizontalFlip(p=7)", "RandomHorizontalFlip"),
        ("RandomCrop(__import__('os').getpid())", "plain values"),
        ("os.getpid()", "plain values"),
        ("RandomCrop(**{'size': 8})", "plain values"),
        ("RandomCrop(", "plain values"),
        ("3", "plain values"),
    ],
)
def test_everything_else_is_refused(text: str, says: str) -> None:
    with pytest.raises(FedclError, match=says):
        augment.build([text])


def test_images_must_keep_their_size() -> None:
    crop = augment.build(["RandomCrop(4)"])
    assert crop is not None
    with pytest.raises(FedclError, match=r"\[1, 8, 8\] became \[1, 4, 4\]"):
        crop(torch.rand(2, 1, 8, 8))
