"""Settings of a quantization. The defaults are the paper's values (docs/papers.md). No Keras."""

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
#: Ways to weigh an error: by its effect on the outputs, by its input's power, or not at all.
WEIGHTINGS = ("correlation", "power", "plain")


@dataclass(frozen=True)
class QuantizationConfig:
    """Settings of a quantization: by k, or by lambda if a lambda or a target is given.

    Attributes:
        k: Centroids of each layer, zero not counted.
        k_last: The same of the last layer; None for ``k``.
        k_of: The same by layer name, for layers that differ.
        per_sign: Whether k counts for each sign, as in the released model.
        centroids: How centroids are stored, one of `FORMATS`; None for FP32 by k, and FP16 by
            lambda.
        lam: Lambda, the relative error of the output that one bit per weight is worth.
        target_bytes: Instead of lambda, the largest number of bytes that the file may have.
        target_percent: The same in percent of the original model's file.
        target_snr_db: Instead of both, the least ratio of the output to its error.
        weighting: How errors are weighed if lambda decides, one of `WEIGHTINGS`.
        method: The way of fine-tuning, one of `METHODS`: tied weights, or TF-MOT.
        finetune: Whether the centroids are trained, instead of quantizing in one shot.
        train_on: Data and settings of the fine-tuning, and the source of the test set. If they are
            left open, its epochs are `FINETUNE_EPOCHS` and its schedule is a cosine.
        rounds: How many times, before the fine-tuning, the network is trained for an epoch with
            free weights and quantized again.
        others: How biases and normalisation are stored, 'fp16' or 'fp32'.
        keep_norms: Whether BatchNormalization is kept, instead of folded away.
        entropy: Whether indices are entropy-coded, instead of stored in a fixed number of bits.
        score: Whether the test set is found, for scores; None: only if there is fine-tuning.
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
        """Whether each weight is chosen by its error and code length, weighed by lambda."""
        asked = (self.lam, self.target_bytes, self.target_percent, self.target_snr_db)
        return any(value is not None for value in asked)

    @property
    def needs_training_data(self) -> bool:
        """Whether the network passes through training code, even if for 0 epochs."""
        return self.finetune or self.method == "tfmot"

    @property
    def num_epochs(self) -> int:
        """Epochs of fine-tuning."""
        return self.train_on.settings.get("epochs", FINETUNE_EPOCHS) if self.finetune else 0

    def name(self, stem: str) -> str:
        """Returns a model's name with the kind of quantization added, such as 'fcn.k16'."""
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
