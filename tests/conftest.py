"""Fixtures and small builders that every test may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.reference.sphere import write_sphere

SPEAKERS = {
    "TRAIN": [("DR1", "FCJF0"), ("DR2", "MARC0")],
    "TEST": [("DR1", "FAKS0"), ("DR3", "MABW0")],
}
SENTENCES = ("SA1", "SX37")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


def make_speech(rng: np.random.Generator, num_samples: int = 8000) -> np.ndarray:
    """Noise bursts with pauses, |x| < 1: float64 [num_samples], the rhythm of syllables."""
    time_s = np.arange(num_samples) / 16000
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s + rng.uniform(0, 6)), 0, None)
    return 0.5 * envelope * np.tanh(rng.standard_normal(num_samples))


def make_timit(root: Path, rng: np.random.Generator, *, lower: bool = False) -> Path:
    """Writes a tiny TIMIT tree of NIST SPHERE files and returns ``root``."""
    for split, speakers in SPEAKERS.items():
        for dialect, speaker in speakers:
            for sentence in SENTENCES:
                name = f"{split}/{dialect}/{speaker}/{sentence}.WAV"
                path = root / (name.lower() if lower else name)
                write_sphere(path, make_speech(rng))
                path.with_suffix(".TXT").write_text("0 8000 She had your dark suit.\n")
    return root


def make_noises(root: Path, rng: np.random.Generator, names=("birds", "typing")) -> Path:
    """Writes one second of white noise under each name and returns ``root``."""
    for name in names:
        path = root / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(16000), 16000, subtype="FLOAT")
    return root


@pytest.fixture
def timit(tmp_path, rng) -> Path:
    return make_timit(tmp_path / "TIMIT", rng)


@pytest.fixture
def noises(tmp_path, rng) -> Path:
    return make_noises(tmp_path / "noises", rng)
