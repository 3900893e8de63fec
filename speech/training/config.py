"""All settings of a training run except its data and its network. NumPy-level, no Keras."""

from __future__ import annotations

import math
from dataclasses import dataclass

from speech.net.losses import find_loss
from speech.net.mask_loss import MaskLoss

SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adam", "adamw")
MAX_COUNT = 10**9
MAX_HOURS = 10_000.0

#: The paper's number of epochs.
EPOCHS = 60

#: A timed run validates this many times, but neither more nor less often than that.
_VALIDATIONS = 20
_VALIDATE_SECONDS = (15.0, 1800.0)


class TrainingError(ValueError):
    """Training can't go on; the last good checkpoint stands."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. The defaults equal the published script's (docs/papers.md).

    A run has either a number of epochs or a budget of hours. In the second case its progress is
    the share of the budget that is used, over all sessions of the run, and the schedule of the
    learning rate follows it.

    Attributes:
        epochs: Passes of ``num_items`` utterances. None and no ``hours``: `EPOCHS`.
        hours: The budget of clock time; everything that the run does counts. None for epochs.
        validate_minutes: Time between two validations of a run with a budget; None for a
            twentieth of the budget, within a quarter of a minute and half an hour.
        num_items: Utterances per epoch; None for one pass over the data.
        batch_size: Utterances per step.
        crop_seconds: Longest piece of an utterance that is used; None for whole utterances.
        optimizer: 'adam', or 'adamw' with a decay of the weights that is decoupled from the
            gradient (Loshchilov and Hutter 2019); biases and normalisations do not decay.
        learning_rate: The largest.
        beta_2: Momentum of the optimizer's mean of squared gradients.
        epsilon: What the optimizer adds to the root of that mean.
        weight_decay: Of 'adamw', times the learning rate.
        schedule: 'constant', or 'cosine' down to a share of the learning rate over the whole run.
        final_learning_rate: That share.
        warmup_steps: The learning rate first rises in a straight line over so many steps.
        loss: One of ``speech.net.losses.LOSSES``, between waveforms; or the weights of the parts of
            the loss of the network over time and frequency.
        clip_norm: Gradients are scaled down to this global norm (Pascanu et al. 2013); None
            for as they are.
        ema: Weights are averaged with this momentum, step by step (Polyak and Juditsky 1992); the
            average is validated and saved. None for the weights as they are.
        init: SHA-256 of the model file, or of the weights, that start the run; None for random
            ones.
        seed: Of weights, order, mixing and crops.
        conv: 'fast' or 'keras': see :class:`speech.net.chain_training.TrainingModel`.
    """

    epochs: int | None = None
    hours: float | None = None
    validate_minutes: float | None = None
    num_items: int | None = 30000
    batch_size: int = 1
    crop_seconds: float | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    final_learning_rate: float = 0.01
    warmup_steps: int = 0
    loss: str | MaskLoss = "mse"
    clip_norm: float | None = None
    ema: float | None = None
    init: str | None = None
    seed: int = 0
    conv: str = "fast"

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        if self.epochs is None and self.hours is None:
            object.__setattr__(self, "epochs", EPOCHS)
        if self.epochs is not None and self.hours is not None:
            raise ValueError(f"epochs is {self.epochs} and hours {self.hours}; give one of them")
        for name in ("epochs", "batch_size", "num_items"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_COUNT:
                raise ValueError(f"{name} is {value}; give a number from 1 to {MAX_COUNT}")
        if self.hours is not None and not 0 < self.hours <= MAX_HOURS:
            raise ValueError(f"hours is {self.hours}; give more than 0, at most {MAX_HOURS:g}")
        if self.validate_minutes is not None:
            if self.hours is None:
                raise ValueError("validate_minutes is for a run with hours; leave it out")
            if not 0.01 <= self.validate_minutes <= 60 * MAX_HOURS:
                raise ValueError(f"validate_minutes is {self.validate_minutes}; give 0.01 or more")
        if self.crop_seconds is not None and not 0.1 <= self.crop_seconds <= 3600:
            raise ValueError(f"crop_seconds is {self.crop_seconds}; give 0.1 to 3600")
        self._check_optimizer()
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm is {self.clip_norm}; give a positive number")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; give a number between 0 and 1, such as 0.999")
        if isinstance(self.loss, str):
            find_loss(self.loss)

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer is {self.optimizer!r}; give one of {', '.join(OPTIMIZERS)}"
            )
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; give a positive number")
        if not 0 < self.beta_2 < 1:
            raise ValueError(f"beta_2 is {self.beta_2}; give a number between 0 and 1, as 0.999")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; give 0 or more")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(f"weight_decay is {self.weight_decay}, which 'adam' has none of; "
                             "give optimizer 'adamw'")  # fmt: skip
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; give one of {', '.join(SCHEDULES)}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}; give a share of the learning "
                "rate, 0 to 1"
            )
        if not 0 <= self.warmup_steps <= MAX_COUNT:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give 0 to {MAX_COUNT}")

    @property
    def budget_seconds(self) -> float | None:
        """The budget of clock time; None for a run of epochs."""
        return None if self.hours is None else 3600 * self.hours

    @property
    def validate_seconds(self) -> float:
        """Time between two validations of a run with a budget."""
        if self.validate_minutes is not None:
            return 60 * self.validate_minutes
        assert self.budget_seconds is not None
        shortest, longest = _VALIDATE_SECONDS
        return min(max(self.budget_seconds / _VALIDATIONS, shortest), longest)

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Returns the learning rate of a step, counted from 0 over the whole run of epochs."""
        part = (step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1)
        return self.learning_rate_of(step, part)

    def learning_rate_of(self, step: int, progress: float) -> float:
        """Returns the learning rate of a step.

        Args:
            step: Counted from 0; decides until the warm-up is over.
            progress: Which share of the run is done, 0 to 1; decides from then on.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        final = self.final_learning_rate
        return self.learning_rate * (final + (1 - final) * cosine)

    def ema_at(self, step: int) -> float:
        """Returns the momentum of the average at a step: it starts at 0.1 and rises to ``ema``."""
        assert self.ema is not None
        return min(self.ema, (1 + step) / (10 + step))
