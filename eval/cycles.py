"""Counts the cycles of a model on a systolic array, as SCALE-Sim does (docs/cost.md).

::

    python -m eval.cycles model.h5 [--samples 76800] [--array 32x32] [--check] [--json FILE]

A convolution is a matrix product: [outputs, window] x [window, filters] -> [outputs, filters];
the window is kernel_size x channels. An array of rows x cols cells works through it in folds, and
each fold fills the array once. s_r and s_c are the extents laid over rows and columns, and t is the
extent over time (Samajdar et al. 2018, "SCALE-Sim: Systolic CNN Accelerator Simulator",
arXiv:1811.02883):

    dataflow                 s_r       s_c       t
    os, output stationary    outputs   filters   window
    ws, weight stationary    window    filters   outputs
    is, input stationary     window    outputs   filters

There are ceil(s_r / rows) x ceil(s_c / cols) folds, which follow each other in one of two ways:

* 'serial', the released ``scalesim`` (2.0 to 3.0): a fold drains before the next one starts. It
  takes t + rows + cols - 2 cycles (os), or t + 2 rows + cols - 2 (ws, is: rows are filled first).
* 'overlapped', SCALE-Sim of 2018, for os: the next fold follows right behind, every max(t, rows)
  cycles; the last one ends t + (rows used) + (cols used) - 1 cycles after its start.

The published cycles are 'overlapped', os, 32 rows, at least 30 columns, 'valid' convolutions over
76,800 samples (4.8 s): every one of them, exactly. Memory never stalls in this model.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.cost import zero_kernels
from speech.base import cli
from speech.base.files import write_json
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec

#: The published run, found from its figures (docs/papers.md, "ICSE: published figures").
PUBLISHED_SAMPLES = 76_800
DATAFLOWS = ("os", "ws", "is")
FOLDINGS = ("overlapped", "serial")


@dataclass(frozen=True)
class Array:
    """A systolic array.

    Attributes:
        rows: Of cells.
        cols: Of cells.
        dataflow: 'os', 'ws' or 'is'; see the module.
        folding: 'overlapped' (os only) or 'serial'.

    Raises:
        ValueError: A value is none of these.
    """

    rows: int = 32
    cols: int = 32
    dataflow: str = "os"
    folding: str = "overlapped"

    def __post_init__(self) -> None:
        """Checks every value."""
        if min(self.rows, self.cols) < 1:
            raise ValueError(f"array is {self.rows} x {self.cols}, expected at least 1 x 1")
        if self.dataflow not in DATAFLOWS or self.folding not in FOLDINGS:
            raise ValueError(
                f"dataflow and folding are {self.dataflow!r} and {self.folding!r}, expected one of "
                f"{DATAFLOWS} and one of {FOLDINGS}"
            )
        if self.folding == "overlapped" and self.dataflow != "os":
            raise ValueError(f"dataflow {self.dataflow!r} is counted 'serial' only")


@dataclass(frozen=True)
class CyclesConfig:
    """Settings of the count.

    Attributes:
        models: Model files, chains of layers.
        num_samples: Input steps.
        array: The systolic array.
        padding: Of `products`.
        check: Whether to compare with ``scalesim``, layer by layer, each cut to 3 folds.
    """

    models: tuple[Path, ...]
    num_samples: int = PUBLISHED_SAMPLES
    array: Array = Array()
    padding: str = "valid"
    check: bool = False


@dataclass(frozen=True)
class Product:
    """A layer as a matrix product.

    Attributes:
        name: Of the layer.
        outputs: Output steps.
        window: Weights of one filter.
        filters: Output channels.
    """

    name: str
    outputs: int
    window: int
    filters: int

    @property
    def mac(self) -> int:
        """Multiplications and additions."""
        return self.outputs * self.window * self.filters


def products(
    layers: Sequence[LayerSpec],
    num_samples: int = PUBLISHED_SAMPLES,
    *,
    padding: str = "valid",
    skip_zero_kernels: bool = False,
) -> list[Product]:
    """Returns the matrix products of a model's Conv1D and Dense layers.

    Args:
        layers: Of a model file.
        num_samples: Input steps (samples of a waveform model, frames of others).
        padding: 'valid', as in the published run, or 'same': what the layers themselves say.
        skip_zero_kernels: Count a pruned model in the published way: filters without any kernel are
            left out, and the window holds the mean number of kernels per remaining filter, rounded
            up. Filters lose different channels, so a plain array could not really skip them.

    Raises:
        ValueError: The signal is shorter than the receptive field, or padding is another word.
    """
    if padding not in ("valid", "same"):
        raise ValueError(f"padding is {padding!r}, expected 'valid' or 'same'")
    result, length = [], num_samples
    for layer in layers:
        if "kernel" not in layer.weights:
            continue
        kernel = layer.weights["kernel"]
        taps = 1
        if layer.class_name == "Conv1D":
            taps = kernel.shape[0]
            if padding == "valid" or layer.config["padding"] == "valid":
                length -= (taps - 1) * layer.config["dilation_rate"]
        if length < 1:
            raise ValueError(
                f"{num_samples} input steps leave none at layer {layer.name!r}; give more"
            )
        channels, filters = kernel.shape[-2:]
        if skip_zero_kernels:
            left = (~zero_kernels(kernel)).sum(axis=0)
            filters = int(np.count_nonzero(left))
            channels = math.ceil(left.sum() / filters) if filters else 0
        result.append(Product(layer.name, length, taps * channels, filters))
    return result


def cycles(product: Product, array: Array) -> int:
    """Returns the cycles of a matrix product; see the module for the equations."""
    if product.mac == 0:
        return 0
    over_rows, over_cols, time = _extents(product, array.dataflow)
    row_folds, col_folds = math.ceil(over_rows / array.rows), math.ceil(over_cols / array.cols)
    if array.folding == "serial":
        fill = array.rows if array.dataflow == "os" else 2 * array.rows
        return row_folds * col_folds * (time + fill + array.cols - 2)
    # All outputs of the first filters, then of the next ones. Where the last folds are small, one
    # before them may end later.
    hop = max(time, array.rows)
    ends = []
    for col_fold in range(max(0, col_folds - 2), col_folds):
        cols = min(array.cols, over_cols - col_fold * array.cols)
        for row_fold in range(max(0, row_folds - 2), row_folds):
            rows = min(array.rows, over_rows - row_fold * array.rows)
            start = (col_fold * row_folds + row_fold) * hop
            ends.append(start + time + rows + cols - 1)
    return max(ends)


@dataclass(frozen=True)
class ModelCycles:
    """The cycles of a model.

    Attributes:
        path: Of its file.
        layers: A row per layer: `Product`, cycles, and sparse_cycles without zero kernels.
        checks: If asked: layer, cycles of ``scalesim``, and by the equation.
    """

    path: Path
    layers: list[dict[str, Any]]
    checks: list[tuple[str, int, int]]


def count(config: CyclesConfig) -> Iterator[ModelCycles]:
    """Counts the cycles of models: what ``python -m eval.cycles`` does.

    Raises:
        ValueError: A file is refused or no chain of layers, the signal is too short, or
            ``scalesim`` is asked for and missing.
    """
    for path in config.models:
        layers = read_model_file(path).require_chain("the count of cycles")
        dense, sparse = (
            products(layers, config.num_samples, padding=config.padding, skip_zero_kernels=skip)
            for skip in (False, True)
        )
        rows = [
            {
                **asdict(product),
                "cycles": cycles(product, config.array),
                "sparse_cycles": cycles(less, config.array),
            }
            for product, less in zip(dense, sparse, strict=True)
        ]
        checks = [_checked(product, config.array) for product in dense] if config.check else []
        yield ModelCycles(path, rows, checks)


def simulate(product: Product, array: Array) -> int:
    """Returns the cycles that ``scalesim`` counts; slow, and memory grows with the cycles.

    The simulator lays out what every row and column asks for in every cycle; their number is the
    compute cycles of its report.

    Raises:
        ValueError: ``scalesim`` is not installed, or the product is too big for it.
    """
    try:
        from scalesim.compute.systolic_compute_is import systolic_compute_is
        from scalesim.compute.systolic_compute_os import systolic_compute_os
        from scalesim.compute.systolic_compute_ws import systolic_compute_ws
        from scalesim.scale_config import scale_config
    except ImportError as error:
        raise ValueError(f"{error}; install scalesim (the extra 'cycles')") from None
    expected = cycles(product, Array(array.rows, array.cols, array.dataflow, "serial"))
    if expected * max(array.rows, array.cols) > 1e8:
        raise ValueError(f"{product.name}: {expected:,} cycles are too many to simulate")
    kinds = {"os": systolic_compute_os, "ws": systolic_compute_ws, "is": systolic_compute_is}
    config = scale_config()
    config.set_arr_dims(array.rows, array.cols)
    config.set_dataflow(array.dataflow)
    config.force_valid()
    system = kinds[array.dataflow]()
    outputs, window, filters = product.outputs, product.window, product.filters
    # Addresses; all the same, for only their number counts.
    system.set_params(
        config_obj=config,
        ifmap_op_mat=np.zeros((outputs, window)),
        filter_op_mat=np.zeros((window, filters)),
        ofmap_op_mat=np.zeros((outputs, filters)),
    )
    return len(system.get_demand_matrices()[0])


def _extents(product: Product, dataflow: str) -> tuple[int, int, int]:
    outputs, window, filters = product.outputs, product.window, product.filters
    return {
        "os": (outputs, filters, window),
        "ws": (window, filters, outputs),
        "is": (window, outputs, filters),
    }[dataflow]


# --------------------------------------------------------------------------------------------
# Command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.cycles",
        description="Count the cycles of a model on a systolic array. The defaults are taken from "
        "the published run.",
        **cli.examples(
            "python -m eval.cycles models/fcn.h5",
            "python -m eval.cycles models/fcn.h5 --array 16x16 --dataflow ws --check",
        ),
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="FILE", help="count these model files")
    add("--samples", type=cli.positive_number, default=PUBLISHED_SAMPLES, metavar="N",
        help="let the input have N samples (default %(default)s, 4.8 s)")  # fmt: skip
    add("--array", type=_array_size, default=(32, 32), metavar="ROWSxCOLS",
        help="take an array of this size (default 32x32)")  # fmt: skip
    add("--dataflow", choices=DATAFLOWS, default="os",
        help="keep outputs (os), weights (ws) or inputs (is) in place (default os)")  # fmt: skip
    add("--folding", choices=FOLDINGS,
        help="let folds follow each other in this way (default: overlapped for os, as SCALE-Sim "
        "of 2018; serial for others)")  # fmt: skip
    add("--padding", choices=("valid", "same"), default="valid",
        help="pad the input in this way (default valid)")  # fmt: skip
    add("--check", action="store_true",
        help="compare: run scalesim on each layer, cut to 3 folds, against the 'serial' "
        "count")  # fmt: skip
    add("--json", **cli.JSON)
    options = parser.parse_args(argv)
    if options.folding == "overlapped" and options.dataflow != "os":
        parser.error("--folding overlapped is for --dataflow os")
    folding = options.folding or ("overlapped" if options.dataflow == "os" else "serial")
    rows, cols = options.array
    array = Array(rows, cols, options.dataflow, folding)
    config = CyclesConfig(
        tuple(options.models), options.samples, array, options.padding, options.check
    )
    return cli.run(lambda: _run(config, options.json))


def _array_size(text: str) -> tuple[int, int]:
    rows, cols = text.lower().split("x")
    return cli.positive_number(rows), cli.positive_number(cols)


def _run(config: CyclesConfig, json: Path | None) -> int:
    reports, all_equal = [], True
    for found in count(config):
        model = str(found.path)
        print(format_cycles(model, found.layers))
        for name, simulated, counted in found.checks:
            verdict = "equal" if simulated == counted else "DIFFERENT"
            print(f"scalesim {name}: {simulated:,} cycles, equation {counted:,}: {verdict}")
            all_equal = all_equal and simulated == counted
        reports.append({"model": model, "array": asdict(config.array), "layers": found.layers})
    if json:
        write_json(json, reports)
    return 0 if all_equal else 1


def format_cycles(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of a model: a line per layer and the sum."""
    width = max(5, *(len(row["name"]) for row in rows))
    header = (
        f"{'layer':<{width}}{'outputs':>10}{'window':>8}{'filters':>9}{'cycles':>13}"
        f"{'without zero kernels':>22}"
    )
    lines = [title, header, "-" * len(header)]
    for row in rows:
        lines.append(
            f"{row['name']:<{width}}{row['outputs']:>10,}{row['window']:>8,}{row['filters']:>9,}"
            f"{row['cycles']:>13,}{row['sparse_cycles']:>22,}"
        )
    totals = [sum(row[key] for row in rows) for key in ("cycles", "sparse_cycles")]
    lines += ["-" * len(header), f"{'total':<{width + 27}}{totals[0]:>13,}{totals[1]:>22,}"]
    return "\n".join(lines)


def _checked(product: Product, array: Array) -> tuple[str, int, int]:
    serial = Array(array.rows, array.cols, array.dataflow, "serial")
    less = Product(
        product.name,
        min(product.outputs, 3 * array.rows),
        min(product.window, 3 * array.rows) if array.dataflow != "os" else product.window,
        product.filters,
    )
    return less.name, simulate(less, serial), cycles(less, serial)


if __name__ == "__main__":
    sys.exit(main())
