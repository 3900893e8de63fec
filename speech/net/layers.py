"""Keras layers of our own that may stand in a model file.

A model file names them by their registered name, ``icse>ModifiedReLU``; `speech.weights` imports
this module when it meets one, and ``speech.modelfile.rules.LAYER_RULES`` says what is accepted.
Importing this module imports Keras.

Keras without this package opens such a file once the layer is registered under the same name::

    @keras.saving.register_keras_serializable("icse")
    class ModifiedReLU(keras.layers.Layer):
        def __init__(self, epsilon=1e-5, **kwargs):
            super().__init__(**kwargs)
            self.epsilon = epsilon

        def call(self, a):
            e = self.epsilon
            return keras.ops.where(a >= e, a, e / (1 + e - keras.ops.minimum(a, e)))

    keras.models.load_model("expert.h5", compile=False)
"""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("icse")
class ModifiedReLU(keras.layers.Layer):
    """Rectifier that is positive everywhere and so never stops learning (Liu et al. 2014).

    f(a) = a for a >= epsilon, -epsilon / (a - 1 - epsilon) below it. Both give epsilon at
    a = epsilon; the slope there is 1, and epsilon just below.

    Args:
        epsilon: Where the two pieces meet.
        **kwargs: Those of `keras.layers.Layer`.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon!r}, expected a number above 0, at most 1")
        self.epsilon = float(epsilon)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Returns f(inputs), of the same shape."""
        # Without the minimum, the unused piece would divide by 0 at 1 + epsilon: a NaN gradient.
        below = self.epsilon / (1 + self.epsilon - keras.ops.minimum(inputs, self.epsilon))
        return keras.ops.where(inputs >= self.epsilon, inputs, below)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns ``input_shape``."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "epsilon": self.epsilon}
