"""Options shared by the commands that train: which data, and how to train.

The commands turn them into the frozen values of ``speech.training.request`` at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech.base.cli import PAIR_BY, SEED, decibels, natural_number, positive_number
from speech.net.losses import LOSSES
from speech.training.request import (
    BUNDLED_NUM_TEST,
    NAMES,
    NUM_TEST,
    RECIPES,
    SNRS_DB,
    DataOptions,
    TrainOn,
)


def add_data_options(parser: argparse.ArgumentParser, *, test: bool = True) -> None:
    """Adds the options that say what to train on and, with ``test``, what to test on."""
    add = parser.add_argument_group("data").add_argument
    add("--speech", "--timit", type=Path, nargs="+", metavar="DIR", dest="timit",
        help="read speech from TIMIT, or from any trees; one without TRAIN and TEST is for "
        "training")  # fmt: skip
    add("--noise", type=Path, metavar="DIR", help="mix these noise recordings (with --speech)")
    add("--train-noisy", type=Path, metavar="DIR",
        help="train on these noisy files: <noise>/<speaker>/<dB>/<name>.wav")  # fmt: skip
    add("--train-clean", type=Path, metavar="DIR",
        help="take their clean files, of the same names, from this folder")  # fmt: skip
    if test:
        add("--test-noisy", type=Path, metavar="DIR",
            help="test on these noisy files (laid out like --train-noisy)")  # fmt: skip
        add("--test-clean", type=Path, metavar="DIR",
            help="compare with these clean files (of the same names)")  # fmt: skip
    add("--pair-by", **PAIR_BY)
    add("--keep-low-snr", action="store_true", default=None,
        help="train on premixed files at -15 and -10 dB too, which the paper left out")  # fmt: skip
    add("--snr", type=decibels, nargs="+", metavar="DB",
        help="mix at these SNRs (default -5 0 5 10 15); premixed folders keep theirs")  # fmt: skip
    add("--snr-range", type=decibels, nargs=2, metavar=("LOW", "HIGH"),
        help="draw training SNRs from this range; --snr still validates and tests")  # fmt: skip
    add("--skip-sa", action="store_true", help="leave out TIMIT's SA sentences (with --speech)")
    add("--split", choices=("disjoint", "original"), default="disjoint",
        help="split off validation files; 'original' does it as published, with the "
        "leak")  # fmt: skip
    if not test:
        return
    add("--num-test", type=natural_number, metavar="N",
        help=f"test on N files per noise and SNR, 0 for all (default: all of premixed folders, "
        f"{NUM_TEST} with --speech, {BUNDLED_NUM_TEST} of the bundled corpus)")  # fmt: skip


def add_training_options(
    parser: argparse.ArgumentParser,
    epochs_flag: str = "--epochs",
    other: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Adds the options that say how to train, augmentation included.

    Args:
        parser: Where to.
        epochs_flag: Name of the option that says for how many epochs.
        other: Recipes of another network that the command trains as well.
    """

    def values(name: str, paper: object = "no") -> str:
        text = f"{paper} [{_in_recipes(RECIPES, name, paper)}]"
        if other is None:
            return text
        same = {recipe[name] for recipe in other.values() if name in recipe}
        if not same:
            return f"{text} (fcn)"
        return f"fcn {text}, tf " + (
            f"[{_in_recipes(other, name, 'no')}]" if len(same) > 1 else _shown(same.pop())
        )

    group = parser.add_argument_group(
        "training",
        "The defaults are the paper's values; brackets hold those of the recipes quick and best.",
    )
    add = group.add_argument
    add("--recipe", choices=tuple(RECIPES),
        help="take the values of this recipe, which other options override (default: paper; "
        "quick for the bundled corpus)")  # fmt: skip
    add(epochs_flag, type=positive_number, metavar="N", dest="epochs",
        help=f"train for N epochs: {values('epochs', 60)}")  # fmt: skip
    add("--num-train", type=positive_number, metavar="N", dest="num_items",
        help=f"take N utterances per epoch: {values('num_items', 30000)}")  # fmt: skip
    add("--batch-size", type=positive_number, metavar="N",
        help=f"take N utterances per step: {values('batch_size', 1)}")  # fmt: skip
    add("--crop-seconds", type=float, metavar="S",
        help=f"train on pieces of S seconds: {values('crop_seconds')}")  # fmt: skip
    add("--learning-rate", type=float, metavar="R",
        help=f"set the learning rate: {values('learning_rate', 0.001)}")  # fmt: skip
    add("--schedule", choices=("constant", "cosine"),
        help=f"let the learning rate follow this: {values('schedule', 'constant')}")  # fmt: skip
    add("--warmup", type=natural_number, metavar="STEPS", dest="warmup_steps",
        help="let the learning rate rise over the first steps: "
        f"{values('warmup_steps', 0)}")  # fmt: skip
    add("--loss", choices=LOSSES, help=f"minimise this loss: {values('loss', 'mse')}")
    add("--clip-norm", type=float, metavar="NORM",
        help=f"clip the norm of all gradients: {values('clip_norm')}")  # fmt: skip
    add("--ema", type=float, metavar="M",
        help=f"save a running average of the weights: {values('ema')}")  # fmt: skip
    add("--init", type=Path, metavar="FILE", help="start from the weights of this model")
    add("--conv", choices=("fast", "keras"),
        help="convolve on a CPU by C kernels (fast, the default) or by Keras")  # fmt: skip
    add("--seed", **SEED)
    add = parser.add_argument_group(
        "augmentation", "These options change training data that are mixed on the fly."
    ).add_argument
    add("--second-noise", type=float, metavar="P",
        help=f"mix two noises at once with probability P: {values('second_noise')}")  # fmt: skip
    add("--equalizer", type=float, metavar="DB", dest="equalizer_db",
        help="raise and lower bands of the noise by up to DB: "
        f"{values('equalizer_db')}")  # fmt: skip
    add("--noise-speed", type=float, metavar="FACTOR",
        help="play the noise slower and faster, by up to FACTOR: "
        f"{values('noise_speed')}")  # fmt: skip
    add("--gain", type=decibels, nargs=2, metavar=("LOW", "HIGH"), dest="gain_db",
        help=f"draw the level of the noisy signal, in dB: {values('gain_db')}")  # fmt: skip
    add("--band-limit", type=float, metavar="P",
        help="let noisy and clean lose treble with probability P: "
        f"{values('band_limit')}")  # fmt: skip
    add("--rooms", type=float, metavar="P",
        help="put the speech in a room with probability P (needs pyroomacoustics): "
        f"{values('rooms')}")  # fmt: skip


