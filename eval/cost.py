"""Counts what a model costs: parameters, operations, bytes, receptive field and latency.

::

    python -m eval.cost model.h5 [more.h5 ...] [--measure] [--json FILE]

Conventions. A kernel is what one filter applies to one input channel: ``kernel_size`` weights of
a convolution, one weight of a Dense layer. Biases and normalisation are parameters, not weights.
One MAC is one multiplication and one addition, 2 FLOP. As in the paper only convolutions and Dense
layers are counted, for one output step: a sample of a waveform model, a frame of a model of
spectra. A kernel that moves over bands is used once per band of a frame; at the edges it counts in
full. 'Sparse' leaves out the kernels that are all zero, not single zeros: hardware can skip a
kernel.

Size is counted in several ways, each against the FP32 parameters of the baseline
(docs/papers.md, "ICSE: how size is counted"):

* the paper's rule: non-zero weights x log2(k) bits, and nothing else;
* in full: one bit per kernel that says whether it is zero, an index for each weight of the other
  kernels, the codebooks (a zero included if the layer holds one), all other parameters in FP32;
* the same with Huffman codes for the indices, and with their entropy, the bound of any such code;
* the bytes of the file.

Of a causal network over time and frequency, the command also prints what it takes as plain C
(``speech.export --to c``): RAM, and flash for weights and tables, as the export chooses them.

``--measure`` also runs each model on one core and prints the seconds of computation per second of
audio, and the peak memory of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.files import write_json
from speech.modelfile.exam import output_shapes
from speech.modelfile.meta import MaskConventions
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import (
    COMPLEX_MASK,
    WAVEFORM,
    LayerSpec,
    ModelFile,
    ModelFileError,
    kernel_name,
    kind_of_shapes,
    linked,
    refusals,
)
from speech.net.enhancer import Enhancer
from speech.net.plain_c import DeviceSizes, sizes_of
from speech.net.reach import reach_of

SAMPLE_RATE_HZ = 16000
#: Of the models of spectra that name none (docs/papers.md, "MNN: set-up").
HOP_SAMPLES = 256
FLOAT_BITS = 32
#: Layers that need the whole utterance.
_WHOLE = ("GroupNormalization", "Bidirectional")


@dataclass(frozen=True)
class LayerCost:
    """One layer with weights.

    Attributes:
        name: Of the layer.
        class_name: Of the layer, such as 'Conv1D'.
        kernel_shape: As Keras has it: [kernel_size, in_channels, out_channels], [inputs, units] or
            that of two axes; () if none.
        parameters: Trainable values: kernel, bias, gamma, beta.
        stored_values: The same and moving statistics.
        weights: Of the kernel.
        nonzero_weights: Of the kernel.
        kernels: Pairs of input and output channel.
        zero_kernels: Those that are all zero.
        indexed_weights: In kernels that are not all zero.
        uses: How often a weight is used for one output step: once per band.
        mac: For one output step, dense.
        sparse_mac: For one output step, zero kernels left out.
        num_values: Distinct non-zero values of the kernel.
        codebook_size: Distinct values, zero included; 0 if a codebook would not pay.
        index_bits: Of all indices at a fixed length; 32 per weight without a codebook.
        huffman_bits: Of all indices, Huffman coded.
        entropy_bits: Of all indices: number x entropy.
    """

    name: str
    class_name: str
    kernel_shape: tuple[int, ...]
    parameters: int
    stored_values: int
    weights: int
    nonzero_weights: int
    kernels: int
    zero_kernels: int
    indexed_weights: int
    uses: int
    mac: int
    sparse_mac: int
    num_values: int
    codebook_size: int
    index_bits: int
    huffman_bits: int
    entropy_bits: float


@dataclass(frozen=True)
class ModelCost:
    """A whole model; see the module for what is counted.

    Attributes:
        name: File or name.
        layers: Those with weights, in order.
        step: 'sample' or 'frame', what one output step is.
        steps_per_second: Of audio.
        receptive_field: Input steps that one output step sees through the convolutions.
        lookahead: Of these, the steps after it.
        needs_whole_utterance: A normalisation takes its statistics over time.
        file_bytes: None if it is no file.
        baseline_parameters: What sizes in percent refer to.
        codebook_size: k of the paper's rule; None: no codebook, 32 bits per weight.
        centroid_bits: Of one stored centroid.
        window_ms: Of the STFT of a network of the kind 'complex_mask', which it waits for.
        device: What it takes as plain C; None if it cannot stream.
    """

    name: str
    layers: tuple[LayerCost, ...]
    step: str
    steps_per_second: float
    receptive_field: int
    lookahead: int
    needs_whole_utterance: bool
    file_bytes: int | None
    baseline_parameters: int
    codebook_size: int | None
    centroid_bits: int = FLOAT_BITS
    window_ms: float = 0.0
    device: DeviceSizes | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if there is nothing that sizes can be percents of."""
        if self.baseline_parameters < 1:
            raise ValueError(
                f"baseline_parameters is {self.baseline_parameters!r}, expected at least 1"
            )

    def total(self, field: str) -> Any:
        """Returns the sum of a field of ``LayerCost`` over the layers."""
        return sum(getattr(layer, field) for layer in self.layers)

    @property
    def paper_bits(self) -> int:
        """Bits by the paper's rule: non-zero weights x bits of an index."""
        bits = FLOAT_BITS if self.codebook_size is None else index_bits(self.codebook_size)
        return sum(
            layer.nonzero_weights * (bits if layer.codebook_size else FLOAT_BITS)
            for layer in self.layers
        )

    @property
    def paper_size_percent(self) -> float:
        """The published 'size': ``paper_bits`` over the baseline's parameters in FP32."""
        return self._percent(self.paper_bits)

    def full_bits(self, indices: str = "index_bits") -> float:
        """Bits of all that a decoder needs but the layout of the network.

        Args:
            indices: 'index_bits', 'huffman_bits' or 'entropy_bits'.
        """
        mask = self.total("kernels") if self.total("zero_kernels") else 0
        codebooks = self.total("codebook_size") * self.centroid_bits
        others = (self.total("stored_values") - self.total("weights")) * FLOAT_BITS
        return mask + self.total(indices) + codebooks + others

    def accounting(self) -> dict[str, dict[str, float]]:
        """Returns bytes and percent of the baseline's FP32 parameters by each way of counting."""
        ways = {
            "fp32": self.total("stored_values") * FLOAT_BITS,
            "paper": self.paper_bits,
            "full": self.full_bits(),
            "full_huffman": self.full_bits("huffman_bits"),
            "full_entropy": self.full_bits("entropy_bits"),
        }
        if self.file_bytes is not None:
            ways["file"] = 8 * self.file_bytes
        return {
            way: {"bytes": bits / 8, "percent": self._percent(bits)} for way, bits in ways.items()
        }

    @property
    def latency_ms(self) -> float | None:
        """Look-ahead and ``window_ms``; None if the model needs the whole utterance."""
        return None if self.needs_whole_utterance else self._ms(self.lookahead) + self.window_ms

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain JSON values, and what follows from it."""
        totals = {
            field: self.total(field)
            for field in ("parameters", "weights", "nonzero_weights", "kernels", "zero_kernels")
        }
        arithmetic: dict[str, float] = {}
        for kind, mac in (("", self.total("mac")), ("sparse_", self.total("sparse_mac"))):
            arithmetic |= {
                f"{kind}mac_per_step": mac,
                f"{kind}flop_per_step": 2 * mac,
                f"{kind}mac_per_second": mac * self.steps_per_second,
                f"{kind}flop_per_second": 2 * mac * self.steps_per_second,
            }
        return {
            **asdict(self),
            **totals,
            **arithmetic,
            "receptive_field_ms": self._ms(self.receptive_field),
            "lookahead_ms": self._ms(self.lookahead),
            "latency_ms": self.latency_ms,
            "paper_size_percent": self.paper_size_percent,
            "accounting": self.accounting(),
        }

    def _percent(self, bits: float) -> float:
        return 100 * bits / (self.baseline_parameters * FLOAT_BITS)

    def _ms(self, steps: int) -> float:
        return 1000 * steps / self.steps_per_second


def cost_of(
    source: str | os.PathLike | ModelFile | Sequence[LayerSpec],
    *,
    codebook_size: int | None = None,
    baseline_parameters: int | None = None,
    centroid_bits: int = FLOAT_BITS,
) -> ModelCost:
    """Counts a model.

    Args:
        source: A model file, read as data (``speech.modelfile``), or layers.
        codebook_size: k of the paper's rule; default: the most distinct non-zero values that a
            layer with a codebook holds. The released '16C' model holds 32, 16 of each sign.
        baseline_parameters: Sizes in percent refer to these; default: the model's own.
        centroid_bits: Of a stored centroid: 32, 16 or 8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, nothing in it has weights, or an argument makes no sense.
    """
    if isinstance(source, str | os.PathLike):
        source = read_model_file(source)
    file = source if isinstance(source, ModelFile) else None
    specs = tuple(source) if not isinstance(source, ModelFile) else source.layers
    meta = file.meta if file else {}
    if codebook_size is not None and codebook_size < 2:
        raise ValueError(f"codebook_size is {codebook_size!r}, expected at least 2")
    uses = _uses(specs)
    layers = tuple(
        _layer_cost(part, uses[spec.name]) for spec in specs for part in _one_kernel_each(spec)
    )
    if not layers:
        raise ValueError(f"{file.path if file else 'the model'}: no layer has weights")
    kind = file.kind if file else kind_of_shapes(specs)
    step, steps_per_second = _steps(kind, meta, f"{file.path}: speech_meta" if file else "meta")
    window_ms = 0.0
    if len(specs[0].config.get("batch_shape", ())) == 4:
        with refusals(file.path) if file else contextlib.nullcontext():
            reach = reach_of(specs)
            if kind == COMPLEX_MASK:
                conventions = MaskConventions.of(meta)
                window_ms = 1000 * conventions.stft.frame / conventions.sample_rate_hz
        receptive_field, lookahead = reach.behind + 1 + reach.ahead, reach.ahead
    else:
        receptive_field, lookahead = _field(specs)
    clustered = [layer.num_values for layer in layers if layer.codebook_size]
    return ModelCost(
        name=str(file.path) if file else "model",
        layers=layers,
        step=step,
        steps_per_second=steps_per_second,
        receptive_field=receptive_field,
        lookahead=lookahead,
        needs_whole_utterance=any(s.class_name in _WHOLE for s in specs),
        file_bytes=file.path.stat().st_size if file else None,
        baseline_parameters=(
            sum(layer.parameters for layer in layers)
            if baseline_parameters is None
            else baseline_parameters
        ),
        codebook_size=(codebook_size or max(clustered)) if clustered else None,
        centroid_bits=centroid_bits,
        window_ms=window_ms,
        device=_device(file),
    )


def costs_against(
    paths: Sequence[Path],
    codebook_sizes: Sequence[int | None],
    *,
    baseline: Path | None = None,
    centroid_bits: int = FLOAT_BITS,
) -> list[ModelCost]:
    """Counts models, each once, with sizes in percent of the parameters of one of them.

    Args:
        paths: Model files.
        codebook_sizes: For each, as in `cost_of`.
        baseline: Model file, one of these or another; default: the first of these.
        centroid_bits: As in `cost_of`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As `cost_of`.
    """
    first = None if baseline is None or baseline in paths else cost_of(baseline)
    costs = [
        cost_of(path, codebook_size=size, centroid_bits=centroid_bits)
        for path, size in zip(paths, codebook_sizes, strict=True)
    ]
    first = first or costs[0 if baseline is None else paths.index(baseline)]
    parameters = first.total("parameters")
    return [replace(cost, baseline_parameters=parameters) for cost in costs]


def _device(file: ModelFile | None) -> DeviceSizes | None:
    if file is None or file.kind != COMPLEX_MASK:
        return None
    try:
        return sizes_of(file)
    except ModelFileError:
        return None


def paper_size_percent(nonzero_weights: int, codebook_size: int, parameters: int) -> float:
    """Returns the published 'size' in percent, w log2(k) / 32 p (docs/papers.md, eq. Q3).

    Args:
        nonzero_weights: w, of the compressed model.
        codebook_size: k.
        parameters: p, of the baseline.
    """
    return 100 * nonzero_weights * index_bits(codebook_size) / (parameters * FLOAT_BITS)


def index_bits(num_values: int) -> int:
    """Returns the bits of an index into a codebook: ceil(log2(num_values))."""
    return max(num_values - 1, 0).bit_length()


def huffman_bits(counts: Sequence[int] | np.ndarray) -> int:
    """Returns the length of a Huffman-coded text of symbols that occur ``counts`` times.

    The code table is not counted. A text of one symbol takes no bits (Huffman 1952).
    """
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits


def entropy_bits(counts: Sequence[int] | np.ndarray) -> float:
    """Returns the number of symbols times the entropy of their empirical distribution, in bits."""
    found = np.asarray(counts, float)
    found = found[found > 0]
    return float(-(found * np.log2(found / found.sum())).sum()) if len(found) > 1 else 0.0


def zero_kernels(kernel: np.ndarray) -> np.ndarray:
    """Returns where kernels are all zero.

    Args:
        kernel: [..., in_channels, out_channels], of a transposed convolution the other way round,
            or [inputs, units].

    Returns:
        bool, the last two axes.
    """
    return np.asarray(~kernel.any(axis=tuple(range(kernel.ndim - 2))))


def _uses(specs: Sequence[LayerSpec]) -> dict[str, int]:
    """Returns by layer how often a weight is used for one output step: 1 without bands."""
    if len(specs[0].config.get("batch_shape", ())) != 4:
        return {spec.name: 1 for spec in specs}
    shapes = output_shapes(specs)
    found = {}
    for spec in linked(specs):
        # What moves over bands is used once for each that it writes; transposed, that it reads.
        turned = spec.class_name == "Conv2DTranspose"
        shape = shapes[spec.inputs[0] if turned else spec.name]
        found[spec.name] = math.prod(axis or 1 for axis in shape[2:-1])
    return found


def _one_kernel_each(spec: LayerSpec) -> list[LayerSpec]:
    """Returns a layer as parts of one kernel each, as a recurrent one has several; [] if none."""
    if len(spec.kernels) < 2:
        return [spec] if spec.weights else []
    others = {key: array for key, array in spec.weights.items() if key not in spec.kernels}
    parts = []
    for key, kernel in spec.kernels.items():
        name = kernel_name(spec.name, key)
        parts.append(replace(spec, name=name, weights={"kernel": kernel, **others}))
        others = {}
    return parts


def _layer_cost(spec: LayerSpec, uses: int) -> LayerCost:
    trainable = [array for key, array in spec.weights.items() if not key.startswith("moving_")]
    kernel = spec.weights.get("kernel", np.zeros((0, 0, 0), np.float32))
    is_zero = zero_kernels(kernel)
    # The weights that need an index, single zeros among them.
    kept = kernel[..., ~is_zero].ravel()
    counts = np.unique(kept, return_counts=True)[1]
    codebook = np.unique(kernel)
    fixed = kept.size * index_bits(len(counts))
    plain = FLOAT_BITS * kept.size
    pays = kept.size > 0 and len(codebook) * FLOAT_BITS + fixed < plain
    return LayerCost(
        name=spec.name,
        class_name=spec.class_name,
        kernel_shape=kernel.shape if kernel.size else (),
        parameters=sum(array.size for array in trainable),
        stored_values=sum(array.size for array in spec.weights.values()),
        weights=kernel.size,
        nonzero_weights=int(np.count_nonzero(kernel)),
        kernels=is_zero.size,
        zero_kernels=int(is_zero.sum()),
        indexed_weights=kept.size,
        uses=uses,
        mac=kernel.size * uses,
        sparse_mac=kept.size * uses,
        num_values=int(np.count_nonzero(codebook)),
        codebook_size=len(codebook) if pays else 0,
        index_bits=fixed if pays else plain,
        huffman_bits=huffman_bits(counts) if pays else plain,
        entropy_bits=entropy_bits(counts) if pays else float(plain),
    )


def _steps(kind: str, meta: dict[str, Any], where: str) -> tuple[str, float]:
    """Returns what one output step is and how many there are in a second of audio."""
    rate_hz = _positive(where, "sample_rate_hz", meta.get("sample_rate_hz", SAMPLE_RATE_HZ))
    if kind == WAVEFORM:
        return "sample", float(rate_hz)
    stft = meta.get("stft")
    stft = stft if isinstance(stft, dict) else {}
    hop = stft.get("hop", stft.get("hop_samples", HOP_SAMPLES))
    hop = meta.get("hop_samples", hop)
    return "frame", rate_hz / _positive(where, "hop_samples", hop)


def _positive(where: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: {name!r} is {value!r:.60}, expected a positive number")
    return float(value)


def _field(specs: Sequence[LayerSpec]) -> tuple[int, int]:
    """Returns receptive field and look-ahead; 'valid' convolutions count as if centred."""
    receptive_field, lookahead = 1, 0
    for spec in specs:
        if spec.class_name == "Conv1D":
            span = (spec.config["kernel_size"] - 1) * spec.config["dilation_rate"]
            receptive_field += span
            lookahead += span - span // 2  # Keras pads the odd one on the right
    return receptive_field, lookahead


# --------------------------------------------------------------------------------------------
# Measuring

#: Noise to enhance; long enough that what happens once does not count.
_MEASURED_SECONDS = 30
_MEASURED_ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """Time and memory that a model takes on one core of this machine.

    Attributes:
        real_time_factor: Seconds of computation per second of audio, the median of some rounds.
        peak_bytes: Memory of a process that loads and runs it.
        seconds: Of audio.
        engine: 'c' or 'keras'.
    """

    real_time_factor: float
    peak_bytes: int
    seconds: float
    engine: str


def measure(
    path: str | os.PathLike,
    seconds: float = _MEASURED_SECONDS,
    rounds: int = _MEASURED_ROUNDS,
    *,
    one_core: bool = True,
) -> Measured:
    """Enhances noise in a process of its own.

    Args:
        path: Model file.
        seconds: Length of the noise.
        rounds: How often it is enhanced.
        one_core: Whether the process has one thread, and not one per core.

    Raises:
        ValueError: The file enhances nothing by itself, or the process has failed; the message
            says why.
    """
    threads = ("SPEECH_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
               "TF_NUM_INTEROP_THREADS") if one_core else ()  # fmt: skip
    done = subprocess.run(
        cli.python_command(
            "-m", "eval.cost", os.path.abspath(path), "--measured", str(seconds), str(rounds)
        ),
        env=cli.python_environment(**dict.fromkeys(threads, "1")),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ValueError(lines[-1].removeprefix("error: "))
    return Measured(**json.loads(done.stdout))


def peak_bytes() -> int:
    """Returns this process's peak memory; getrusage would give its parent's, if that had more.

    Raises:
        OSError: This is no Linux.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: has no VmHWM; memory is measured on Linux only")


