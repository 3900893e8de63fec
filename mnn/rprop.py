"""Rprop as a Keras optimizer: the size of a step follows from signs alone.

This is iRprop- (Igel and Huesken 2000), as is PyTorch's ``Rprop``: where the sign of a partial
derivative changes, the step shrinks, the weight stays where it is, and the sign is forgotten, so
that the next step neither grows nor shrinks. Nothing is taken back (that would be Rprop+). The MNN
paper names Riedmiller and Braun (1993) and the four constants below, and not the variant.

The size of the gradient does not matter: a loss may be summed or averaged.
"""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("icse")
class Rprop(keras.optimizers.Optimizer):
    """Resilient backpropagation, iRprop-. The defaults are the paper's (section 4.1).

    Args:
        initial_step: First step of every weight; the paper does not give it.
        backtracking: A step is multiplied by this where the sign changed.
        acceleration: A step is multiplied by this where the sign stayed.
        min_step: No step gets smaller.
        max_step: No step gets larger.
        name: Name of the optimizer.
        **kwargs: Those of `keras.optimizers.Optimizer`, such as ``use_ema``.

    Raises:
        ValueError: Not 0 < backtracking < 1 < acceleration, or
            not 0 < min_step <= initial_step <= max_step.
    """

    def __init__(
        self,
        initial_step: float = 1e-3,
        backtracking: float = 0.5,
        acceleration: float = 1.5,
        min_step: float = 1e-7,
        max_step: float = 1e-1,
        name: str = "rprop",
        **kwargs: Any,
    ) -> None:
        if not 0 < backtracking < 1 < acceleration:
            raise ValueError(
                f"backtracking is {backtracking} and acceleration {acceleration}; the first must "
                "lie between 0 and 1, the second above 1"
            )
        if not 0 < min_step <= initial_step <= max_step:
            raise ValueError(
                f"initial_step is {initial_step}; give one from min_step ({min_step}) to "
                f"max_step ({max_step}), all above 0"
            )
        kwargs.pop("learning_rate", None)  # stands in the base class's configuration
        super().__init__(learning_rate=initial_step, name=name, **kwargs)
        self.initial_step = initial_step
        self.backtracking = backtracking
        self.acceleration = acceleration
        self.min_step = min_step
        self.max_step = max_step

    def build(self, variables: list[Any]) -> None:
        """Creates a step and a sign for each weight."""
        if self.built:
            return
        super().build(variables)
        first = keras.initializers.Constant(self.initial_step)
        self._steps, self._signs = [], []
        for variable in variables:
            self._steps.append(self.add_variable_from_reference(variable, "step", first))
            self._signs.append(self.add_variable_from_reference(variable, "sign"))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable; ``learning_rate`` is not used: every weight has its own step."""
        ops = keras.ops
        index = self._get_variable_index(variable)
        steps, signs = self._steps[index], self._signs[index]
        sign = ops.sign(ops.cast(gradient, variable.dtype))
        product = sign * signs  # of signs, not of gradients: it can't underflow
        factor = ops.where(product > 0, self.acceleration, 1.0)
        factor = ops.where(product < 0, self.backtracking, factor)
        step = ops.clip(steps * ops.cast(factor, steps.dtype), self.min_step, self.max_step)
        sign = ops.where(product < 0, ops.zeros_like(sign), sign)
        self.assign(steps, step)
        self.assign(signs, sign)
        self.assign_sub(variable, sign * step)

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        config = super().get_config()
        config.pop("learning_rate")
        return config | {
            "initial_step": self.initial_step,
            "backtracking": self.backtracking,
            "acceleration": self.acceleration,
            "min_step": self.min_step,
            "max_step": self.max_step,
        }
