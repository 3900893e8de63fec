"""Training steps side by side: ours, stock Keras, PyTorch.

::

    python -m benchmarks.training --seconds 1 3 10 --json benchmarks/results/training.json

One step is one batch of one utterance: forward, backward, Adam. Also prints the share of a real
run's time that is spent waiting for data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from speech import cli

BASE = "ours"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0, 10.0], metavar="S")
    parser.add_argument("--rounds", type=int, default=common.MIN_ROUNDS, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.device import quiet_start

    with quiet_start():
        import keras  # noqa: F401
    result: dict[str, Any] = {"utterances": {}}
    for seconds in options.seconds:
        timing = common.take_turns(
            {
                BASE: lambda s=seconds: _ours(s, "fast"),
                "stock Keras, train_on_batch": lambda s=seconds: _stock_keras(s),
                "stock Keras, fit": lambda s=seconds: _stock_fit(s),
                "PyTorch": lambda s=seconds: _torch(s),
            },
            options.rounds,
        )
        common.print_table(f"training step, one utterance of {seconds:g} s", timing, BASE)
        result["utterances"][f"{seconds:g}"] = timing.as_json(BASE)
        common.write_result(options.json, result)  # what is measured is kept
    share, steps = _share_of_waiting()
    print(f"\nwaiting for data: {100 * share:.2f} % of {steps} steps on the bundled corpus")
    result["waiting_for_data_share"] = share
    common.write_result(options.json, result)
    return 0


def _ours(seconds: float, conv: str) -> Callable[[], Any]:
    import numpy as np

    from speech.conv import TrainingModel
    from speech.fcn import build_fcn
    from speech.losses import find_loss

    model = TrainingModel(build_fcn(), conv, find_loss("mse"))
    model.compile(_adam())
    noisy = common.random_speech(seconds)
    lengths = np.array([noisy.shape[1]], np.int32)
    weights = np.ones(noisy.shape[:2], np.float32)
    return lambda: model.train_on_batch((noisy, lengths), noisy, sample_weight=weights)


def _stock_keras(seconds: float) -> Callable[[], Any]:
    from speech.fcn import build_fcn

    model = build_fcn()
    model.compile(_adam(), "mse")
    noisy = common.random_speech(seconds)
    return lambda: model.train_on_batch(noisy, noisy)


def _stock_fit(seconds: float) -> Callable[[], Any]:
    from speech.fcn import build_fcn

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
    from speech import corpus
    from speech.fcn import build_fcn
    from speech.pipeline import MixtureSource, TrainingData
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
