"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_noises, make_speech, make_timit


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture
def noisy(rng) -> np.ndarray:
    return make_speech(rng, 9000).astype(np.float32)


@pytest.fixture
def timit(tmp_path, rng) -> Path:
    return make_timit(tmp_path / "TIMIT", rng)


@pytest.fixture
def noises(tmp_path, rng) -> Path:
    return make_noises(tmp_path / "noises", rng)


@pytest.fixture
def make_trainer(timit, noises, tmp_path):
    """Makes `speech.training.trainer.Trainer` objects of a few filters."""
    from speech.data.corpus import find_noise, find_speech
    from speech.data.pipeline import MixtureSource, TrainingData
    from speech.net.fcn import FCNConfig, build_fcn
    from speech.training.config import TrainingConfig
    from speech.training.trainer import Trainer

    small = FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=9)
    few = TrainingConfig(epochs=3, num_items=4, crop_seconds=0.2, learning_rate=1e-2)

    def make(folder="run", config=few, augmentation=None, gain_db=None, **options):
        files = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN")
        source = MixtureSource(*files, [0])
        training = TrainingData(
            MixtureSource(*files, [0], augmentation=augmentation),
            num_items=config.num_items,
            crop_samples=3200,
            seed=config.seed,
            gain_db=gain_db,
        )
        validation = TrainingData(source, num_items=2, shuffle=False)
        network = build_fcn(small, seed=config.seed)
        return Trainer(network, training, validation, config, tmp_path / folder, **options)

    return make


@pytest.fixture
def small_dae(monkeypatch):
    import mnn.dae

    monkeypatch.setitem(mnn.dae.NETS, "128", ((16,), 3))


@pytest.fixture
def make_frame_trainer(small_dae, tmp_path, rng):
    """Makes `mnn.training.FrameTrainer` objects of a few units."""
    import mnn.dae
    from mnn.config import FitConfig
    from mnn.features import speech_frames
    from mnn.training import FrameTrainer

    few = FitConfig(iterations=12, batch_size=32, validate_every=4, seed=5)
    signals = [make_speech(rng, 20000), make_speech(rng, 9000)]

    def make(name="model", config=few, **options):
        model, conventions = mnn.dae.build_dae("128", seed=config.seed)
        frames = [speech_frames([signal], conventions) for signal in signals]
        meta = {"kind": "autoencoder", **conventions.to_json(), "net": "128"}
        out = tmp_path / f"{name}.h5"
        options = {"meta": meta, "data_sha256": "d", **options}
        return FrameTrainer(model, *frames, config, out, **options)

    return make
