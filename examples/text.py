"""Text: hospitals sort notes by specialty, two specialties after two, and never show anybody a note.

    python examples/text.py [FOLDER]

Two ways from words to numbers, on notes that this script makes up:

- token ids, x [N, LENGTH], and a trunk of one's own that embeds them (`build` below, `model.name = "text:build"`);
- embeddings, x [N, 32], computed beforehand by any model that all hospitals have, and the trunk `mlp`.

Ids are names, not amounts, so they must not be normalised: `data.normalize = "none"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedcl import Config, Result, simulate

LENGTH = 24  # tokens of a note; shorter ones are filled with PAD
PAD = 0
SPECIALTIES = {
    "cardiology": "heart murmur valve rhythm pressure artery",
    "dermatology": "skin rash lesion itch mole redness",
    "neurology": "headache seizure reflex tremor nerve gait",
    "orthopaedics": "fracture knee joint cast hip sprain",
    "pneumology": "cough lung breath wheeze sputum oxygen",
    "urology": "kidney bladder stone urine prostate catheter",
}
COMMON = "patient reports since yesterday with mild severe left right no history of follow up in weeks"
WORDS = {word: k + 1 for k, word in enumerate(" ".join([COMMON, *SPECIALTIES.values()]).split())}


def notes(count: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(made-up notes, specialty [N], hospital [N]); each hospital has common words that it likes more."""
    draw = np.random.default_rng(seed)
    common = COMMON.split()
    habits = draw.dirichlet(np.ones(len(common)), size=3)
    label, site = draw.integers(len(SPECIALTIES), size=count), draw.integers(3, size=count)
    own = [words.split() for words in SPECIALTIES.values()]
    texts = []
    for k in range(count):
        said = [*draw.choice(common, size=12, p=habits[site[k]]), *draw.choice(own[label[k]], size=5)]
        texts.append(" ".join(draw.permutation(said)[: draw.integers(10, 18)]))
    return texts, label, site


def ids(texts: list[str]) -> np.ndarray:
    """[N, LENGTH] token ids; words that are not in the list are left out."""
    known = [[WORDS[word] for word in text.split() if word in WORDS][:LENGTH] for text in texts]
    return np.array([row + [PAD] * (LENGTH - len(row)) for row in known], np.float32)


def embeddings(texts: list[str]) -> np.ndarray:
    """[N, 32], the mean of the words' vectors; random ones stand for those of a language model."""
    table = np.random.default_rng(7).normal(size=(len(WORDS) + 1, 32))
    return np.stack([table[row[row != PAD].astype(int)].mean(0) for row in ids(texts)]).astype(np.float32)


class Text(nn.Module):
    """Token ids [B, LENGTH] → the mean of their embeddings through one layer [B, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.words = nn.Embedding(vocabulary, width)
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Token ids [B, LENGTH] → features [B, width]."""
        there = (x != PAD).unsqueeze(-1)
        mean = (self.words(x.long()) * there).sum(1) / there.sum(1).clamp_min(1)
        return torch.relu(self.layer(mean))


def build(shape: tuple[int, ...], *, vocabulary: int = 64, width: int = 32) -> nn.Module:
    """The trunk; `vocabulary` is at least the number of words and PAD."""
    return Text(vocabulary, width)


def run(folder: Path, kind: str) -> Result:
    """Make the notes, write them as ids or embeddings, and train three hospitals on them."""
    texts, label, site = notes(600)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.npz"
    x = ids(texts) if kind == "ids" else embeddings(texts)
    np.savez(file, x=x, y=np.array(list(SPECIALTIES))[label], site=site)
    own = {"name": "text:build", "options": {"vocabulary": 64}} if kind == "ids" else {"name": "mlp"}
    config = {
        "data": {
            "name": "npz",
            "options": {"path": str(file)},
            "normalize": "none" if kind == "ids" else "train",
        },
        "partition": {"name": "site"},
        "federation": {"clients": 3},
        "stream": {"tasks": 3},
        "model": own,
        "train": {"rounds": 4, "epochs": 3, "lr": 0.01, "optimizer": "adam"},
        "run": {"output": str(folder / f"run-{kind}")},
    }
    return simulate(Config.model_validate(config))


if __name__ == "__main__":
    sys.modules["text"] = sys.modules["__main__"]  # "text:build" is this file
    for kind in ("ids", "embeddings"):
        print(run(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/text"), kind))
