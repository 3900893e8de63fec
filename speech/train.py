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
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.training.options import Request, add_options, check_usage, request

if TYPE_CHECKING:
    from speech.training.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(request(options)))


def _run(asked: Request) -> int:
    from speech.base.device import select_devices

    if asked.out.exists() and not asked.out.is_dir():
        raise ValueError(f"{asked.out}: is not a folder; choose another --out")
    cli.check_out(asked.out, asked.data.folders)
    select_devices(asked.gpu, several=True)
    if asked.tensorboard is not None:
        from speech.training.tensorboard import require_tensorboard

        require_tensorboard(asked.tensorboard)

    from speech.training.distribution import Machines, read_task

    task = read_task()
    machines = None if task is None else Machines(task)
    trainer = (_train_tf if asked.network == "tf" else _train_fcn)(asked, machines)
    if not trainer.writes:
        assert task is not None
        print(f"done        the rest is done by {task.addresses[0]}")
        return 0
    _report(asked, trainer)
    return 0


def _train_fcn(asked: Request, machines: Any) -> Trainer:
    from speech.training.datasets import load_training
    from speech.training.run import train_fcn

    data = load_training(asked.data, asked.augmentation, asked.snr_range_db)
    print(f"data        {data.description}")
    if data.left_out:
        print(f"left out    {data.left_out}")
    return train_fcn(
        data, asked.training, asked.augmentation, asked.out,
        recipe=asked.recipe, created_by="python -m speech.train", num_filters=asked.num_filters,
        init=asked.init, machines=machines, tensorboard=asked.tensorboard,
    )  # fmt: skip


def _train_tf(asked: Request, machines: Any) -> Trainer:
    from dataclasses import replace

    from speech.net.mask_loss import MaskLoss
    from speech.net.timefrequency import SIZES, build_time_frequency
    from speech.net.training_model import MaskTrainingModel
    from speech.training.datasets import load_pieces
    from speech.training.run import train

    config = asked.training
    training, validation, description = load_pieces(
        asked.data, asked.mixing, config, _workers(asked)
    )
    print(f"data        {description}; pieces of {config.crop_seconds:g} s")
    if asked.init is None:
        assert asked.size is not None
        form = replace(SIZES[asked.size], normalization=asked.normalization)
        network = build_time_frequency(form, seed=config.seed)
    else:
        network, form = _load_tf(asked)
    print(f"network     {_words(asked)}, {network.count_params():,} weights")
    loss = config.loss
    assert isinstance(loss, MaskLoss)
    meta = {
        **form.meta(),
        "created_by": "python -m speech.train",
        "recipe": asked.recipe,
        "mixing": training.source.description()[-1:]
        if asked.data.noisy
        else asked.mixing.description(),
    }
    return train(
        network, training, validation, config, asked.out,
        make_model=lambda network, engine: MaskTrainingModel(network, form, loss, engine),
        title="Network over time and frequency", meta=meta, machines=machines,
        tensorboard=asked.tensorboard,
    )  # fmt: skip


def _words(asked: Request) -> str:
    return f"over time and frequency, {asked.size or f'as in {asked.init}'}"


def _load_tf(asked: Request) -> tuple[Any, Any]:
    """Loads the network whose weights start the run, and its conventions."""
    from dataclasses import replace

    from speech.net.keras_models import load_model_and_meta
    from speech.net.timefrequency import KIND, TimeFrequencyConfig

    assert asked.init is not None
    network, meta = load_model_and_meta(asked.init)
    if meta.get("kind") != KIND:
        raise ValueError(
            f"{asked.init}: is no network over time and frequency; choose another --init, or "
            "--network fcn"
        )
    form = TimeFrequencyConfig()
    power = meta.get("power", form.power)
    try:
        form = replace(form, power=power)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{asked.init}: {error}") from None
    for name, value in form.meta().items():
        if meta.get(name, value) != value:
            raise ValueError(
                f"{asked.init}: {name} is {meta[name]!r:.60}, expected {value!r}; choose another "
                "--init"
            )
    return network, form


def _workers(asked: Request) -> int:
    """Returns how many processes mix; one keeps up with a CPU, but not with a GPU."""
    if asked.workers is not None:
        return asked.workers
    from speech.net.blockconv import default_threads
    from speech.net.chain_training import uses_c_kernels

    return 1 if uses_c_kernels() else max(1, min(8, default_threads() // 2))


def _report(asked: Request, trainer: Trainer) -> None:
    """Says what there is now, and what one does with it."""
    model = asked.out / "model.h5"
    row = trainer.state.history[-1] if trainer.state.history else None
    print(f"model       {model}, {model.stat().st_size:,} bytes")
    print(f"listen      python -m speech.enhance noisy.wav --model {model} -o enhanced.wav")
    name = f"{asked.network}={model}"
    print(f"score       python -m eval.run --noisy NOISY --clean CLEAN --model {name}")
    if asked.json is not None:
        from speech.base.files import sha256_of, write_json
        from speech.base.runinfo import run_info

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
