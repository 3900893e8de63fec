"""Knowledge distillation: a small network learns from a larger one, not from clean speech alone.

After Hinton, Vinyals and Dean (2015). The targets here are no classes but signals, so the teacher's
answer can be mixed with the true one: the target is (1 - share) clean + share T(noisy). For squared
errors that is the weighted sum of both losses, but for a constant.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech.base.files import sha256_of
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK
from speech.net.mask_enhancer import MaskEnhancer
from speech.training.pieces import Pieces


@dataclass
class TaughtPieces:
    """Pieces whose clean speech is replaced, in part, by what a teacher makes of the noisy speech.

    It is computed where pieces are mixed: by the processes that do so ahead of time.

    Attributes:
        source: Of the pieces.
        teacher: Model file of a network over time and frequency.
        share: Of the teacher in the target, above 0, at most 1.

    Raises:
        ValueError: The share is out of this range, or the file holds another kind of model.
    """

    source: Pieces
    teacher: Path
    share: float = 0.5

    def __post_init__(self) -> None:
        """Checks both."""
        if not 0 < self.share <= 1:
            raise ValueError(f"teacher_share is {self.share}; give more than 0, at most 1")
        _open(self.teacher)

    @property
    def batch_size(self) -> int:
        """Pieces of a batch."""
        return self.source.batch_size

    @property
    def num_samples(self) -> int:
        """Length of a piece."""
        return self.source.num_samples

    @property
    def seed(self) -> int:
        """Of the pieces; to set it leaves the source of others as it is."""
        return self.source.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.source = copy.copy(self.source)
        self.source.seed = seed

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy speech and targets, float32 [batch_size, num_samples] each."""
        noisy, clean = self.source.batch(index)
        return noisy, np.stack([self._target(*own) for own in zip(noisy, clean, strict=True)])

    def piece(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy speech and target, float32 [num_samples] each."""
        noisy, clean = self.source.piece(position)
        return noisy, self._target(noisy, clean)

    def description(self) -> list[str]:
        """Returns the lines of the source, after one for the teacher."""
        line = f"teacher {sha256_of(self.teacher)} {self.share:g}"
        return [line, *self.source.description()]

    def _target(self, noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
        taught = _open(self.teacher)(noisy, threads=1)
        return clean + np.float32(self.share) * (taught - clean)


@functools.lru_cache(maxsize=1)
def _open(path: Path) -> MaskEnhancer:
    file = read_model_file(path)
    file.require_kind(COMPLEX_MASK, fix="choose another --teacher")
    return MaskEnhancer(file)
