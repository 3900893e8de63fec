"""The options of ``python -m speech.train``, turned into frozen settings once, at the door.

A recipe is a named set of settings; single options override it. Those of the FCN are in
``speech.training.common_options``, as are the options that other commands share.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from speech.base import cli
from speech.base.cli import amount, decibels, natural_number, positive_number
from speech.base.files import sha256_of
from speech.data.mixtures import MixingConfig
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import NORMALIZATIONS, SIZES
from speech.sound.augment import Augmentation
from speech.training import common_options as shared
from speech.training.config import OPTIMIZERS, TrainingConfig

_logger = logging.getLogger("speech")

NETWORKS = ("fcn", "tf")

#: Filters of each hidden layer of the FCN (docs/papers.md).
NUM_FILTERS = 30

_TF: dict[str, Any] = {
    "num_items": 16_000,
    "batch_size": 16,
    "crop_seconds": 2.0,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "ema": 0.999,
}
#: The recipes of the network over time and frequency: `TrainingConfig`, and the size.
TF_RECIPES: dict[str, dict[str, Any]] = {
    # The bundled corpus is small: five minutes.
    "quick": {**_TF, "size": "small", "hours": 0.08, "warmup_steps": 50},
    # For models to be used.
    "best": {**_TF, "size": "medium", "hours": 12.0, "warmup_steps": 500},
}

#: Name of an option -> setting of `MixingConfig`.
_MIXING = {
    "snr_range": "snr_range_db",
    "level": "level_range_dbfs",
    "noise_only": "noise_share",
    "speech_only": "speech_share",
    "babble": "babble_share",
    "synthetic_noise": "synthetic_share",
    "second_noise": "second_noise_share",
    "self_noise": "self_noise_share",
    "equalizer_db": "noise_equalizer_db",
    "noise_speed": "noise_speed",
    "voices": "voice_share",
    "voice_speed": "voice_speed",
    "voice_equalizer": "voice_envelope_db",
    "rooms": "room_share",
    "microphones": "microphone_share",
    "microphone_equalizer": "microphone_db",
    "band_limit": "band_limit_share",
    "clipping": "clipping_share",
    "codecs": "codec_share",
}
#: Options that one network alone has.
_OF_FCN = ("filters", "loss", "gain_db", "snr", "keep_low_snr")
_OF_TF = (
    "size", "normalization", "level", "noise_only", "speech_only", "babble", "synthetic_noise",
    "self_noise", "voices", "voice_speed", "voice_equalizer", "microphones",
    "microphone_equalizer", "clipping",
    "codecs", "workers", *(f"loss_{field.name}" for field in fields(MaskLoss)),
)  # fmt: skip


@dataclass(frozen=True)
class DataOptions:
    """Which recordings to train on; without any, the bundled corpus.

    Attributes:
        speech: Trees of clean speech.
        noise: Folder of noises to mix with them.
        noisy: Folder of premixed noisy files, instead of both.
        clean: Folder of their clean files.
        snrs_db: SNRs that the FCN trains and validates at.
        skip_sa: Whether TIMIT's SA sentences are left out.
        split: How premixed files are split into training and validation: 'disjoint' or 'original'.
        seed: Of the split.
        pair_by: How premixed files are paired (`speech.data.corpus.find_matches`).
        keep_low_snr: Whether premixed files at -15 and -10 dB train the FCN too.
    """

    speech: tuple[Path, ...] = ()
    noise: Path | None = None
    noisy: Path | None = None
    clean: Path | None = None
    snrs_db: tuple[float, ...] = shared.SNRS_DB
    skip_sa: bool = False
    split: str = "disjoint"
    seed: int = 0
    pair_by: str | None = None
    keep_low_snr: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> DataOptions:
        """Returns what the options of `speech.training.common_options.add_data_options` say."""
        return cls(
            speech=tuple(options.timit or ()),
            noise=options.noise,
            noisy=options.train_noisy,
            clean=options.train_clean,
            snrs_db=tuple(options.snr),
            skip_sa=options.skip_sa,
            split=options.split,
            seed=options.seed,
            pair_by=options.pair_by,
            keep_low_snr=bool(options.keep_low_snr),
        )

    @property
    def is_bundled(self) -> bool:
        """Whether the bundled corpus is meant."""
        return not self.speech and self.noisy is None

    @property
    def name(self) -> str:
        """The recordings in a few words."""
        if self.is_bundled:
            return "bundled corpus"
        return ", ".join(map(str, self.speech or [self.noisy]))

    @property
    def folders(self) -> tuple[Path | None, ...]:
        """All folders; None for those not given."""
        return (*self.speech, self.noise, self.noisy, self.clean)


@dataclass(frozen=True)
class Request:
    """What one call of the command trains.

    Attributes:
        network: One of `NETWORKS`.
        recipe: Name of the recipe.
        training: How to train.
        data: On which recordings.
        out: Folder of the run.
        size: Form of the time-frequency network; None for the FCN, and with ``init``.
        normalization: Of a new time-frequency network, 'batch' or 'none'.
        num_filters: Of the FCN.
        init: Model file whose weights start the run.
        augmentation: Of the FCN's data.
        snr_range_db: The FCN's training SNRs are drawn from it.
        mixing: Of the pieces of the time-frequency network.
        workers: Processes that mix; None for as many as it takes.
        gpu: As ``--gpu``.
        tensorboard: Folder for TensorBoard; None for none.
        json: File for the results.
    """

    network: str
    recipe: str
    training: TrainingConfig
    data: DataOptions
    out: Path
    size: str | None = None
    normalization: str = "batch"
    num_filters: int = NUM_FILTERS
    init: Path | None = None
    augmentation: Augmentation = Augmentation()
    snr_range_db: tuple[float, float] | None = None
    mixing: MixingConfig = MixingConfig()
    workers: int | None = None
    gpu: str = "0"
    tensorboard: Path | None = None
    json: Path | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options of the command."""
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=NETWORKS, required=True,
        help="train the network over time and frequency, for use (tf), or the paper's "
        "(fcn)")  # fmt: skip
    add("--size", choices=tuple(SIZES),
        help="train this form of tf (default medium; small on the bundled corpus)")  # fmt: skip
    add("--normalization", choices=NORMALIZATIONS,
        help="give tf BatchNormalization, which folds away (default), or none")  # fmt: skip
    add("--filters", type=positive_number, metavar="N",
        help=f"give each hidden layer N filters (of fcn; default {NUM_FILTERS}, the "
        "paper's)")  # fmt: skip
    shared.add_data_options(parser, test=False)
    add = parser.add_argument_group(
        "length",
        "The default is --hours 0.08 on the bundled corpus, else 12, for tf; fcn takes the epochs "
        "of its recipe.",
    ).add_argument
    add("--hours", type=amount, metavar="H",
        help="end after H hours of clock time, over all calls of the command; the learning rate "
        "follows the share that is used")  # fmt: skip
    add("--validate-minutes", type=amount, metavar="M",
        help="validate every M minutes, with --hours (default: a twentieth of them, at most "
        "30)")  # fmt: skip
    mixing = {name: getattr(MixingConfig(), setting) for name, setting in _MIXING.items()}
    recipes = {recipe: settings | mixing for recipe, settings in TF_RECIPES.items()}
    shared.add_training_options(parser, other=recipes)
    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer", choices=OPTIMIZERS,
        help="train with this optimizer (default: adam for fcn, adamw for tf)")  # fmt: skip
    add("--weight-decay", type=float, metavar="D",
        help="let adamw decay kernels, not biases and normalisations, by D (default "
        "0.01)")  # fmt: skip
    add("--beta-2", type=float, metavar="B",
        help="average squared gradients with this factor (default 0.999)")  # fmt: skip
    add("--epsilon", type=float, metavar="E", help="add E to their root (default 1e-8)")
    add("--final-learning-rate", type=float, metavar="SHARE",
        help="end the cosine at this share of the learning rate (default 0.01)")  # fmt: skip
    weights = MaskLoss()
    add = parser.add_argument_group("loss of tf", "Each option weights one part.").add_argument
    for name, what in _PARTS.items():
        add(f"--loss-{name.replace('_', '-')}", type=float, metavar="W",
            help=f"weight the {what} by W (default {getattr(weights, name):g})")  # fmt: skip
    _add_mixing(parser)
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--gpu", default="0", metavar="LIST",
        help="run on this GPU: 0 (default), several as 0,1 to share each step, or -1 for the "
        "CPU")  # fmt: skip
    add("-o", "--out", type=Path, metavar="DIR",
        help="write to this folder (default runs/fcn or runs/tf)")  # fmt: skip
    add("--workers", type=natural_number, metavar="N",
        help="mix for tf in N processes (default: 1, on a GPU more; 0 for a thread)")  # fmt: skip
    add("--tensorboard", nargs="?", type=Path, const=False, metavar="DIR",
        help="log errors, and the learning rate, for TensorBoard (default DIR: OUT/tensorboard); "
        "needs pip install tensorboard")  # fmt: skip
    add("--json", **cli.JSON)


