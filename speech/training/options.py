"""The options of ``python -m speech.train``, turned into a frozen `Request` once, at the door.

The options that other commands share are in ``speech.training.common_options``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from speech.base import cli
from speech.base.cli import amount, decibels, natural_number, positive_number
from speech.data.mixtures import MixingConfig
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import NORMALIZATIONS, SIZES
from speech.sound.augment import Augmentation
from speech.training import common_options as shared
from speech.training.config import OPTIMIZERS
from speech.training.request import (
    MIXING,
    NETWORKS,
    NUM_FILTERS,
    TEACHER_SHARE,
    TF_RECIPES,
    Request,
    augmentation,
    mixing_config,
    recipe_of,
    training_config,
)

#: Options that networks of one kind alone have.
_OF_KIND = {
    WAVEFORM: ("loss", "gain_db", "snr", "keep_low_snr"),
    COMPLEX_MASK: (
        "level", "noise_only", "speech_only", "babble", "synthetic_noise", "self_noise", "voices",
        "voice_speed", "voice_equalizer", "microphones", "microphone_equalizer", "clipping",
        "codecs", "workers", "teacher", "teacher_share",
        *(f"loss_{field.name}" for field in fields(MaskLoss)),
    ),
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options of the command."""
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=NETWORKS, required=True,
        help="train the network over time and frequency, for use (tf), or the paper's "
        "(fcn)")  # fmt: skip
    add("--size", choices=tuple(SIZES),
        help="train this form of tf (default medium; small on the bundled corpus); with --init, "
        "widen that network to it")  # fmt: skip
    add("--normalization", choices=NORMALIZATIONS,
        help="give tf BatchNormalization, which folds away (default), or none")  # fmt: skip
    add("--filters", type=positive_number, metavar="N",
        help=f"give each hidden layer N filters (of fcn; default {NUM_FILTERS}, the "
        "paper's)")  # fmt: skip
    shared.add_data_options(parser, test=False)
    add = parser.add_argument_group(
        "length",
        "The default is --hours 0.08 on the bundled corpus, else 12, for tf; fcn takes the epochs "
        "of its recipe.",
    ).add_argument
    add("--hours", type=amount, metavar="H",
        help="end after H hours of clock time, over all calls of the command; the learning rate "
        "follows the share that is used")  # fmt: skip
    add("--validate-minutes", type=amount, metavar="M",
        help="validate every M minutes, with --hours (default: a twentieth of them, at most "
        "30)")  # fmt: skip
    mixing = {name: getattr(MixingConfig(), setting) for name, setting in MIXING.items()}
    recipes = {recipe: settings | mixing for recipe, settings in TF_RECIPES.items()}
    shared.add_training_options(parser, other=recipes)
    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer", choices=OPTIMIZERS,
        help="train with this optimizer (default: adam for fcn, adamw for tf)")  # fmt: skip
    add("--weight-decay", type=float, metavar="D",
        help="let adamw decay kernels, not biases and normalisations, by D (default "
        "0.01)")  # fmt: skip
    add("--beta-2", type=float, metavar="B",
        help="average squared gradients with this factor (default 0.999)")  # fmt: skip
    add("--epsilon", type=float, metavar="E", help="add E to their root (default 1e-8)")
    add("--final-learning-rate", type=float, metavar="SHARE",
        help="end the cosine at this share of the learning rate (default 0.01)")  # fmt: skip
    add = parser.add_argument_group("loss of tf", "Each option weights one part.").add_argument
    for part in fields(MaskLoss):
        add(f"--loss-{part.name.replace('_', '-')}", type=float, metavar="W",
            help=f"weight the {part.metadata['what']} by W (default {part.default:g})")  # fmt: skip
    add = parser.add_argument_group("distillation").add_argument
    add("--teacher", type=Path, metavar="FILE",
        help="let tf learn from what this model makes of the noisy speech, too")  # fmt: skip
    add("--teacher-share", type=float, metavar="P",
        help="mix the targets of P of it, the rest clean speech (default "
        f"{TEACHER_SHARE:g})")  # fmt: skip
    _add_mixing(parser)
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--gpu", **cli.GPUS)
    add("-o", "--out", type=Path, metavar="DIR",
        help="write to this folder (default runs/fcn or runs/tf)")  # fmt: skip
    add("--workers", type=natural_number, metavar="N",
        help="mix for tf in N processes (default: 1, on a GPU more; 0 for a thread)")  # fmt: skip
    add("--tensorboard", nargs="?", type=Path, const=False, metavar="DIR",
        help="log errors, and the learning rate, for TensorBoard (default DIR: OUT/tensorboard); "
        "needs pip install tensorboard")  # fmt: skip
    add("--json", **cli.JSON)


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    """Adds what only the pieces of the time-frequency network have."""
    default = MixingConfig()
    add = parser.add_argument_group(
        "mixing for tf",
        "These options add to the augmentation above; P is a share of the pieces.",
    ).add_argument
    add("--level", type=decibels, nargs=2, metavar=("LOW", "HIGH"),
        help="draw the level of the noisy piece, its RMS in dB of full scale (default "
        f"{_shown(default.level_range_dbfs)})")  # fmt: skip
    for name, what in (
        ("noise_only", "give noise alone, with silence as the target"),
        ("speech_only", "give speech alone, which is its own target"),
        ("babble", "take several voices as a noise"),
        ("synthetic_noise", "take shaped and modulated white noise"),
        ("self_noise", "add the noise of a microphone"),
        ("voices", "make new voices by speed and spectral envelope"),
        ("microphones", "give the colour of a microphone"),
        ("clipping", "clip the noisy signal"),
        ("codecs", "send the noisy signal through mu-law, MP3, Vorbis or Opus"),
    ):
        add(f"--{name.replace('_', '-')}", type=float, metavar="P",
            help=f"{what} (default {getattr(default, MIXING[name]):g})")  # fmt: skip
    add("--voice-speed", type=float, metavar="FACTOR",
        help="change the speed of such voices, up and down (default "
        f"{default.voice_speed:g})")  # fmt: skip
    for name, what in (("voice_equalizer", "voices"), ("microphone_equalizer", "microphones")):
        add(f"--{name.replace('_', '-')}", type=float, metavar="DB",
            help=f"raise and lower bands of such {what} (default "
            f"{getattr(default, MIXING[name]):g})")  # fmt: skip


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exits with code 2 for options that do not go together."""
    flags = {action.dest: action.option_strings[0] for action in parser._actions}
    network, owners = NETWORKS[options.network], _owners()
    for name, own in owners.items():
        if options.network not in own and getattr(options, name) is not None:
            parser.error(f"{flags[name]} is for --network {' or '.join(own)}; leave it out")
    if options.recipe is not None and options.recipe not in network.recipes:
        own = [name for name, other in NETWORKS.items() if options.recipe in other.recipes]
        parser.error(
            f"--recipe {options.recipe} is for --network {' or '.join(own)}; give "
            f"{' or '.join(network.recipes)}"
        )
    if network.kind == COMPLEX_MASK:
        mixed = [name for name in MIXING if name != "level" and getattr(options, name) is not None]
        if options.train_noisy and mixed:
            parser.error(f"{flags[mixed[0]]} is for mixing; premixed folders stay as they are")
    shared.check_data_options(parser, options)
    if options.hours is not None and options.epochs is not None:
        parser.error("--hours and --epochs are two ways to say how long: give one of them")
    if options.teacher_share is not None and options.teacher is None:
        parser.error("--teacher-share is of a teacher; name it by --teacher")
    if options.init is not None:
        for name in network.options:
            if name != "size" and getattr(options, name) is not None:
                parser.error(f"{flags[name]} is for a new network; --init has its own")


def _owners() -> dict[str, list[str]]:
    """Returns the networks that have an option which not all have, by name of the option."""
    owners: dict[str, list[str]] = {}
    for key, network in NETWORKS.items():
        for name in (*network.options, *_OF_KIND[network.kind]):
            owners.setdefault(name, []).append(key)
    return owners


def request(options: argparse.Namespace) -> Request:
    """Returns what the options ask for.

    Raises:
        ValueError: A value makes no sense, or the file of --init can't be read or is of another
            kind or sample rate.
    """
    network = NETWORKS[options.network]
    is_mask = network.kind == COMPLEX_MASK
    data, asked = shared.data_options(options), shared.settings_of(options)
    recipe = recipe_of(network.recipes, data, options.recipe)
    settings = dict(network.recipes[recipe])
    # The way that is asked for takes the place of the recipe's.
    for way, other in (("hours", "epochs"), ("epochs", "hours")):
        if way in asked:
            settings.pop(other, None)
    settings |= asked
    if asked.get("optimizer") == "adam":
        settings["weight_decay"] = asked.get("weight_decay", 0.0)
    if is_mask:
        weights = {one.name: getattr(options, f"loss_{one.name}") for one in fields(MaskLoss)}
        settings["loss"] = MaskLoss(**{k: v for k, v in weights.items() if v is not None})
    start = None
    if options.init is not None:
        file = read_model_file(options.init)
        file.require_kind(network.kind, fix="choose another --init")
        start = file.sha256
    out = options.out or Path("runs") / options.network
    tensorboard = options.tensorboard
    if tensorboard is False:
        tensorboard = out / "tensorboard"
    return Request(
        network=options.network,
        recipe=recipe,
        training=training_config(settings, init=start),
        data=data,
        out=out,
        size=options.size or (settings.get("size") if options.init is None else None),
        normalization=options.normalization or NORMALIZATIONS[0],
        num_filters=options.filters or NUM_FILTERS,
        init=options.init,
        teacher=options.teacher,
        teacher_share=(TEACHER_SHARE if options.teacher_share is None else options.teacher_share),
        augmentation=Augmentation() if is_mask else augmentation(settings),
        snr_range_db=None if is_mask else settings.get("snr_range"),
        mixing=(
            mixing_config(asked, is_premixed=data.noisy is not None) if is_mask else MixingConfig()
        ),
        workers=options.workers,
        gpu=options.gpu,
        tensorboard=tensorboard,
        json=options.json,
    )
