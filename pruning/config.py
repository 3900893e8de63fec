"""Settings of a pruning. The defaults are the paper's values (docs/papers.md). No Keras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speech.training.request import TrainOn

THETA = 0.65
#: Filters are removed by theta.
BY_THETA = "theta"
NUM_STAGES = 7
RETRAIN_EPOCHS = 2
RETRAIN_LEARNING_RATE = 3e-4

#: Ways to rank channels: by the paper's sparsity, by the size of the kernel, or at random.
CRITERIA = ("sparsity", "magnitude", "random")


@dataclass(frozen=True)
class PruningConfig:
    """Settings of a pruning.

    Attributes:
        theta: Channels whose sparsity S_j(k) lies above it are pruned.
        target_sparsity: Share of the channels to prune instead, 0 to 1; None for theta.
        per_layer: Whether that share is taken from each layer, instead of from all together.
        criterion: Which channels are pruned first, if a share is given: one of `CRITERIA`.
        prune_last: Whether the last layer is pruned as well.
        remove_filters: Share of the filters of every layer that leaves the file, or `BY_THETA`;
            None for channels that are set to zero.
        retrain: Whether the network is retrained, instead of pruned in one shot.
        train_on: Data and settings of the retraining, and the source of the test set. Its epochs
            are per stage, `RETRAIN_EPOCHS` if they are left open.
        stages: How many times the network is pruned and retrained.
        final_epochs: Epochs at the end in which pruned channels are held at zero; None for the
            epochs of two stages.
        seed: Seed of the criterion 'random'.
        score: Whether the test set is found, for scores; None: only if the network is retrained.
        work: Folder of the checkpoints and of the test set; None for one below runs/pruning.
        gpu: As ``--gpu``, for retraining.
    """

    theta: float = THETA
    target_sparsity: float | None = None
    per_layer: bool = False
    criterion: str = CRITERIA[0]
    prune_last: bool = False
    remove_filters: float | str | None = None
    retrain: bool = False
    train_on: TrainOn = TrainOn()
    stages: int = NUM_STAGES
    final_epochs: int | None = None
    seed: int = 0
    score: bool | None = None
    work: Path | None = None
    gpu: str = "0"

    @property
    def num_stages(self) -> int:
        """Number of stages; 0 if the network is pruned in one shot."""
        return self.stages if self.retrain else 0

    @property
    def num_epochs(self) -> tuple[int, int]:
        """Epochs of each stage, and at the end."""
        each = self.train_on.settings.get("epochs", RETRAIN_EPOCHS)
        return each, 2 * each if self.final_epochs is None else self.final_epochs