def _in_recipes(recipes: Mapping[str, Mapping[str, Any]], name: str, default: object) -> str:
    """Returns the values of a setting in the recipes quick and best."""
    return ", ".join(_shown(recipes[recipe].get(name, default)) for recipe in ("quick", "best"))


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return str(value)


def check_corpus(
    parser: argparse.ArgumentParser, options: argparse.Namespace, flag: str = "--timit"
) -> None:
    """Exits with code 2 if only one of ``--timit`` (called ``flag``) and ``--noise`` is given."""
    if (options.timit is None) != (options.noise is None):
        parser.error(f"{flag} and --noise go together")


def check_data_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exits with code 2 for options that do not go together; fills in ``options.snr``."""
    names = ["train_noisy", "train_clean", "test_noisy", "test_clean"]
    names = [name for name in names if name in options]
    flags = [f"--{name.replace('_', '-')}" for name in names]
    folders = f"the {'four' if len(names) == 4 else 'two'} noisy and clean folders"
    paired = [getattr(options, name) for name in names]
    if any(paired) and not all(paired):
        parser.error(f"{', '.join(flags[:-1])} and {flags[-1]} go together")
    check_corpus(parser, options, "--speech")
    if options.timit and any(paired):
        parser.error(f"give --speech and --noise, or {folders}, not both")
    if options.split == "original" and not any(paired):
        parser.error(f"--split original is for {folders}")
    if not any(paired) and (options.pair_by or options.keep_low_snr):
        flag = "--pair-by" if options.pair_by else "--keep-low-snr"
        parser.error(f"{flag} is for {folders}")
    if any(paired) and (options.snr or options.snr_range or options.skip_sa):
        parser.error(
            "--snr, --snr-range and --skip-sa are for mixing; premixed folders stay as they are"
        )
    if options.snr_range and options.snr_range[0] > options.snr_range[1]:
        parser.error("--snr-range is LOW HIGH: give the lower one first")
    if options.snr is None:
        options.snr = list(SNRS_DB)


def data_options(options: argparse.Namespace) -> DataOptions:
    """Returns the recordings that the options of `add_data_options` name."""
    return DataOptions(
        speech=tuple(options.timit or ()),
        noise=options.noise,
        noisy=options.train_noisy,
        clean=options.train_clean,
        test_noisy=getattr(options, "test_noisy", None),
        test_clean=getattr(options, "test_clean", None),
        num_test=getattr(options, "num_test", None),
        snrs_db=tuple(options.snr),
        skip_sa=options.skip_sa,
        split=options.split,
        seed=options.seed,
        pair_by=options.pair_by,
        keep_low_snr=bool(options.keep_low_snr),
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of a training that options name (`speech.training.request`)."""
    found = {name: getattr(options, name, None) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def train_on(options: argparse.Namespace) -> TrainOn:
    """Returns how a finished model is to be trained on, by the options of both groups."""
    return TrainOn(data_options(options), options.recipe, settings_of(options), options.jobs)
