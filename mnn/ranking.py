"""Trains a ranker (`mnn.ranker`): makes noise of the clean speech, then a network that removes it.

All that the trainings of this project can do holds here as well: the same command goes on with an
interrupted run where it stood, and with a finished one if its hours are raised.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnn.config import RankerConfig
from mnn.features import fingerprint
from mnn.noises import Signals, draw_noise, draw_speech, unit
from speech.base import cli, lazy
from speech.base.device import select_devices
from speech.base.files import atomic_path, write_text
from speech.base.lazy import joblib, soundfile
from speech.data import corpus
from speech.data.mixtures import MixingConfig
from speech.net.mask_loss import MaskLoss
from speech.sound.audio import SAMPLE_RATE_HZ, is_silent, read_audio
from speech.training.request import TF_RECIPES, DataOptions, Request, training_config

if TYPE_CHECKING:
    from speech.training import run
else:
    run = lazy.module("speech.training.run")

#: Length of a noise, and how many utterances of each speaker noises are made of.
NOISE_SAMPLES = 10 * SAMPLE_RATE_HZ
UTTERANCES_EACH = 4

#: SI-SDR decides; the error of the compressed spectra says which gain is meant, and is steadier.
LOSS = MaskLoss(magnitude=0.0, complex=1.0, waveform=0.0, si_sdr=0.05)

#: Mixtures as experts get them, of any SNR.
MIXING = MixingConfig(
    snr_range_db=(-10.0, 20.0), room_share=0.0, clipping_share=0.0, codec_share=0.0, noise_share=0.0
)


def train_ranker(config: RankerConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Trains a ranker.

    Args:
        config: On what speech, how long, and where to.
        say: Gets lines that say what is being done.

    Returns:
        The model file.

    Raises:
        ValueError: There is no speech, or another run is in the folder.
        OSError: A file can't be read or written.
    """
    folder = config.out.with_suffix("")
    trees = config.speech or (corpus.MINICORPUS / "speech",)
    count = write_noises(
        trees, folder / "noise" / "TRAIN", config.num_noises, config.num_jobs, config.kinds
    )
    say(f"noises      {count} made of the speech, 10 s each, in {folder / 'noise'}")
    settings = TF_RECIPES["best"] | {
        "hours": config.hours, "loss": LOSS, "seed": config.seed,
    }  # fmt: skip
    select_devices(config.gpu)
    trainer = run.train_request(
        Request(
            network="tf",
            recipe="ranker",
            training=training_config(settings),
            data=DataOptions(speech=tuple(trees), noise=folder / "noise"),
            out=folder,
            size=config.size,
            mixing=MIXING,
            gpu=config.gpu,
        ),
        say=say,
    )
    if trainer.writes:
        with atomic_path(config.out) as path:
            shutil.copyfile(folder / "model.h5", path)
    return config.out


def write_noises(
    trees: Sequence[os.PathLike],
    folder: Path,
    count: int,
    num_jobs: int,
    kinds: Sequence[str] = (),
) -> int:
    """Writes noises that are made of speech; those that are there already stay.

    Args:
        trees: Of clean speech (`speech.data.corpus.find_speech_trees`); training voices are taken.
        folder: Where to.
        count: How many.
        num_jobs: Processes; the noises are the same for any number.
        kinds: As in `mnn.noises.draw_noise`.

    Returns:
        How many there are: one that is all but silent most of the time is left out.

    Raises:
        ValueError: The folder holds noises of other kinds, or of other speech.
    """
    utterances = corpus.find_speech_trees(trees, "TRAIN")
    _claim(folder, [f"kinds {sorted(kinds)}", *(item.id for item in utterances)])
    paths = [folder / f"made{number:05d}.wav" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        speakers = _speakers(utterances)
        jobs = joblib.effective_n_jobs(num_jobs)
        joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(_write_noises)(speakers, missing[first::jobs], paths, kinds)
            for first in range(jobs)
        )
    return sum(path.is_file() for path in paths)


def _claim(folder: Path, lines: Sequence[str]) -> None:
    """Notes what the noises of a folder are made of; ValueError if it is something else."""
    record = folder.with_suffix(".sha256")
    own = fingerprint(lines)
    folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        write_text(record, f"{own}\n")
    elif record.read_text().strip() != own:
        raise ValueError(
            f"{folder.parent} holds the noises of another run; repeat its command, choose another "
            "--out, or delete it"
        )


def _speakers(utterances: Sequence[corpus.Utterance]) -> list[list[np.ndarray]]:
    """Reads a few utterances of each speaker that are not silent."""
    chosen: dict[str, list[Path]] = defaultdict(list)
    for utterance in utterances:
        if len(chosen[utterance.speaker]) < UTTERANCES_EACH:
            chosen[utterance.speaker].append(utterance.path)
    speakers = []
    for paths in cli.progress(chosen.values(), total=len(chosen), label="reading speech"):
        signals = [read_audio(path).samples.astype(np.float32) for path in paths]
        if heard := [signal for signal in signals if not is_silent(signal)]:
            speakers.append(heard)
    return speakers


def _write_noises(
    speakers: Sequence[Signals],
    numbers: Sequence[int],
    paths: Sequence[Path],
    kinds: Sequence[str],
) -> None:
    for number in numbers:
        rng = np.random.default_rng([5, number])
        talkers = [draw_speech(rng, speakers, NOISE_SAMPLES) for _ in range(4)]
        noise = 0.1 * unit(draw_noise(rng, NOISE_SAMPLES, talkers, kinds))
        noise /= max(1.0, np.abs(noise).max() / 0.95)
        if np.median(np.abs(noise)) < 2**-15:  # a few knocks, and hardly anything between them
            continue
        with atomic_path(paths[number]) as path:
            soundfile.write(path, noise, SAMPLE_RATE_HZ, format="WAV")