def _measured(path: Path, seconds: float, rounds: int) -> int:
    enhancer = Enhancer(path)
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    enhancer.enhance(noise[:SAMPLE_RATE_HZ])
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        enhancer.enhance(noise)
        times.append(time.perf_counter() - start)
    print(json.dumps({
        "real_time_factor": statistics.median(times) / seconds,
        "peak_bytes": peak_bytes(),
        "seconds": seconds,
        "engine": enhancer.engine,
    }))  # fmt: skip
    return 0


@dataclass(frozen=True)
class CostConfig:
    """Settings of the count, and the models.

    Attributes:
        models: Model files.
        codebook_size: k of the paper's rule; None for the values found.
        centroid_bits: Of a stored centroid: 32, 16 or 8.
        baseline: Sizes are in percent of this model file's parameters; None for the first model.
        measured: Whether each model is also run.
    """

    models: tuple[Path, ...]
    codebook_size: int | None = None
    centroid_bits: int = FLOAT_BITS
    baseline: Path | None = None
    measured: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for no model, or a codebook of one value."""
        if not self.models:
            raise ValueError("no model is named; give at least one model file")
        if self.codebook_size is not None and self.codebook_size < 2:
            raise ValueError("--k is at least 2")


def costs_of(
    config: CostConfig, on_cost: Callable[[ModelCost], None] | None = None
) -> Iterator[tuple[ModelCost, Measured | None]]:
    """Counts models, and measures them if asked to, one after the other.

    Args:
        config: Which models, and how.
        on_cost: Gets what a model costs before it is measured.

    Yields:
        For each model what it costs and, if asked for, what it takes on this machine.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is refused, or can't be measured.
    """
    costs = costs_against(
        config.models,
        [config.codebook_size] * len(config.models),
        baseline=config.baseline,
        centroid_bits=config.centroid_bits,
    )
    for path, cost in zip(config.models, costs, strict=True):
        if on_cost is not None:
            on_cost(cost)
        yield cost, measure(path) if config.measured else None


# --------------------------------------------------------------------------------------------
# Tables

_WAYS = {
    "fp32": "all in FP32",
    "paper": "paper's rule",
    "full": "in full, fixed-length indices",
    "full_huffman": "in full, Huffman codes",
    "full_entropy": "in full, entropy of the indices",
    "file": "file",
}


def format_cost(cost: ModelCost) -> str:
    """Returns a model's table: a line per layer, totals, arithmetic, size by each way."""
    width = max(5, *(len(layer.name) for layer in cost.layers))
    header = (
        f"{'layer':<{width}}  {'kernel':<16}{'parameters':>11}{'non-zero':>11}{'kernels':>9}"
        f"{'zero':>7}{'zero %':>8}{'MAC':>10}{'sparse':>10}{'values':>8}{'bits/w':>8}"
    )
    lines = [cost.name, header, "-" * len(header)]
    for layer in cost.layers:
        shape = " x ".join(map(str, layer.kernel_shape)) or "-"
        lines.append(_table_row(layer.name, width, shape, layer))
    totals = {
        field: cost.total(field)
        for field in ("parameters", "nonzero_weights", "kernels", "zero_kernels", "mac",
                      "sparse_mac", "indexed_weights", "entropy_bits")
    }  # fmt: skip
    lines += ["-" * len(header), _table_row("total", width, "", _Totals(**totals))]
    step = cost.step
    for label, mac in (("dense", cost.total("mac")), ("sparse", cost.total("sparse_mac"))):
        rate = mac * cost.steps_per_second
        lines.append(
            f"{label:<8}{mac:>12,} MAC, {2 * mac:,} FLOP per output {step}; "
            f"{rate / 1e9:.3f} GMAC, {2 * rate / 1e9:.3f} GFLOP per second"
        )
    to_ms = 1000 / cost.steps_per_second
    lines.append(
        f"field   {cost.receptive_field:>12,} {step}s ({cost.receptive_field * to_ms:.1f} ms), "
        f"{cost.lookahead:,} ({cost.lookahead * to_ms:.1f} ms) of them ahead; latency: "
        + (
            "the whole utterance, over which it is normalised"
            if cost.latency_ms is None
            else f"{cost.latency_ms:.1f} ms" + (" with the STFT" if cost.window_ms else "")
        )
    )
    if cost.device is not None:
        device = cost.device
        decoded = f", {device.index_bytes:,} for decoded indices" if device.index_bytes else ""
        lines.append(
            f"as C    {device.ram_bytes:>12,} bytes of RAM, {device.state_bytes:,} of them from "
            f"hop to hop{decoded}; flash: {device.weight_bytes:,} for weights, "
            f"{device.table_bytes:,} for tables"
        )
    rule = "no codebooks" if cost.codebook_size is None else f"k = {cost.codebook_size}"
    lines.append(f"size against {cost.baseline_parameters:,} parameters in FP32 ({rule}):")
    for way, size in cost.accounting().items():
        lines.append(f"  {_WAYS[way]:<34}{size['bytes']:>12,.0f} bytes{size['percent']:>9.2f} %")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Totals:
    parameters: int
    nonzero_weights: int
    kernels: int
    zero_kernels: int
    mac: int
    sparse_mac: int
    indexed_weights: int
    entropy_bits: float
    num_values: str = ""


