"""Clustering-aware training steps beside plain ones.

::

    python -m benchmarks.quantization --seconds 1 3 --json benchmarks/results/quantization.json

One step is one batch of one utterance: forward, backward, Adam; with TF-MOT also the look-up of
the centroids, their gradients, and the way of the batch to TF-MOT's process and back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, training
from speech.base import cli

BASE = "plain training"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0], metavar="S")
    parser.add_argument("-k", type=int, default=16, metavar="K", help="centroids a layer")
    parser.add_argument("--rounds", type=int, default=common.MIN_ROUNDS, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from quantization.tfmot_bridge import Worker, require_tfmot
    from speech.base.device import quiet_start

    with quiet_start():
        import keras  # noqa: F401
    require_tfmot()
    result: dict[str, Any] = {"k": options.k, "utterances": {}}
    for seconds in options.seconds:
        workers = [Worker(), Worker()]
        try:
            timing = common.take_turns(
                {
                    BASE: partial(training._ours, seconds, "fast"),
                    "TF-MOT, our convolution": partial(
                        _clustering, workers[0], seconds, options.k, fast=True
                    ),
                    "TF-MOT, tf_keras' convolution": partial(
                        _clustering, workers[1], seconds, options.k, fast=False
                    ),
                },
                options.rounds,
            )
        finally:
            for worker in workers:
                worker.stop()
        common.print_table(f"training step, one utterance of {seconds:g} s", timing, BASE)
        result["utterances"][f"{seconds:g}"] = timing.as_json(BASE)
    common.write_result(options.json, result)
    return 0


def _clustering(worker: Any, seconds: float, k: int, *, fast: bool) -> Callable[[], Any]:
    """Returns a step of the FCN in a process of TF-MOT, a tenth of each layer's channels pruned."""
    import numpy as np

    from speech.net.fcn import build_fcn
    from speech.net.keras_models import layers_of

    layers, books, masks = layers_of(build_fcn()), {}, {}
    rng = np.random.default_rng(0)
    for layer in layers:
        if layer.class_name == "Conv1D":
            kernel = layer.weights["kernel"]
            books[layer.name] = np.quantile(kernel, (np.arange(k) + 0.5) / k).astype(np.float32)
            masks[layer.name] = rng.random(kernel.shape[1:]) > 0.1
            kernel[:, ~masks[layer.name]] = 0
    worker.call("start", layers, books, masks, fast=fast)
    noisy = common.random_speech(seconds)
    lengths = np.array([noisy.shape[1]], np.int32)
    return lambda: worker.call("step", 1e-4, noisy, lengths, noisy)


if __name__ == "__main__":
    sys.exit(main())
