"""Settings of `mnn.train`: of its loop, and of one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mnn import dae, experts
from speech.net.timefrequency import SIZES
from speech.training.request import DataOptions

OPTIMIZERS = ("rprop", "adam")
SCHEDULES = ("constant", "cosine")

#: The paper's nets by what is trained, the one that is trained by default first.
NETS = {
    "dae": tuple(dae.NETS),
    "expert": (*experts.NETS, *experts.LSTM_NETS),
}

#: Experts are made at this SNR unless another is asked for (section 4.2).
EXPERT_SNRS_DB = (0.0,)


@dataclass(frozen=True)
class FitConfig:
    """Settings of the training loop. The defaults are the paper's where it states them (4.1).

    Attributes:
        iterations: Number of updates at most.
        batch_size: Frames per batch; all of them if there are fewer.
        optimizer: 'rprop' or 'adam'.
        learning_rate: Adam's, or the first step of Rprop.
        schedule: Whether Adam's learning rate stays ('constant') or falls to 0 ('cosine').
        validate_every: Iterations from one validation to the next.
        patience: Iterations without a smaller validation error after which training ends; 0 for
            never.
        seed: Seed of the order of frames, the first weights and dropout.
    """

    iterations: int = 5000
    batch_size: int = 1000
    optimizer: str = "rprop"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    validate_every: int = 50
    patience: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name in ("iterations", "batch_size", "validate_every"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 to {10**9:,}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}; give one of {OPTIMIZERS}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; give one of {SCHEDULES}")
        if self.schedule != "constant" and self.optimizer == "rprop":
            raise ValueError("Rprop has a step for each weight and no schedule; take Adam")
        if not 0 < self.learning_rate < 1e6:
            raise ValueError(
                f"learning_rate is {self.learning_rate}; give a positive number below 1e6"
            )
        if self.optimizer == "rprop" and not 1e-7 <= self.learning_rate <= 1e-1:
            raise ValueError(
                f"learning_rate is {self.learning_rate}, Rprop's first step; give 1e-7 to 1e-1"
            )
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; give 0 or more iterations")


@dataclass(frozen=True)
class TrainConfig:
    """One training of `mnn.train.train`.

    Attributes:
        what: 'dae', an autoencoder of clean speech, or 'expert', a network that gives a soft mask.
        out: The model file to write, ending in '.h5'.
        net: One of `NETS`; None for the first of them, and with ``init``.
        init: Model file whose weights start the training; its zeros stay zero.
        fit: How to train; its seed also draws speakers and mixtures.
        data: Which recordings; ``snrs_db`` is what experts are trained at.
        conditions: Columns and patterns that choose among them (`mnn.conditions.matching`).
        num_speakers: Speakers to train on at most; None for the paper's number, or all of the
            bundled corpus.
        per_speaker: Utterances of each speaker at most; None likewise.
        num_draws: Mixtures of each utterance, noise and SNR.
        gpu: As ``--gpu``.
    """

    what: str
    out: Path
    net: str | None = None
    init: Path | None = None
    fit: FitConfig = FitConfig()
    data: DataOptions = DataOptions(snrs_db=EXPERT_SNRS_DB)
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_speakers: int | None = None
    per_speaker: int | None = None
    num_draws: int = 1
    gpu: str = "0"

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense or do not go together."""
        if self.what not in NETS:
            raise ValueError(f"what is {self.what!r}; give one of {', '.join(NETS)}")
        if self.net and self.init:
            raise ValueError("--net is for a new network; --init has its own")
        if self.net and self.net not in NETS[self.what]:
            raise ValueError(f"--net is {self.net}; give one of {', '.join(NETS[self.what])}")
        if self.out.suffix != ".h5":
            raise ValueError(f"--out is {self.out}; give a name that ends in .h5")
        for one, other in (("noisy", "clean"), ("speech", "noise")):
            if bool(getattr(self.data, one)) != bool(getattr(self.data, other)):
                raise ValueError(f"the data has only one of {one} and {other}; give both")


@dataclass(frozen=True)
class RankerConfig:
    """One training of `mnn.ranking.train_ranker`.

    Attributes:
        out: The model file to write, ending in '.h5'; what the run keeps is in a folder beside it
            of the same name without the ending.
        speech: Trees of clean speech; none for the bundled corpus.
        size: One of `speech.net.timefrequency.SIZES`.
        hours: Of clock time, over all calls.
        num_noises: Noises of 10 s that are made of the speech.
        kinds: Names of the kinds of noise to make (`mnn.noises.NOISES`); none for all.
        num_jobs: Processes that make them.
        seed: Of weights and mixtures; the noises are always the same.
        gpu: As ``--gpu``.
    """

    out: Path
    speech: tuple[Path, ...] = ()
    size: str = "small"
    hours: float = 1.0
    num_noises: int = 2000
    kinds: tuple[str, ...] = ()
    num_jobs: int = -1
    seed: int = 0
    gpu: str = "0"

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        if self.out.suffix != ".h5":
            raise ValueError(f"--out is {self.out}; give a name that ends in .h5")
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; give one of {', '.join(SIZES)}")
        if not 1 <= self.num_noises <= 99_999:
            raise ValueError(f"num_noises is {self.num_noises}; give 1 to 99,999")