def _table_row(name: str, width: int, shape: str, row: Any) -> str:
    percent = f"{100 * row.zero_kernels / row.kernels:.2f}" if row.kernels else "-"
    bits = f"{row.entropy_bits / row.indexed_weights:.3f}" if row.indexed_weights else "-"
    values = f"{row.num_values:,}" if isinstance(row.num_values, int) else row.num_values
    return (
        f"{name:<{width}}  {shape:<16}{row.parameters:>11,}{row.nonzero_weights:>11,}"
        f"{row.kernels:>9,}{row.zero_kernels:>7,}{percent:>8}{row.mac:>10,}{row.sparse_mac:>10,}"
        f"{values:>8}{bits:>8}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.cost",
        description="Count parameters, operations, size in several ways, and the receptive field.",
        **cli.examples(
            "python -m eval.cost models/fcn.h5",
            "python -m eval.cost models/fcn_small.icse --k 16 --baseline models/fcn.h5",
            "python -m eval.cost models/fcn.h5 models/fcn_tiny.icse --measure",
        ),
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="FILE", help="count these model files")
    add("--k", type=cli.positive_number, metavar="K", help="take K centroids per layer, as "
        "the paper's rule counts: 16 for 16 of each sign (default: the values found)")  # fmt: skip
    add("--centroid-bits", type=int, choices=(8, 16, 32), default=32,
        help="count so many bits per centroid (default 32)")  # fmt: skip
    add("--baseline", type=Path, metavar="FILE",
        help="compare the others with this one, in percent of its parameters (default: the "
        "first)")  # fmt: skip
    add("--measure", action="store_true",
        help="also run each model on one core of this machine, and "
        "print its time per second of audio and its peak memory")  # fmt: skip
    add("--measured", type=float, nargs=2, help=argparse.SUPPRESS)
    add("--json", **cli.JSON)
    options = parser.parse_args(argv)
    if options.measured:
        seconds, rounds = options.measured
        return cli.run(lambda: _measured(options.models[0], seconds, int(rounds)))
    try:
        config = CostConfig(
            tuple(options.models), options.k, options.centroid_bits, options.baseline,
            options.measure,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    return cli.run(lambda: _run(config, options.json))


def _run(config: CostConfig, json: Path | None) -> int:
    results: list[dict[str, Any]] = []

    def show(cost: ModelCost) -> None:
        print(("\n" if results else "") + format_cost(cost))

    for cost, found in costs_of(config, show):
        results.append(cost.to_dict())
        if found is not None:
            results[-1]["measured"] = asdict(found)
            print(
                f"one core of this machine ({found.engine} engine): "
                f"{found.real_time_factor:.4f} s per second of audio, "
                f"{found.peak_bytes / 1e6:.0f} MB at most"
            )
    if json:
        write_json(json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
