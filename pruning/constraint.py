"""The Keras constraint that keeps pruned channels at zero."""

from __future__ import annotations

import keras
import numpy as np


class ZeroChannels(keras.constraints.Constraint):
    """Sets the pruned channels of a kernel to zero.

    Args:
        mask: bool [in, out], False where pruned. A Conv1D kernel [taps, in, out] takes it for all
            of its taps.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.asarray(mask, np.float32)

    def __call__(self, w):
        """Returns the kernel, pruned."""
        return w * keras.ops.convert_to_tensor(self.mask, w.dtype)
