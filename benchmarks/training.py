"""Training steps side by side: ours, stock Keras on each of its backends, PyTorch.

::

    python -m benchmarks.training --network fcn --json benchmarks/results/training.json
    python -m benchmarks.training --network tf --json benchmarks/results/training_tf.json

A step of the FCN is one batch of one utterance: forward, backward, Adam. With it comes the share of
a real run's time that is spent waiting for data.

A step of the network over time and frequency is a batch of pieces of 2 s: features, forward pass,
loss, backward pass, AdamW. Each contender has a process of its own and is timed only if its loss
and all of its gradients are those of ours, from the same weights (``benchmarks.mask_steps``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, mask_steps
from speech.base import cli
from speech.net.timefrequency import SIZES

BASE = mask_steps.OURS
NETWORKS = ("fcn", "tf")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, help="one of them (default: both)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0, 10.0], metavar="S",
                        help="fcn: lengths of the utterance (default: 1 3 10)")  # fmt: skip
    parser.add_argument("--size", choices=tuple(SIZES), default="medium",
                        help="tf: the form (default %(default)s)")  # fmt: skip
    parser.add_argument("--pieces", type=cli.positive_number, default=16, metavar="N",
                        help="tf: pieces of 2 s per step (default %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=common.MIN_ROUNDS, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    result: dict[str, Any] = {}
    if options.network != "fcn":
        result["time_frequency"] = _time_frequency(options.size, options.pieces, options.rounds)
        common.write_result(options.json, result)  # what is measured is kept
    if options.network != "tf":
        _fcn(options, result)
    return 0


def _time_frequency(size: str, pieces: int, rounds: int) -> dict[str, Any]:
    """Times a step of the network over time and frequency."""
    with tempfile.TemporaryDirectory() as folder:
        task = mask_steps.Task(size, pieces, Path(folder))
        timing = common.take_turns(
            {name: partial(mask_steps.start, name, task) for name in mask_steps.CONTENDERS},
            rounds,
        )
    seconds = pieces * mask_steps.PIECE_SECONDS
    common.print_table(
        f"training step, {size} network over time and frequency, {pieces} pieces of "
        f"{mask_steps.PIECE_SECONDS:g} s", timing, BASE,
    )  # fmt: skip
    per_second = seconds / timing.median(BASE)
    print(f"  {BASE}: {per_second:.0f} s of mixtures per second")
    return {
        "size": size,
        "pieces": pieces,
        "piece_seconds": mask_steps.PIECE_SECONDS,
        "mixture_seconds_per_second": per_second,
        "steps": timing.as_json(BASE),
    }


def _fcn(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Times a step of the FCN, and how long a run of it waits for data."""
    from speech.base.device import quiet_start

    with quiet_start():
        import keras  # noqa: F401
    result["utterances"] = {}
    for seconds in options.seconds:
        timing = common.take_turns(
            {
                BASE: partial(_ours, seconds, "fast"),
                "stock Keras, train_on_batch": partial(_stock_keras, seconds),
                "stock Keras, fit": partial(_stock_fit, seconds),
                "PyTorch": partial(_torch, seconds),
            },
            options.rounds,
        )
        common.print_table(f"training step, one utterance of {seconds:g} s", timing, BASE)
        result["utterances"][f"{seconds:g}"] = timing.as_json(BASE)
        common.write_result(options.json, result)
    share, steps = _share_of_waiting()
    print(f"\nwaiting for data: {100 * share:.2f} % of {steps} steps on the bundled corpus")
    result["waiting_for_data_share"] = share
    common.write_result(options.json, result)


def _ours(seconds: float, conv: str) -> Callable[[], Any]:
    import numpy as np

    from speech.net.chain_training import TrainingModel
    from speech.net.fcn import build_fcn
    from speech.net.losses import find_loss

    model = TrainingModel(build_fcn(), conv, find_loss("mse"))
    model.compile(_adam())
    noisy = common.random_speech(seconds)
    lengths = np.array([noisy.shape[1]], np.int32)
    weights = np.ones(noisy.shape[:2], np.float32)
    return lambda: model.train_on_batch((noisy, lengths), noisy, sample_weight=weights)


def _stock_keras(seconds: float) -> Callable[[], Any]:
    from speech.net.fcn import build_fcn

    model = build_fcn()
    model.compile(_adam(), "mse")
    noisy = common.random_speech(seconds)
    return lambda: model.train_on_batch(noisy, noisy)


def _stock_fit(seconds: float) -> Callable[[], Any]:
    from speech.net.fcn import build_fcn

    model = build_fcn()
    model.compile(_adam(), "mse")
    noisy = common.random_speech(seconds)
    return lambda: model.fit(noisy, noisy, batch_size=1, epochs=1, verbose=0)


def _torch(seconds: float) -> Callable[[], Any]:
    import torch

    model = common.torch_fcn()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8)
    noisy = torch.from_numpy(common.random_speech(seconds)).transpose(1, 2).contiguous()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(noisy), noisy).backward()
        optimizer.step()

    return step


def _adam() -> Any:
    import keras

    return keras.optimizers.Adam(1e-3, epsilon=1e-8)


def _share_of_waiting(num_steps: int = 60) -> tuple[float, int]:
    """Returns which share of an epoch on the bundled corpus is spent waiting for batches."""
    from speech.data import corpus
    from speech.data.pipeline import MixtureSource, TrainingData
    from speech.net.fcn import build_fcn
    from speech.training.config import TrainingConfig
    from speech.training.trainer import Trainer

    source = MixtureSource(
        corpus.bundled_speech("TRAIN"), corpus.bundled_noise("TRAIN"), [-5, 0, 5, 10, 15]
    )
    config = TrainingConfig(epochs=1, num_items=num_steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            build_fcn(),
            TrainingData(source, num_items=num_steps),
            TrainingData(source, num_items=1, shuffle=False),
            config,
            Path(folder),
        )
        started = time.perf_counter()
        trainer.run()
        return trainer.waited_seconds / (time.perf_counter() - started), num_steps


if __name__ == "__main__":
    sys.exit(main())
