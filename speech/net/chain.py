"""A stack of convolutions as one function on the CPU: outputs, and gradients of every parameter.

This is what training runs when the C kernels are there (:func:`speech.net.blockconv.is_available`);
enhancement runs :mod:`speech.net.inference`. A layer's normalisation and LeakyReLU are never
stored: they are applied while the next layer reads, so each layer costs one read and one write of
its signal. Utterances of a batch are computed one by one, with their own statistics and their own
lengths: padding can't leak, whatever the batch.

NumPy only; ``speech.net.chain_training`` makes a Keras layer of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from speech.modelfile.spec import LayerSpec
from speech.net import blockconv
from speech.net.blockconv import Activation, Signal, Spectra, pad_channels


@dataclass(frozen=True)
class ConvBlock:
    """One layer: convolution ('same'), then optional normalisation, then a pointwise function.

    Attributes:
        normalized: Whether per-utterance, per-channel normalisation over time follows.
        epsilon: Added to the variance.
        slope: LeakyReLU's slope of negative values; 1.0 for none (linear), 0.0 for ReLU.
        use_bias: Whether the convolution adds a bias.
    """

    normalized: bool = False
    epsilon: float = 1e-5
    slope: float = 1.0
    use_bias: bool = True

    @property
    def num_parameters(self) -> int:
        """Number of arrays that the block has, out of kernel, bias, gamma and beta."""
        return 1 + self.use_bias + 2 * self.normalized


@dataclass
class _Trace:
    """The values of one utterance that the backward pass needs."""

    signal: np.ndarray
    preactivations: list[np.ndarray]
    activations: list[Activation | None]
    output: np.ndarray


class Network:
    """A chain of :class:`ConvBlock` with an optional final tanh.

    Args:
        blocks: The layers. The last one must have neither normalisation nor LeakyReLU.
        tanh: Whether tanh ends the chain.
        threads: Default: all cores.
    """

    def __init__(
        self, blocks: Sequence[ConvBlock], *, tanh: bool = True, threads: int | None = None
    ) -> None:
        if not blocks:
            raise ValueError("a network needs at least one layer")
        if blocks[-1].normalized or blocks[-1].slope != 1.0:
            raise ValueError("the last layer must be a plain convolution")
        self.blocks = tuple(blocks)
        self.tanh = tanh
        self.threads = threads
        self._memory: dict[tuple, np.ndarray] = {}

    def split(self, parameters: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Returns the flat list of parameter arrays grouped by layer."""
        return split_parameters(self.blocks, parameters)

    def prepare(self, parameters: Sequence[np.ndarray]) -> list[Spectra]:
        """Returns the kernels' spectra, layer by layer."""
        return [Spectra.of(group[0], self.threads) for group in self.split(parameters)]

    def forward(
        self,
        batch: np.ndarray,
        lengths: np.ndarray,
        parameters: Sequence[np.ndarray],
    ) -> tuple[np.ndarray, list[_Trace]]:
        """Runs a padded batch and keeps what :meth:`backward` needs.

        The traces live in buffers of this object: the next call of ``forward`` overwrites them.

        Args:
            batch: float32 [batch, time, in].
            lengths: int [batch], valid samples of each; outputs beyond are zero.
            parameters: As in :meth:`__call__`.

        Returns:
            Outputs float32 [batch, time, out] and one trace per utterance.
        """
        spectra = self.prepare(parameters)
        output = np.zeros((*batch.shape[:2], spectra[-1].out_channels), np.float32)
        traces = []
        for index, length in enumerate(lengths):
            trace = self._forward(batch[index, :length], parameters, spectra, index)
            output[index, :length] = trace.output
            traces.append(trace)
        return output, traces

    def backward(
        self, gradient: np.ndarray, traces: Sequence[_Trace], parameters: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Returns the gradients of all parameters, summed over the batch.

        Args:
            gradient: float32 [batch, time, out], with respect to the outputs.
            traces: Of the latest :meth:`forward`.
            parameters: The same as there.

        The bias of a normalised convolution has no effect on the output; its gradient is exactly
        zero.
        """
        groups = self.split(parameters)
        # The gradient with respect to a convolution's input is a convolution with the kernel
        # reversed in time, its channels exchanged.
        transposed = [
            Spectra.of(group[0][::-1].transpose(0, 2, 1), self.threads) if index else None
            for index, group in enumerate(groups)
        ]
        totals = [np.zeros(parameter.shape, np.float32) for parameter in parameters]
        for index, trace in enumerate(traces):
            length = len(trace.output)
            own = np.ascontiguousarray(gradient[index, :length], np.float32)
            for total, part in zip(
                totals, self._backward(own, trace, groups, transposed), strict=True
            ):
                total += part
        return totals

    def _forward(
        self,
        signal: np.ndarray,
        parameters: Sequence[np.ndarray],
        spectra: Sequence[Spectra],
        slot: int,
    ) -> _Trace:
        signal = np.ascontiguousarray(signal, np.float32)
        signal = signal[:, None] if signal.ndim == 1 else signal
        groups = self.split(parameters)
        reading = Signal(signal)
        preactivations, activations = [], []
        for index, (block, group, spectrum) in enumerate(
            zip(self.blocks, groups, spectra, strict=True)
        ):
            out = self._buffer((slot, index), len(signal), spectrum.out_channels)
            out, sums = blockconv.convolve(
                reading,
                spectrum,
                pad=(spectrum.taps - 1) // 2,
                bias=pad_channels(group[1]) if block.use_bias else None,
                out=out,
                moments=block.normalized,
                threads=self.threads,
            )
            activation = self._activation(block, group, sums, len(signal), spectrum)
            preactivations.append(out)
            activations.append(activation)
            reading = Signal(out, activation)
        output = np.tanh(preactivations[-1]) if self.tanh else preactivations[-1].copy()
        return _Trace(signal, preactivations, activations, output)

    @staticmethod
    def _activation(
        block: ConvBlock,
        group: list[np.ndarray],
        sums: np.ndarray | None,
        num_samples: int,
        spectrum: Spectra,
    ) -> Activation | None:
        if not block.normalized:
            if block.slope == 1.0:
                return None
            ones = np.ones(blockconv.padded(spectrum.out_channels), np.float32)
            return Activation(ones, np.zeros_like(ones), block.slope, np.zeros_like(ones))
        assert sums is not None
        mean, variance = blockconv.merge_moments(sums, num_samples, spectrum.taps)
        gamma, beta = pad_channels(group[-2]), pad_channels(group[-1])
        scale = gamma / np.sqrt(variance + block.epsilon)
        return Activation(
            scale.astype(np.float32),
            (beta - scale * mean).astype(np.float32),
            block.slope,
            mean.astype(np.float32),
        )

    def _backward(
        self,
        gradient: np.ndarray,
        trace: _Trace,
        groups: list[list[np.ndarray]],
        transposed: list[Spectra | None],
    ) -> list[np.ndarray]:
        if self.tanh:
            gradient = gradient * (1 - trace.output**2)
        num_samples = len(gradient)
        reading = Signal(np.ascontiguousarray(gradient))
        extras = [gradient.sum(0, dtype=np.float64)] if self.blocks[-1].use_bias else []
        results: list[list[np.ndarray]] = []
        for index in reversed(range(len(self.blocks))):
            taps = groups[index][0].shape[0]
            pad = (taps - 1) // 2
            below = (
                Signal(trace.preactivations[index - 1], trace.activations[index - 1])
                if index
                else Signal(trace.signal)
            )
            kernel_gradient = blockconv.filter_gradient(
                below, reading, taps=taps, pad=pad, threads=self.threads
            )
            results.append([kernel_gradient, *extras])
            if not index:
                break
            activation = trace.activations[index - 1]
            inputs = trace.preactivations[index - 1]
            spectra = transposed[index]
            assert spectra is not None, "only the first layer has none"
            out, sums = blockconv.convolve(
                reading,
                spectra,
                pad=taps - 1 - pad,
                out=self._buffer(("turn", index % 2), num_samples, inputs.shape[1]),
                gradient_of=None if activation is None else (inputs, activation),
                threads=self.threads,
            )
            reading, extras = self._below(
                self.blocks[index - 1], groups[index - 1], activation, inputs, out, sums
            )
        return [array for layer in reversed(results) for array in layer]

    @staticmethod
    def _below(
        block: ConvBlock,
        group: list[np.ndarray],
        activation: Activation | None,
        inputs: np.ndarray,
        gradient: np.ndarray,
        sums: np.ndarray | None,
    ) -> tuple[Signal, list[np.ndarray]]:
        """Returns the gradient before normalisation and LeakyReLU, as a signal, and theirs."""
        if activation is None:
            bias = [gradient.sum(0, dtype=np.float64)] if block.use_bias else []
            return Signal(gradient), bias
        num_samples, num_channels = inputs.shape
        assert sums is not None and activation.mean is not None
        d_sum, d_centred = sums.sum(0, dtype=np.float64)
        scale, mean = activation.scale.astype(np.float64), activation.mean.astype(np.float64)
        if not block.normalized:
            zeros = np.zeros_like(activation.scale)
            signal = Signal(gradient, activation, inputs, activation.scale, zeros, zeros)
            return signal, [d_sum[:num_channels]] if block.use_bias else []
        gamma = pad_channels(group[-2]).astype(np.float64)
        beta_gradient = d_sum
        # scale = gamma / deviation; where gamma is zero the deviation is not needed:
        # its factor in the input gradient, scale, is zero as well.
        inverse_deviation = np.divide(scale, gamma, out=np.zeros_like(scale), where=gamma != 0)
        gamma_gradient = inverse_deviation * d_centred
        tilt = -scale * inverse_deviation * gamma_gradient / num_samples
        level = -scale * beta_gradient / num_samples - tilt * mean
        signal = Signal(
            gradient,
            activation,
            inputs,
            activation.scale,
            tilt.astype(np.float32),
            level.astype(np.float32),
        )
        extras = [np.zeros(num_channels)] if block.use_bias else []
        return signal, [*extras, gamma_gradient[:num_channels], beta_gradient[:num_channels]]

    def _buffer(self, place: tuple, length: int, channels: int) -> np.ndarray:
        """Returns memory that is kept between calls: fresh pages cost as much as a convolution."""
        key = (*place, channels)
        if key not in self._memory or len(self._memory[key]) < length:
            self._memory[key] = np.empty((length, channels), np.float32)
        return self._memory[key][:length]


def split_parameters(
    blocks: Sequence[ConvBlock], parameters: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """Returns the flat list of parameter arrays grouped by layer.

    Raises:
        ValueError: There are more or fewer arrays than the blocks need.
    """
    expected = sum(block.num_parameters for block in blocks)
    if len(parameters) != expected:
        raise ValueError(f"expected {expected} parameter arrays, received {len(parameters)}")
    groups, start = [], 0
    for block in blocks:
        groups.append(list(parameters[start : start + block.num_parameters]))
        start += block.num_parameters
    return groups


def parameters_of(layers: Sequence[LayerSpec]) -> list[np.ndarray]:
    """Returns the arrays of layers in a network's order."""
    names = ("kernel", "bias", "gamma", "beta")
    return [layer.weights[name] for layer in layers for name in names if name in layer.weights]


def blocks_from_layers(
    layers: Sequence[tuple[str, dict]],
) -> tuple[list[ConvBlock], bool] | None:
    """Reads a stack of Keras layers as blocks of a :class:`Network`.

    Args:
        layers: Class name and Keras config of each layer, in order.

    Returns:
        The blocks and whether a tanh ends the chain; None if the stack is of another kind (then
        Keras runs it).
    """
    blocks: list[ConvBlock] = []
    channels = 0
    tanh = False
    for class_name, config in layers:
        if class_name in ("InputLayer", "Dropout"):
            continue
        if tanh:
            return None
        if class_name == "Conv1D":
            one = config["strides"] in (1, (1,), [1]) and config["dilation_rate"] in (1, (1,), [1])
            if config["padding"] != "same" or not one or config.get("groups", 1) != 1:
                return None
            if config["activation"] not in ("linear", "tanh", None):
                return None
            tanh = config["activation"] == "tanh"
            channels = config["filters"]
            blocks.append(ConvBlock(use_bias=config["use_bias"]))
        elif class_name == "GroupNormalization":
            fresh = blocks and not blocks[-1].normalized and blocks[-1].slope == 1.0
            per_channel = config["groups"] in (-1, channels)
            if not (fresh and per_channel and config["center"] and config["scale"]):
                return None
            blocks[-1] = replace(blocks[-1], normalized=True, epsilon=config["epsilon"])
        elif class_name == "LeakyReLU":
            if not blocks or blocks[-1].slope != 1.0:
                return None
            blocks[-1] = replace(blocks[-1], slope=config["negative_slope"])
        elif class_name == "Activation" and config["activation"] in ("tanh", "linear"):
            tanh = config["activation"] == "tanh"
        else:
            return None
    if not blocks or blocks[-1].normalized or blocks[-1].slope != 1.0:
        return None
    return blocks, tanh
