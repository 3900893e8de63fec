"""Fine-tuning with tied weights: every step moves the centroids and nothing else in a kernel.

After each step of the optimizer the weights of a cluster are set to their mean: a centroid moves by
the mean of what the optimizer did to its weights. (Han et al. 2016, section 3, move it by the sum
of the gradients; Adam rescales each weight's gradient, so we take the mean of the steps.) Zeros
stay zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from speech.modelfile.spec import LayerSpec, sha256_of_weights
from speech.net.constraints import HeldZeros
from speech.net.keras_models import build_model, layers_of, variables_of
from speech.training.continuing import Continuation
from speech.training.trainer import Trainer


class TiedWeights(keras.constraints.Constraint):
    """Keeps the weights of a cluster equal, and zeros at zero.

    Args:
        kernel: A clustered kernel: weights of one value are one cluster.
    """

    def __init__(self, kernel: np.ndarray) -> None:
        values, first, places = np.unique(kernel, return_index=True, return_inverse=True)
        self.first = first.astype(np.int32)
        self.places = places.ravel().astype(np.int32)
        self.is_cluster = (values != 0).astype(np.float32)
        self.shares = self.is_cluster / np.bincount(self.places).astype(np.float32)

    def __call__(self, w):
        """Returns the kernel with the mean of its cluster for each weight."""
        ops = keras.ops
        places = ops.convert_to_tensor(self.places)
        flat = ops.reshape(w, (-1,))
        # Sums of differences to one of them: equal weights stay what they are to the last bit.
        one = ops.take(flat, self.first) * ops.convert_to_tensor(self.is_cluster)
        rest = ops.segment_sum(flat - ops.take(one, places), places, num_segments=len(self.first))
        means = one + rest * ops.convert_to_tensor(self.shares)
        return ops.reshape(ops.take(means, places), ops.shape(w))


def constrain(network: keras.Model, layers: Sequence[LayerSpec], *, tied: bool) -> None:
    """Lets the optimizer hold zeros, and clusters together if ``tied``, after every step."""
    kernels = {layer.name: layer.kernels for layer in layers}
    for layer in network.layers:
        own = variables_of(layer)
        for key, kernel in kernels.get(layer.name, {}).items():
            own[key].constraint = TiedWeights(kernel) if tied else HeldZeros(kernel != 0)


def fine_tune(
    layers: Sequence[LayerSpec],
    how: Continuation,
    out: Path,
    *,
    held: Sequence[LayerSpec] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> tuple[LayerSpec, ...]:
    """Trains a clustered network on; the same call takes an interrupted one up.

    Args:
        layers: The network, clustered.
        how: Data and settings.
        out: Folder of the run.
        held: A network whose zeros stay zero while all other weights move; None: clusters stay
            clusters.
        on_epoch: Called with the row of each finished epoch.

    Returns:
        The network with the smallest validation error.
    """
    network = build_model(layers)
    constrain(network, layers if held is None else held, tied=held is None)
    config = replace(how.config, init=sha256_of_weights(layers))  # another start is another run
    meta = {**how.meta, "created_by": "python -m quantization.run, fine-tuning"}
    Trainer(
        network, how.training.with_seed(config.seed), how.validation, config, out,
        make_model=how.make_model, meta=meta,
    ).run(on_epoch)  # fmt: skip
    return layers_of(network)
