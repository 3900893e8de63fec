"""Trains a network: the one over time and frequency, or the paper's FCN, with all options.

::

    python -m speech.train --network tf                                 # bundled corpus, 5 minutes
    python -m speech.train --network tf --speech SPEECH --noise NOISES --hours 12 -o runs/tf_open
    python -m speech.train --network fcn --recipe best --speech SPEECH --noise NOISES -o runs/fcn

The same command goes on with an interrupted run where it stood, and with a finished one if
``--hours`` or ``--epochs`` is larger. ``timit_fcn_mse.py`` is the paper's command: it trains the
FCN in the same way, then enhances and scores a test set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from speech.base import cli, lazy
from speech.base.files import sha256_of, write_json
from speech.base.runinfo import run_info
from speech.training.options import add_options, check_usage, request
from speech.training.request import Request

if TYPE_CHECKING:
    from speech.training import distribution, run
    from speech.training.trainer import Trainer
else:
    distribution = lazy.module("speech.training.distribution")
    run = lazy.module("speech.training.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(request(options)))


def _run(asked: Request) -> int:
    trainer = train(asked, distribution.begin(asked))
    if trainer.writes:
        _report(asked, trainer)
    return 0


def train(asked: Request, task: distribution.Task | None) -> Trainer:
    """Trains what is asked for, after `speech.training.distribution.begin`."""
    machines = None if task is None else distribution.Machines(task)
    trainer = run.train_request(asked, machines=machines, say=cli.say)
    if not trainer.writes:
        assert task is not None
        print(f"done        the rest is done by {task.addresses[0]}")
    return trainer


def _report(asked: Request, trainer: Trainer) -> None:
    """Says what there is now, and what one does with it."""
    model = asked.out / "model.h5"
    row = trainer.state.history[-1] if trainer.state.history else None
    print(f"model       {model}, {model.stat().st_size:,} bytes")
    print(f"listen      python -m speech.enhance noisy.wav --model {model} -o enhanced.wav")
    name = f"{asked.network}={model}"
    print(f"score       python -m eval.run --noisy NOISY --clean CLEAN --model {name}")
    if asked.json is not None:
        write_json(
            asked.json,
            {
                "model": str(model),
                "sha256": sha256_of(model),
                "bytes": model.stat().st_size,
                "network": asked.network,
                "last": row,
                "history": trainer.state.history,
                **run_info(),
            },
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.train",
        description="Train a network: the one over time and frequency, for use, or the paper's "
        "FCN. Without data options it uses the bundled corpus and needs minutes. The same command "
        "goes "
        "on after an interruption, and after its end if --hours or --epochs is larger.",
        **cli.examples(
            "python -m speech.train --network tf",
            "python -m speech.train --network tf --speech corpus/speech other --noise corpus/noise "
            "--hours 12 -o runs/tf_open",
            "python -m speech.train --network tf --init runs/tf_open/model.h5 --hours 2 -o runs/on",
            "python -m speech.train --network fcn --recipe best --speech corpus/speech "
            "--noise corpus/noise",
            note="Ctrl-C ends a run at any time: its checkpoint and, with --hours, its model.h5 "
            "are written. --init starts a run from a model of another day or machine.",
        ),
    )
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
