"""The process in which TensorFlow Model Optimization (TF-MOT) runs.

Importing TF-MOT sets ``TF_USE_LEGACY_KERAS`` and may turn ``tf.keras`` into Keras 2 for the whole
program. So it is imported here alone, inside functions, in a process of its own, which
`quantization.tfmot_bridge` starts, feeds and ends. Arrays go in and come out; no file is read.

What TF-MOT does: `ClusterWeights` keeps a layer's original kernel and its centroids as trainable
variables. Each step it looks up the nearest centroid of each original weight, computes with that,
and hands the gradient both to the centroids (summed over the weights that use one) and, straight
through, to the original weights, which may so change their centroid.

What we add, where TF-MOT's own way does not do:

* Centroids start at the codebook given: TF-MOT has only seedings (`Codebook`).
* Pruned channels go by their mask, not by "whatever is nearest to zero": a small weight of a kept
  channel never joins the zeros, and the k centroids are k beside the zero (`Lookup`).
* The convolutions of a step run through ``speech.net.chain``, or ``speech.net.tape`` for a network
  over time and frequency, with TF-MOT's clustered kernels; its gradients go back into TF-MOT's.
  Keras' own convolution would take most of the step.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from speech.base.lazy import tensorflow as tf
from speech.modelfile.spec import LayerSpec, is_chain, linked
from speech.net import blockconv, mask_loss, tape
from speech.net.chain import Network, blocks_from_layers
from speech.net.losses import find_loss
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import TimeFrequencyConfig

#: Names of the weights a step may train, in the order of `speech.net.chain`.
_PARAMETERS = ("kernel", "bias", "gamma", "beta")


@functools.cache
def tfmot_classes() -> dict[str, Any]:
    """Imports TF-MOT and returns the parts that are used, and our classes made of them.

    Raises:
        ImportError: A part is not where TF-MOT 0.8 has it.
    """
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.clustering.keras import clustering_centroids
    from tensorflow_model_optimization.python.core.keras.compat import keras

    api = tfmot.clustering.keras

    class Codebook(clustering_centroids.AbstractCentroidsInitialisation):
        """Centroids that are given, not found; ``values`` float32 [k] is set by subclasses."""

        values = np.empty(0, np.float32)

        def _calculate_centroids_for_interval(self, weight_interval, number_of_clusters):
            raise NotImplementedError("the centroids are given")

        def get_cluster_centroids(self):
            return tf.constant(self.values)

    class Lookup(api.ClusteringAlgorithm):  # type: ignore[name-defined]
        """TF-MOT's nearest centroid, by bisection: its own way makes [weights, k] differences.

        With ``kept``, centroid 0 is the zero of the pruned weights; the others are for the rest.
        """

        def __init__(self, *args: Any, kept: np.ndarray | None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.kept = None if kept is None else tf.constant(kept)

        def get_pulling_indices(self, weight, centroids=None):
            centroids = self.cluster_centroids if centroids is None else centroids
            centroids = tf.convert_to_tensor(centroids)
            first = 0 if self.kept is None else 1
            order = tf.argsort(centroids[first:])
            ordered = tf.gather(centroids[first:], order)
            borders = (ordered[1:] + ordered[:-1]) / 2
            places = tf.searchsorted(borders, tf.reshape(weight, [-1]))
            nearest = tf.reshape(tf.gather(order, places), weight.shape) + first
            nearest = nearest if self.kept is None else tf.where(self.kept, nearest, 0)
            return tf.cast(nearest, tf.int64)

    class Clusterable(api.ClusterableLayer):  # type: ignore[name-defined]
        """A layer whose kernel is clustered; ``kept`` bool [kernel's shape], None for all."""

        kept: np.ndarray | None = None

        def get_clusterable_weights(self):
            return [("kernel", self.kernel)]

        def get_clusterable_algorithm(self, weight_name):
            return functools.partial(Lookup, kept=self.kept)

    class Conv1D(keras.layers.Conv1D, Clusterable):
        """Conv1D of tf_keras with the lookup above."""

    class Conv2D(keras.layers.Conv2D, Clusterable):
        """Conv2D of tf_keras with the lookup above."""

    class Conv2DTranspose(keras.layers.Conv2DTranspose, Clusterable):
        """Conv2DTranspose of tf_keras with the lookup above."""

    class Dense(keras.layers.Dense, Clusterable):
        """Dense of tf_keras with the lookup above."""

    return {
        "keras": keras,
        "cluster_weights": api.cluster_weights,
        "strip_clustering": api.strip_clustering,
        "initialisers": clustering_centroids.CentroidsInitializerFactory._initialisers,
        "Codebook": Codebook,
        "Conv1D": Conv1D,
        "Conv2D": Conv2D,
        "Conv2DTranspose": Conv2DTranspose,
        "Dense": Dense,
    }


def wrap(layer: Any, centroids: np.ndarray, kept: np.ndarray | None) -> Any:
    """Returns TF-MOT's wrapper around a built tf_keras layer.

    Args:
        layer: A convolution or Dense of `tfmot_classes`; its kernel belongs to the wrapper from
            now on.
        centroids: float32 [k].
        kept: bool of the kernel's shape, False where the weight is and stays zero; None if none is.

    Raises:
        ValueError: TF-MOT does not take the layer. It returns None for one of Keras 3.
    """
    parts = tfmot_classes()
    values = centroids if kept is None else np.concatenate([[np.float32(0)], centroids])
    key = f"codebook of {layer.name}"
    parts["initialisers"][key] = type("Codebook", (parts["Codebook"],), {"values": values})
    layer.kept = kept
    wrapper = parts["cluster_weights"](
        layer,
        number_of_clusters=len(values),
        cluster_centroids_init=key,
        preserve_sparsity=kept is not None,
    )
    if wrapper is None:
        raise ValueError(
            f"TF-MOT returned nothing for layer {layer.name!r}, a {type(layer).__module__} layer; "
            "it clusters layers of tf_keras only"
        )
    return wrapper


def copy_network(layers: Sequence[LayerSpec]) -> Any:
    """Returns a tf_keras model with the settings and weights of ``layers``.

    Raises:
        ValueError: A layer's class is not one of tf_keras.
    """
    parts = tfmot_classes()
    keras = parts["keras"]
    built = []
    for spec in layers:
        config = dict(spec.config)
        if spec.class_name == "InputLayer":
            config = {"batch_input_shape": tuple(config["batch_shape"])}
        elif spec.class_name == "LeakyReLU":
            config = {"alpha": config["negative_slope"]}
        layer_class = parts.get(spec.class_name) or getattr(keras.layers, spec.class_name, None)
        if layer_class is None:
            raise ValueError(
                f"layer {spec.name!r} is a {spec.class_name}, which has no counterpart in tf_keras"
            )
        built.append(layer_class(name=spec.name, **config))
    model = keras.Sequential(built) if is_chain(layers) else _graph(keras, layers, built)
    for spec in layers:
        for name, array in spec.weights.items():
            getattr(model.get_layer(spec.name), name).assign(array)
    return model


def _graph(keras: Any, layers: Sequence[LayerSpec], built: Sequence[Any]) -> Any:
    """Returns a functional model of built layers, each called on the outputs of its inputs."""
    outputs = {layers[0].name: built[0].output}
    for spec, layer in zip(linked(layers)[1:], built[1:], strict=True):
        inputs = [outputs[name] for name in spec.inputs]
        outputs[spec.name] = layer(inputs if len(inputs) > 1 else inputs[0])
    return keras.Model(built[0].output, outputs[layers[-1].name])


class Clusterer:
    """A network under TF-MOT's clustering.

    Args:
        layers: The network.
        codebooks: Layer name -> float32 [k], k >= 2.
        masks: Layer name -> bool that broadcasts to the kernel, False where the channel is pruned;
            the kernel is zero there. Layers without one have no pruned channel.
        fast: Compute steps through the C kernels if they know the network.
        loss: One of ``speech.net.losses.LOSSES``; of a network over time and frequency its weights.
        seed: Of Dropout.
        conventions: Those of a network over time and frequency; None for one over waveforms.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        codebooks: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        *,
        fast: bool = True,
        loss: str | MaskLoss = "mse",
        seed: int = 0,
        conventions: TimeFrequencyConfig | None = None,
    ) -> None:
        self._tf = tf
        self._parts = tfmot_classes()
        keras = self._parts["keras"]
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
        if not tf.config.list_physical_devices("GPU"):  # some GPU kernels have no such form
            tf.config.experimental.enable_op_determinism()
        self._specs = tuple(layers)
        self._loss = find_loss(loss) if isinstance(loss, str) else None
        self._seed = seed

        def clone(layer):
            if layer.name not in codebooks:
                return layer
            kept = masks.get(layer.name)
            if kept is not None:
                kept = np.broadcast_to(kept, layer.kernel.shape)
            return wrap(layer, codebooks[layer.name], kept)

        self._model = keras.models.clone_model(copy_network(layers), clone_function=clone)
        self._wrappers = [layer for layer in self._model.layers if hasattr(layer, "layer")]
        self._associate()
        self._variables = list(self._model.trainable_variables)
        self._optimizer = keras.optimizers.Adam(epsilon=1e-8, jit_compile=False)
        self._optimizer.build(self._variables)
        self._masks: _Masks | None = None
        if isinstance(loss, MaskLoss):
            self._masks = _Masks(layers, loss, conventions or TimeFrequencyConfig(), fast)
        self._chain = _chain(layers) if fast and self._masks is None else None
        self._clustered = tf.function(self._parameters)
        self._train = tf.function(self._train_parameters)

    @property
    def uses_c_kernels(self) -> bool:
        """Whether steps run through ``speech.net.chain`` or ``speech.net.tape``."""
        return self._chain is not None or (
            self._masks is not None and self._masks.nodes is not None
        )

    def start_epoch(self, epoch: int) -> None:
        """Makes what is random in an epoch the same, wherever a run was taken up."""
        self._parts["keras"].utils.set_random_seed(self._seed + 1 + epoch)

    def step(
        self, learning_rate: float, noisy: np.ndarray, lengths: np.ndarray, clean: np.ndarray
    ) -> float:
        """Trains on one batch (``speech.data.pipeline.Batch``) and returns its loss."""
        self._optimizer.learning_rate = learning_rate
        if self._masks is not None:
            return self._step_of_masks(self._masks, noisy[..., 0], clean[..., 0])
        assert self._loss is not None
        if self._chain is not None:
            parameters = [array.numpy() for array in self._clustered()]
            outputs, traces = self._chain.forward(noisy, lengths, parameters)
            loss, gradient = self._loss.value_and_gradient(clean, outputs, lengths)
            parts = self._chain.backward(gradient, traces, parameters)
            self._train([np.asarray(part, np.float32) for part in parts])
            return float(loss)
        with self._tf.GradientTape() as tape:
            outputs = self._run_layers(noisy, lengths, training=True)
        loss, gradient = self._loss.value_and_gradient(clean, outputs.numpy(), lengths)
        gradients = tape.gradient(outputs, self._variables, self._tf.constant(gradient))
        self._apply(gradients)
        return float(loss)

    def score(self, noisy: np.ndarray, lengths: np.ndarray, clean: np.ndarray) -> float:
        """Returns the loss of one batch, without Dropout."""
        if self._masks is not None:
            batch = self._masks.prepare(noisy[..., 0], clean[..., 0])
            mask = self._masks.forward(batch, self._weights())
            if mask is None:
                mask = self._model(batch.features, training=False).numpy()
            return self._masks.loss(mask, batch)[0]
        assert self._loss is not None
        if self._chain is not None:
            parameters = [array.numpy() for array in self._clustered()]
            outputs, _ = self._chain.forward(noisy, lengths, parameters)
        else:
            outputs = self._run_layers(noisy, lengths, training=False).numpy()
        return float(self._loss.value_and_gradient(clean, outputs, lengths)[0])

    def state(self) -> list[np.ndarray]:
        """Returns all that a run needs to go on from here."""
        return [variable.numpy() for variable in self._state_variables()]

    def restore(self, arrays: Sequence[np.ndarray]) -> None:
        """Goes back to a `state`."""
        for variable, array in zip(self._state_variables(), arrays, strict=True):
            variable.assign(array)

    def stripped(self) -> list[dict[str, np.ndarray]]:
        """Returns the weights of each layer after ``strip_clustering``, in the layers' order.

        The clustering itself goes on: what is stripped are copies of the wrapped layers.
        """
        model = self._parts["strip_clustering"](self._model)
        return [
            {name: np.array(getattr(model.get_layer(spec.name), name)) for name in spec.weights}
            for spec in self._specs
        ]

    def _step_of_masks(self, masks: _Masks, noisy: np.ndarray, clean: np.ndarray) -> float:
        """Trains on one batch [batch, num_samples] and returns its loss."""
        batch = masks.prepare(noisy, clean)
        weights = self._weights()
        mask = masks.forward(batch, weights, training=True)
        if mask is None:
            with self._tf.GradientTape() as recorded:
                outputs = self._model(batch.features, training=True)
            loss, gradient = masks.loss(outputs.numpy(), batch)
            self._apply(recorded.gradient(outputs, self._variables, self._tf.constant(gradient)))
            return loss
        loss, gradient = masks.loss(mask, batch)
        found = masks.backward(gradient, weights)
        self._train([found[layer][name] for layer, name in self._places()])
        for name, values in masks.moved_statistics(weights).items():
            for key, value in values.items():
                getattr(self._model.get_layer(name), key).assign(value)
        return loss

    def _weights(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns the arrays of the clustered network, statistics included, by layer and name."""
        found: dict[str, dict[str, np.ndarray]] = {}
        values = [array.numpy() for array in self._clustered()]
        for (layer, name), value in zip(self._places(), values, strict=True):
            found.setdefault(layer, {})[name] = value
        for layer in self._model.layers:
            for name in ("moving_mean", "moving_variance"):
                if hasattr(layer, name):
                    found[layer.name][name] = getattr(layer, name).numpy()
        return found

    def _places(self) -> list[tuple[str, str]]:
        """Returns layer and name of each of `_parameters`."""
        layers = [getattr(layer, "layer", layer) for layer in self._model.layers]
        return [
            (layer.name, name)
            for layer in layers
            for name in _PARAMETERS
            if getattr(layer, name, None) is not None
        ]

    def _associate(self) -> None:
        """Lets TF-MOT look up the centroids and set the clustered kernels."""
        for wrapper in self._wrappers:
            wrapper.update_clustered_weights_associations()

    def _parameters(self) -> list[Any]:
        """Returns the clustered network's parameters as tensors, in the order of the chain."""
        self._associate()
        layers = [getattr(layer, "layer", layer) for layer in self._model.layers]
        found = (getattr(layer, name, None) for layer in layers for name in _PARAMETERS)
        return [self._tf.convert_to_tensor(array) for array in found if array is not None]

    def _train_parameters(self, upstream: list[Any]) -> None:
        """Takes a step, given the loss's gradients with respect to `_parameters`."""
        with self._tf.GradientTape() as tape:
            parameters = self._parameters()
        self._apply(tape.gradient(parameters, self._variables, upstream))

    def _apply(self, gradients: Sequence[Any]) -> None:
        self._optimizer.apply_gradients(
            (self._tf.convert_to_tensor(gradient), variable)
            for gradient, variable in zip(gradients, self._variables, strict=True)
            if gradient is not None
        )

    def _run_layers(self, noisy: np.ndarray, lengths: np.ndarray, training: bool) -> Any:
        """Runs a padded batch layer by layer, as the ``TrainingModel`` of `speech.net` does."""
        tf, layers = self._tf, self._parts["keras"].layers
        mask = tf.sequence_mask(lengths, noisy.shape[1], tf.float32)[:, :, None]
        num_samples = tf.cast(lengths, tf.float32)[:, None, None]
        outputs = tf.constant(noisy)
        for layer in self._model.layers:
            if isinstance(layer, layers.GroupNormalization):
                outputs = _masked_normalization(tf, layer, outputs, mask, num_samples)
            elif isinstance(layer, layers.Dropout | layers.BatchNormalization):
                outputs = layer(outputs, training=training)
            else:
                outputs = layer(outputs)
            # 'same' padding puts zeros beyond the end of an utterance: so must a batch.
            if layer not in self._wrappers and not isinstance(layer, layers.Conv1D):
                outputs = outputs * mask
        return outputs * mask

    def _state_variables(self) -> Iterator[Any]:
        yield from self._variables
        yield from (v for v in self._model.non_trainable_variables if v.dtype.is_floating)
        yield from self._optimizer.variables


class _Masks:
    """Loss and gradients of a network over time and frequency, in NumPy and C.

    Args:
        layers: The network.
        loss: Weights of the parts of the loss.
        conventions: STFT and compression.
        fast: Run the network through the C kernels if they know it.

    Attributes:
        nodes: What they run; None if tf_keras has to.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        loss: MaskLoss,
        conventions: TimeFrequencyConfig,
        fast: bool,
    ) -> None:
        self._loss, self._conventions = loss, conventions
        self._threads = blockconv.default_threads()
        self.nodes = None
        if fast and blockconv.is_available() and not tf.config.get_visible_devices("GPU"):
            self.nodes = tape.read_layers(
                [(one.class_name, one.name, one.config, one.inputs) for one in linked(layers)]
            )
        self._tapes: dict[tuple[int, int, bool], tape.Tape] = {}
        self._latest: tape.Tape | None = None

    def prepare(self, noisy: np.ndarray, clean: np.ndarray) -> mask_loss.Prepared:
        """Returns the spectra of a batch [batch, num_samples]."""
        return mask_loss.prepare(noisy, clean, self._conventions, self._threads)

    def forward(
        self,
        batch: mask_loss.Prepared,
        weights: Mapping[str, Mapping[str, np.ndarray]],
        training: bool = False,
    ) -> np.ndarray | None:
        """Returns the masks float32 [batch, frames, bins, 2]; None if tf_keras has to."""
        if self.nodes is None:
            return None
        key = (*batch.noisy.shape[:2], training)
        if key not in self._tapes:
            self._tapes[key] = tape.Tape(self.nodes, *key[:2], gradients=training)
        self._latest = self._tapes[key]
        return self._latest.forward(batch.features, weights)

    def loss(self, mask: np.ndarray, batch: mask_loss.Prepared) -> tuple[float, np.ndarray]:
        """Returns the loss of a batch, and its gradient with respect to the masks."""
        return mask_loss.value_and_gradient(
            mask, batch, self._loss, self._conventions, self._threads
        )

    def backward(
        self, gradient: np.ndarray, weights: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Returns the gradients of all trained weights, after `forward` in training."""
        assert self._latest is not None
        return self._latest.backward(gradient, weights)

    def moved_statistics(
        self, weights: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Returns the moving statistics after the latest batch, by layer."""
        assert self._latest is not None and self.nodes is not None
        found = {}
        for node in self.nodes:
            if node.normalized:
                pairs = zip(
                    ("moving_mean", "moving_variance"), self._latest.moments[node.name], strict=True
                )
                found[node.name] = {
                    key: np.asarray(
                        weights[node.name][key] * node.momentum + moment * (1 - node.momentum),
                        np.float32,
                    )
                    for key, moment in pairs
                }
        return found


def _chain(layers: Sequence[LayerSpec]) -> Network | None:
    """Returns the network as a chain of C kernels; None where those do not do."""
    found = blocks_from_layers([(spec.class_name, spec.config) for spec in layers])
    drops = any(spec.config.get("rate") for spec in layers)
    if found is None or drops or tf.config.get_visible_devices("GPU"):
        return None
    return Network(found[0], tanh=found[1]) if blockconv.is_available() else None


def _masked_normalization(tf: Any, layer: Any, inputs: Any, mask: Any, num_samples: Any) -> Any:
    """Per-utterance, per-channel normalisation over the valid samples of each utterance."""
    if layer.groups not in (-1, inputs.shape[-1]):
        raise ValueError(
            f"layer {layer.name!r} normalises {layer.groups} groups; only one group per channel "
            "(groups=-1) can be trained on padded batches"
        )
    mean = tf.reduce_sum(inputs * mask, axis=1, keepdims=True) / num_samples
    centred = (inputs - mean) * mask
    variance = tf.reduce_sum(tf.square(centred), axis=1, keepdims=True) / num_samples
    outputs = centred * tf.math.rsqrt(variance + layer.epsilon)
    outputs = outputs if layer.gamma is None else outputs * layer.gamma
    return outputs if layer.beta is None else outputs + layer.beta


_clusterer: list[Clusterer] = []


def answer(name: str, positional: Sequence[Any], keyword: Mapping[str, Any]) -> Any:
    """Answers a call of `quantization.tfmot_bridge.Worker`.

    Args:
        name: 'start' makes the `Clusterer`, any other name is one of its methods.
        positional: Arguments.
        keyword: Likewise.

    Raises:
        ValueError: The call was refused.
        RuntimeError: It failed; the text has the traceback.
    """
    try:
        if name == "start":
            _clusterer[:] = [Clusterer(*positional, **keyword)]
            return _clusterer[0].uses_c_kernels
        return getattr(_clusterer[0], name)(*positional, **keyword)
    except ValueError as error:
        raise ValueError(str(error)) from None
    except Exception:
        text = f"the TF-MOT process failed:\n{traceback.format_exc()}"
        raise RuntimeError(text) from None
