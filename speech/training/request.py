"""Requests for a training, as frozen values, and the recipes that fill in what they leave open.

The commands make these values from their options (``speech.training.options``); they are the Python
API too. A recipe is a named set of settings, and single settings override it. The settings are the
fields of `TrainingConfig` and of `Augmentation`, 'snr_range' for (LOW, HIGH) in dB, and the names
in `MIXING`. NumPy-level, no Keras.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.data.mixtures import MixingConfig
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.timefrequency import SIZES, TimeFrequencyConfig, build_time_frequency
from speech.sound.augment import Augmentation
from speech.training.config import TrainingConfig

if TYPE_CHECKING:
    import keras

_LOGGER = logging.getLogger("speech")

#: Used for training and for the test set unless others are asked for.
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)

#: Number of test files per noise and SNR: of the bundled corpus, and of others.
BUNDLED_NUM_TEST = 3
NUM_TEST = 20

#: Filters of each hidden layer of the FCN (docs/papers.md).
NUM_FILTERS = 30

#: Of the teacher, in the targets of a network that is taught.
TEACHER_SHARE = 0.5

#: The recipes of the FCN.
RECIPES: dict[str, dict[str, Any]] = {
    # The published script's values (docs/papers.md, "ICSE: training and test").
    "paper": {},
    # The bundled corpus is small: a short run that ends within ten minutes on two cores.
    "quick": {
        "epochs": 16,
        "num_items": 400,
        "batch_size": 2,
        "crop_seconds": 1.5,
        "schedule": "cosine",
        "learning_rate": 2e-3,
    },
    # For the models that we ship.
    "best": {
        "epochs": 60,
        "num_items": 4000,
        "batch_size": 8,
        "crop_seconds": 2.0,
        "schedule": "cosine",
        "learning_rate": 2e-3,
        "warmup_steps": 500,
        "loss": "spectral",
        "clip_norm": 1.0,
        "ema": 0.999,
        "second_noise": 0.3,
        "equalizer_db": 10.0,
        "noise_speed": 1.25,
        "gain_db": (-20.0, 0.0),
        "band_limit": 0.1,
        "snr_range": (-10.0, 20.0),
    },
}

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

#: Name of a setting -> field of `MixingConfig`, for the pieces of that network.
MIXING = {
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

TRAINING_NAMES = frozenset(one.name for one in fields(TrainingConfig)) - {"init"}
AUGMENTATION_NAMES = frozenset(one.name for one in fields(Augmentation))
#: All names of settings.
NAMES = TRAINING_NAMES | AUGMENTATION_NAMES | MIXING.keys()


@dataclass(frozen=True)
class DataOptions:
    """The recordings to train and to test on; without any, the bundled corpus is used.

    Attributes:
        speech: Trees of clean speech.
        noise: Folder of noises to mix with them.
        noisy: Folder of premixed noisy files, instead of both.
        clean: Folder of their clean files.
        test_noisy: Folder of premixed noisy files to test on.
        test_clean: Folder of their clean files.
        num_test: Number of test files per noise and SNR, 0 for all; None for all premixed ones,
            `NUM_TEST` mixed ones, and `BUNDLED_NUM_TEST` of the bundled corpus.
        snrs_db: SNRs that the FCN trains and validates at, and that test files are mixed at.
        skip_sa: Whether TIMIT's SA sentences are left out.
        split: How premixed files are split into training and validation: 'disjoint' or 'original'.
        seed: Of the split and of the test files.
        pair_by: How premixed files are paired (`speech.data.corpus.find_matches`).
        keep_low_snr: Whether premixed files at -15 and -10 dB train the FCN too.
    """

    speech: tuple[Path, ...] = ()
    noise: Path | None = None
    noisy: Path | None = None
    clean: Path | None = None
    test_noisy: Path | None = None
    test_clean: Path | None = None
    num_test: int | None = None
    snrs_db: tuple[float, ...] = SNRS_DB
    skip_sa: bool = False
    split: str = "disjoint"
    seed: int = 0
    pair_by: str | None = None
    keep_low_snr: bool = False

    @property
    def is_bundled(self) -> bool:
        """Whether the bundled corpus is to be used."""
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
        return (
            *self.speech, self.noise, self.noisy, self.clean, self.test_noisy, self.test_clean,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainOn:
    """A request to train a finished model further; what is left open follows from its kind.

    Attributes:
        data: Which recordings.
        recipe: Name of a recipe; None for the one that the data imply.
        settings: Values that take the place of the recipe's, by name (see the module).
        num_jobs: Processes that write the test mixtures; -1 for as many as there are cores.

    Raises:
        ValueError: There is no such recipe or setting.
    """

    data: DataOptions = DataOptions()
    recipe: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_jobs: int = -1

    def __post_init__(self) -> None:
        """Checks the names."""
        if self.recipe is not None and self.recipe not in RECIPES:
            raise ValueError(f"recipe is {self.recipe!r}; give one of {', '.join(RECIPES)}")
        unknown = sorted(self.settings.keys() - NAMES)
        if unknown:
            raise ValueError(f"no setting {unknown[0]!r}; give some of {', '.join(sorted(NAMES))}")


@dataclass(frozen=True)
class Request:
    """The network, data and settings of one call of ``speech.train``.

    Attributes:
        network: Key of `NETWORKS`.
        recipe: Name of the recipe.
        training: How to train.
        data: On which recordings.
        out: Folder of the run.
        size: Form of the time-frequency network; None for the FCN; with ``init``,
            what its network is widened to, or None to leave it as it is.
        normalization: Of a new time-frequency network, 'batch' or 'none'.
        num_filters: Of the FCN.
        init: Model file whose weights start the run.
        teacher: Model file whose output is part of the targets (`speech.training.teaching`).
        teacher_share: How much of them.
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
    teacher: Path | None = None
    teacher_share: float = TEACHER_SHARE
    augmentation: Augmentation = Augmentation()
    snr_range_db: tuple[float, float] | None = None
    mixing: MixingConfig = MixingConfig()
    workers: int | None = None
    gpu: str = "0"
    tensorboard: Path | None = None
    json: Path | None = None


