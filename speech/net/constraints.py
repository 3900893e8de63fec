"""The Keras constraint that keeps zeros at zero: pruned networks are trained on with it."""

from __future__ import annotations

import keras
import numpy as np


class HeldZeros(keras.constraints.Constraint):
    """Sets parts of a kernel to zero after every step of the optimizer.

    Args:
        mask: bool, False where zero: of the kernel's shape, or one that broadcasts to it, such as
            [in, out] for a Conv1D kernel [taps, in, out].
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.asarray(mask, np.float32)

    def __call__(self, w):
        """Returns the kernel with its zeros."""
        return w * keras.ops.convert_to_tensor(self.mask, w.dtype)
