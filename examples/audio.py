"""Audio: hospitals learn to tell sounds of the chest apart, two after two, from log-mel features.

    python examples/audio.py [FOLDER]

The recordings are made up here: 1 s at 4 kHz. Each becomes a picture [mels, frames], which is what travels into the net
(`x` of the .npz), so that any trunk for images serves. Sound itself never has to leave the folder that it lies in.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedcl import Config, Result, simulate

RATE = 4000  # samples a second
SOUNDS = {  # (base frequency in Hz, beats a second, share of noise)
    "heart": (60.0, 1.2, 0.1),
    "murmur": (150.0, 1.2, 0.5),
    "breath": (400.0, 0.4, 0.9),
    "wheeze": (700.0, 0.5, 0.2),
    "crackle": (1100.0, 9.0, 0.6),
    "stridor": (1600.0, 0.6, 0.3),
}


def recordings(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(waves [N, RATE], sound [N], hospital [N]); each hospital's microphone has a hum of its own."""
    draw = np.random.default_rng(seed)
    label, site = draw.integers(len(SOUNDS), size=count), draw.integers(3, size=count)
    time = np.arange(RATE) / RATE
    base, beat, noise = np.array(list(SOUNDS.values()))[label].T[:, :, None]
    pitch = base * draw.uniform(0.9, 1.1, (count, 1))
    tone = np.sin(2 * np.pi * pitch * time) + 0.4 * np.sin(4 * np.pi * pitch * time)
    envelope = 0.2 + np.maximum(0, np.sin(2 * np.pi * (beat * time + draw.random((count, 1)))))
    waves = envelope * ((1 - noise) * tone + noise * draw.normal(size=(count, RATE)))
    return waves + 0.2 * np.sin(2 * np.pi * np.array([50.0, 55.0, 60.0])[site][:, None] * time), label, site


def log_mel(waves: np.ndarray, mels: int = 24, window: int = 256, hop: int = 160) -> np.ndarray:
    """[N, samples] → [N, mels, frames]: log of the power in triangular bands, evenly spaced in mel.

    mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987); Hann windows.
    """
    starts = range(0, waves.shape[1] - window + 1, hop)
    frames = np.stack([waves[:, start : start + window] for start in starts], 1) * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)) ** 2  # [N, frames, bins]
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(window, 1 / RATE)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
    return np.log(power @ bands.T + 1e-6).transpose(0, 2, 1).astype(np.float32)


def run(folder: Path) -> Result:
    """Make the recordings, write their features, and train three hospitals on them."""
    waves, label, site = recordings(600)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "sounds.npz", x=log_mel(waves), y=np.array(list(SOUNDS))[label], site=site)
    config = {
        "data": {"name": "npz", "options": {"path": str(folder / "sounds.npz")}, "normalize": "train"},
        "partition": {"name": "site"},
        "federation": {"clients": 3},
        "stream": {"tasks": 3},
        "model": {"name": "cnn", "options": {"channels": [8, 16], "width": 32}},
        "train": {"rounds": 4, "epochs": 2, "lr": 0.005, "optimizer": "adam"},
        "run": {"output": str(folder / "run")},
    }
    return simulate(Config.model_validate(config))


if __name__ == "__main__":
    print(run(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/audio")))
