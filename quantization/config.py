"""What is asked of a quantization. Defaults are the paper's values (docs/papers.md). No Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speech.training.request import TrainOn

K = 16
FINETUNE_EPOCHS = 2
FINETUNE_LEARNING_RATE = 3e-4
METHODS = ("kmeans", "tfmot")
#: How centroids are stored; arithmetic stays FP32.
FORMATS = ("fp32", "fp16", "int8")
#: How an error is weighed: by what it does to outputs, by its input's power, or not at all.
WEIGHTINGS = ("correlation", "power", "plain")


@dataclass(frozen=True)
class QuantizationConfig:
    """How a model is quantized: by k, or by lambda if a lambda or a target is given.

    Attributes:
        k: Centroids of each layer, zero not counted.
        k_last: The same of the last layer; None for ``k``.
        k_of: The same by layer name, for layers that differ.
        per_sign: Whether k counts for each sign, as in the released model.
        centroids: How centroids are stored, one of `FORMATS`; None for FP32 by k, and FP16 by
            lambda.
        lam: Relative error of the output that a bit per weight is worth.
        target_bytes: Length of the largest file, instead.
        target_percent: The same in percent of the model's file.
        target_snr_db: Instead of both, how far the output must lie above its error.
        weighting: Of errors by lambda, one of `WEIGHTINGS`.
        method: Who fine-tunes, one of `METHODS`: tied weights, or TF-MOT.
        finetune: Whether the centroids are trained, and the network not quantized in one shot.
        train_on: On what, and where the test set comes from. Its epochs are `FINETUNE_EPOCHS`, and
            its schedule is a cosine, if they are left open.
        rounds: How many times the network is trained with free weights for an epoch and quantized
            again, before.
        others: How biases and normalisation are stored, 'fp16' or 'fp32'.
        keep_norms: Whether BatchNormalization is kept, and not folded away.
        entropy: Whether indices are coded by their entropy, and not with a fixed number of bits.
        score: Whether the test set is found, for scores; None for only with fine-tuning.
        work: Folder of the checkpoints; None for one below runs/quantization.
        gpu: As ``--gpu``, for fine-tuning.
    """

    k: int = K
    k_last: int | None = None
    k_of: Mapping[str, int] = field(default_factory=dict)
    per_sign: bool = False
    centroids: str | None = None
    lam: float | None = None
    target_bytes: int | None = None
    target_percent: float | None = None
    target_snr_db: float | None = None
    weighting: str = WEIGHTINGS[0]
    method: str = METHODS[0]
    finetune: bool = False
    train_on: TrainOn = TrainOn()
    rounds: int = 0
    others: str = "fp16"
    keep_norms: bool = False
    entropy: bool = True
    score: bool | None = None
    work: Path | None = None
    gpu: str = "0"

    @property
    def is_by_lambda(self) -> bool:
        """Whether error and code length decide about each weight."""
        asked = (self.lam, self.target_bytes, self.target_percent, self.target_snr_db)
        return any(value is not None for value in asked)

    @property
    def needs_training_data(self) -> bool:
        """Whether the network goes through training, be it for no epoch."""
        return self.finetune or self.method == "tfmot"

    @property
    def num_epochs(self) -> int:
        """Epochs of fine-tuning."""
        return self.train_on.settings.get("epochs", FINETUNE_EPOCHS) if self.finetune else 0

    def name(self, stem: str) -> str:
        """Returns a model's name with what is done to it, as 'fcn.k16'."""
        if self.target_bytes is not None:
            how = f"{self.target_bytes}b"
        elif self.target_percent is not None:
            how = f"{self.target_percent:g}p"
        elif self.target_snr_db is not None:
            how = f"{self.target_snr_db:g}db"
        elif self.lam is not None:
            how = f"lambda{self.lam:g}"
        else:
            how = f"k{self.k}"
        return f"{stem}.{how}"