_PARTS = {
    "magnitude": "error of the compressed magnitudes",
    "complex": "error of the compressed complex spectra",
    "consistency": "distance from the spectra that a signal can have",
    "waveform": "absolute error of the samples",
    "si_sdr": "negative SI-SDR",
}


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    """Adds what only the pieces of the time-frequency network have."""
    default = MixingConfig()
    add = parser.add_argument_group(
        "mixing for tf",
        "These options add to the augmentation above; P is a share of the pieces.",
    ).add_argument
    add("--level", type=decibels, nargs=2, metavar=("LOW", "HIGH"),
        help="draw the level of the noisy piece, its RMS in dB of full scale (default "
        f"{_shown(default.level_range_dbfs)})")  # fmt: skip
    for name, what in (
        ("noise_only", "give noise alone, with silence as the target"),
        ("speech_only", "give speech alone, which is its own target"),
        ("babble", "take several voices as a noise"),
        ("synthetic_noise", "take shaped and modulated white noise"),
        ("self_noise", "add the noise of a microphone"),
        ("voices", "make new voices by speed and spectral envelope"),
        ("microphones", "give the colour of a microphone"),
        ("clipping", "clip the noisy signal"),
        ("codecs", "send the noisy signal through mu-law, MP3, Vorbis or Opus"),
    ):
        add(f"--{name.replace('_', '-')}", type=float, metavar="P",
            help=f"{what} (default {getattr(default, _MIXING[name]):g})")  # fmt: skip
    add("--voice-speed", type=float, metavar="FACTOR",
        help="change the speed of such voices, up and down (default "
        f"{default.voice_speed:g})")  # fmt: skip
    for name, what in (("voice_equalizer", "voices"), ("microphone_equalizer", "microphones")):
        add(f"--{name.replace('_', '-')}", type=float, metavar="DB",
            help=f"raise and lower bands of such {what} (default "
            f"{getattr(default, _MIXING[name]):g})")  # fmt: skip


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exits with code 2 for options that do not go together."""
    flags = {action.dest: action.option_strings[0] for action in parser._actions}
    others = {"fcn": _OF_TF, "tf": _OF_FCN}[options.network]
    for name in others:
        if getattr(options, name) is not None:
            other = next(network for network in NETWORKS if network != options.network)
            parser.error(f"{flags[name]} is for --network {other}; leave it out")
    if options.network == "tf":
        if options.recipe == "paper":
            parser.error("--recipe paper is for --network fcn; give quick or best")
        mixed = [name for name in _MIXING if name != "level" and getattr(options, name) is not None]
        if options.train_noisy and mixed:
            parser.error(f"{flags[mixed[0]]} is for mixing; premixed folders stay as they are")
    shared.check_data_options(parser, options)
    if options.hours is not None and options.epochs is not None:
        parser.error("--hours and --epochs are two ways to say how long: give one of them")
    if options.init is not None:
        for name in ("size", "normalization", "filters"):
            if getattr(options, name) is not None:
                parser.error(f"{flags[name]} is for a new network; --init has its own")


def request(options: argparse.Namespace) -> Request:
    """Returns what the options ask for.

    Raises:
        ValueError: A value makes no sense, or the file of --init can't be read.
    """
    tf = options.network == "tf"
    data = DataOptions.of(options)
    if tf:
        recipe = options.recipe or ("quick" if data.is_bundled else "best")
        settings = dict(TF_RECIPES[recipe])
    else:
        recipe = shared.recipe_of(options)
        settings = dict(shared.RECIPES[recipe])
    settings |= {name: value for name, value in vars(options).items() if value is not None}
    # The way that is asked for takes the place of the recipe's.
    for asked, other in (("hours", "epochs"), ("epochs", "hours")):
        if getattr(options, asked) is not None:
            settings.pop(other, None)
    names = {field.name for field in fields(TrainingConfig)}
    chosen = {name: value for name, value in settings.items() if name in names}
    if chosen.get("optimizer") == "adam":
        chosen["weight_decay"] = options.weight_decay or 0.0
    if tf:
        asked_weights = {
            field.name: value
            for field in fields(MaskLoss)
            if (value := getattr(options, f"loss_{field.name}")) is not None
        }
        chosen["loss"] = MaskLoss(**asked_weights)
    if options.init is not None:
        chosen["init"] = sha256_of(options.init)
    out = options.out or Path("runs") / options.network
    tensorboard = options.tensorboard
    if tensorboard is False:
        tensorboard = out / "tensorboard"
    augmented = {f.name: settings[f.name] for f in fields(Augmentation) if f.name in settings}
    return Request(
        network=options.network,
        recipe=recipe,
        training=TrainingConfig(**chosen),
        data=data,
        out=out,
        size=settings["size"] if tf and options.init is None else None,
        normalization=options.normalization or NORMALIZATIONS[0],
        num_filters=options.filters or NUM_FILTERS,
        init=options.init,
        augmentation=Augmentation() if tf else Augmentation(**augmented),
        snr_range_db=None if tf else settings.get("snr_range"),
        mixing=mixing_config(options) if tf else MixingConfig(),
        workers=options.workers,
        gpu=options.gpu,
        tensorboard=tensorboard,
        json=options.json,
    )


def mixing_config(options: argparse.Namespace) -> MixingConfig:
    """Returns the settings of the mixing; no rooms by default where they can't be simulated.

    A warning says so, unless premixed folders leave nothing to simulate.

    Raises:
        ValueError: A value makes no sense.
    """
    asked = {
        setting: value
        for name, setting in _MIXING.items()
        if (value := getattr(options, name, None)) is not None
    }
    if "room_share" not in asked and importlib.util.find_spec("pyroomacoustics") is None:
        asked["room_share"] = 0.0
        if options.train_noisy is None:
            _logger.warning(
                "training goes without simulated rooms, for pyroomacoustics is not installed; "
                "`pip install pyroomacoustics`, or give --rooms 0"
            )
    return MixingConfig(**asked)