@dataclass(frozen=True)
class Network:
    """A network that ``speech.train`` trains; its kind decides on what data and with what loss.

    Attributes:
        title: What it is, for the learning curve.
        kind: Of its model files, `WAVEFORM` or `COMPLEX_MASK`.
        recipes: Its recipes; the first one that is not 'quick' is for any but the bundled corpus.
        options: Names of the options that say how it is built.
        build: Returns a new network, and its conventions if it is one over time and frequency.
    """

    title: str
    kind: str
    recipes: dict[str, dict[str, Any]]
    options: tuple[str, ...]
    build: Callable[[Request], tuple[keras.Model, TimeFrequencyConfig | None]]


def _build_fcn(asked: Request) -> tuple[keras.Model, None]:
    return build_fcn(FCNConfig(num_filters=asked.num_filters), seed=asked.training.seed), None


def _build_time_frequency(asked: Request) -> tuple[keras.Model, TimeFrequencyConfig]:
    assert asked.size is not None
    form = replace(SIZES[asked.size], normalization=asked.normalization)
    return build_time_frequency(form, seed=asked.training.seed), form


#: By what ``--network`` calls them.
NETWORKS = {
    "fcn": Network("FCN", WAVEFORM, RECIPES, ("filters",), _build_fcn),
    "tf": Network(
        "Network over time and frequency", COMPLEX_MASK, TF_RECIPES, ("size", "normalization"),
        _build_time_frequency,
    ),
}  # fmt: skip


def recipe_of(recipes: Mapping[str, Any], data: DataOptions, recipe: str | None) -> str:
    """Returns the recipe that is asked for, or the one that a network and the data imply.

    Args:
        recipes: Of the network.
        data: On which recordings it is trained.
        recipe: Name of the recipe that is asked for; None for none.
    """
    first = next(name for name in recipes if name != "quick")
    return recipe or ("quick" if data.is_bundled else first)


def training_config(settings: Mapping[str, Any], **changes: Any) -> TrainingConfig:
    """Returns the `TrainingConfig` of settings by name, others left out.

    Raises:
        ValueError: A value makes no sense.
    """
    chosen = {name: value for name, value in settings.items() if name in TRAINING_NAMES}
    return TrainingConfig(**chosen | changes)


def augmentation(settings: Mapping[str, Any]) -> Augmentation:
    """Returns the `Augmentation` of settings by name, others left out.

    Raises:
        ValueError: A value makes no sense, or rooms are asked for and can't be simulated.
    """
    return Augmentation(**{name: settings[name] for name in AUGMENTATION_NAMES & settings.keys()})


def mixing_config(settings: Mapping[str, Any], *, is_premixed: bool = False) -> MixingConfig:
    """Returns the `MixingConfig` of settings by name; no rooms where they can't be simulated.

    A warning says so, unless premixed folders leave nothing to simulate.

    Raises:
        ValueError: A value makes no sense.
    """
    asked = {MIXING[name]: settings[name] for name in MIXING.keys() & settings.keys()}
    if "room_share" not in asked and importlib.util.find_spec("pyroomacoustics") is None:
        asked["room_share"] = 0.0
        if not is_premixed:
            _LOGGER.warning(
                "training goes without simulated rooms, for pyroomacoustics is not installed; "
                "`pip install pyroomacoustics`, or give --rooms 0"
            )
    return MixingConfig(**asked)
