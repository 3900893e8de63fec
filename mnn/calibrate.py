"""Measures once what the ranker can't know of each expert of a pool (`mnn.calibration`).

::

    python -m mnn.calibrate -o pool.json                      # shipped experts, bundled corpus
    python -m mnn.calibrate --experts a.h5 b.icse -o pool.json
    python -m mnn.calibrate --noisy N --clean C --candidates rnnoise=DIR -o pool.json
    python -m mnn.select --calibration pool.json noisy/ -o chosen/

It takes mixtures whose speech is known: the files of ``--noisy`` with those of ``--clean``, or 120
of the training part of the bundled corpus, every noise at -5, 0, 5, 10 and 15 dB. No network is
trained. Folders of ``--candidates`` hold what other tools have made of the files of ``--noisy``;
`speech.prepare` writes such files. Take speech and noise that the experts have not been trained
on, if you have them: an expert is better on those than it will be.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.metrics import OK, sdr
from mnn.arbiter import Arbiter
from mnn.calibration import Calibration, fitted, seen
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, Place
from mnn.pool import open_pool
from mnn.ranker import Ranker
from mnn.select import DEFAULT_DAE, DEFAULT_EXPERTS, DEFAULT_RANKER
from speech.base import cli
from speech.data import corpus
from speech.data.prepared import write_mixtures
from speech.sound.audio import is_silent, read_audio
from speech.training.request import SNRS_DB

_logger = logging.getLogger("speech")

DEFAULT_OUT = Path("runs") / "pool.json"

#: Mixtures of the bundled corpus for each noise and SNR.
NUM_EACH = 3


#: In a natural logarithm of energies.
DECIBELS = 10 / math.log(10)


@dataclass(frozen=True)
class CalibrateConfig:
    """What to calibrate, and with what.

    Attributes:
        experts: Model files of any kind (`mnn.expert_files`).
        candidates: Name and folder of files that other tools have made of ``noisy``.
        noisy: Folder of mixtures; None for mixtures of the bundled corpus.
        clean: Folder of their speech, where ``noisy`` is given.
        pair_by: How both are paired (`speech.data.pairing`); None for by path and name.
        ranker: Model file of the ranker.
    """

    experts: tuple[Path, ...] = DEFAULT_EXPERTS
    candidates: tuple[tuple[str, Path], ...] = ()
    noisy: Path | None = None
    clean: Path | None = None
    pair_by: str | None = None
    ranker: Path = DEFAULT_RANKER

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not go together."""
        if (self.noisy is None) != (self.clean is None):
            raise ValueError("--noisy and --clean go together")
        if self.noisy is None and self.candidates:
            raise ValueError("--candidates are made of the files of --noisy: give it and --clean")
        if self.noisy is None and self.pair_by is not None:
            raise ValueError("--pair-by is for --noisy and --clean")


def calibrate(
    config: CalibrateConfig, *, on_skipped: Callable[[str], None] = _logger.warning
) -> Calibration:
    """Calibrates a pool.

    Args:
        config: What to calibrate, and with what.
        on_skipped: Gets a line for each mixture that tells nothing, such as one that an expert
            fails on.

    Raises:
        ValueError: A model or a folder is refused, or too few mixtures are left.
        OSError: A file can't be read.
    """
    ranker = Ranker(config.ranker)
    opened, _ = open_pool(config.experts, config.candidates, strict=True)
    experts = [expert for expert in opened if expert is not None]
    if len(experts) < 2:
        raise ValueError("one expert: there is nothing to choose, so nothing to calibrate")
    arbiter = Arbiter(Autoencoder(DEFAULT_DAE), ())
    with _mixtures(config) as (pairs, root):
        found = []
        for pair in cli.progress(pairs, total=len(pairs), label="measuring"):
            try:
                relative = pair.noisy_path.relative_to(root)
                found.append(_measure(pair, relative, experts, arbiter, ranker))
            except ValueError as error:
                on_skipped(f"skipped: {cli.one_line(error)}")
    table = np.array(found).reshape(-1, 3, len(experts))
    known = [(expert.name, expert.sha256) for expert in experts]
    return fitted(table[:, :2], table[:, 2], known, ranker.file.sha256)


@contextlib.contextmanager
def _mixtures(config: CalibrateConfig) -> Iterator[tuple[list[corpus.Pair], Path]]:
    """Yields the mixtures and the folder that they are below."""
    if config.noisy is not None and config.clean is not None:
        yield corpus.find_pairs(config.noisy, config.clean, config.pair_by), config.noisy
        return
    plans = corpus.spread_mixtures(*corpus.recordings(None, None, "TRAIN"), SNRS_DB, NUM_EACH)
    with tempfile.TemporaryDirectory(prefix="mnn-calibrate-") as name:
        write_mixtures(plans, Path(name))
        yield [plan.pair(Path(name)) for plan in plans], Path(name) / "noisy"


def _measure(
    pair: corpus.Pair, relative: Path, experts: Sequence[Expert], arbiter: Arbiter, ranker: Ranker
) -> np.ndarray:
    noisy, clean = (read_audio(path).samples for path in (pair.noisy_path, pair.clean_path))
    if len(noisy) != len(clean):
        raise ValueError(
            f"{pair.noisy_path}: {len(noisy)} samples at 16 kHz, its speech has {len(clean)}"
        )
    if is_silent(clean):
        raise ValueError(f"{pair.clean_path}: silent")
    hearings = arbiter.run(noisy, experts, Place(relative))
    for hearing in hearings:
        if hearing.reason:
            raise ValueError(f"{pair.noisy_path}: {hearing.expert.name}: {hearing.reason}")
    estimates = [own.signal for own in hearings if own.signal is not None]
    sdr_db = [sdr(clean, estimate) for estimate in estimates]
    for score, expert in zip(sdr_db, experts, strict=True):
        if score.status != OK:
            raise ValueError(f"{pair.noisy_path}: {expert.name}: {score.status}")
    return np.stack([*seen(ranker, noisy, estimates), [score.value for score in sdr_db]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    experts = tuple(options.experts or ())
    try:
        config = CalibrateConfig(
            experts if experts or options.candidates else DEFAULT_EXPERTS,
            tuple(options.candidates), options.noisy, options.clean, options.pair_by,
            options.ranker,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    cli.log_to_stderr()
    return cli.run(lambda: _run(config, options.out))


def _run(config: CalibrateConfig, out: Path) -> int:
    if out.suffix.lower() != ".json" or out.is_dir():
        raise ValueError(f"{out}: give a file whose name ends in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    calibration = calibrate(config, on_skipped=lambda line: print(line, file=sys.stderr))
    calibration.write(out)
    for name, expert in calibration.experts.items():
        print(f"{name:20s}  offset {DECIBELS * expert.offset:+.2f} dB")
    print(f"slopes                {calibration.cost_slope:.3f} of the cost, "
          f"{calibration.others_slope:.3f} of the distance from the others")  # fmt: skip
    print(f"written               {out} ({calibration.num_files} mixtures)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.calibrate",
        description="Measure once, on mixtures whose speech is known, what the ranker can't know "
        "of each expert of a pool, for mnn.select --calibration. No network is trained.",
        **cli.examples(
            "python -m mnn.calibrate -o pool.json",
            "python -m mnn.calibrate --experts a.h5 b.icse -o pool.json",
            "python -m mnn.calibrate --noisy N --clean C --candidates rnnoise=DIR -o pool.json",
        ),
    )
    add = parser.add_argument
    add("--experts", type=Path, nargs="+", metavar="FILE",
        help="take these models (.h5, .icse, .onnx) as experts (default: the shipped "
        "ones)")  # fmt: skip
    add("--candidates", type=cli.named_path, action="append", default=[], metavar="NAME=DIR",
        help="take files that another tool has made of the inputs as an expert; here these are "
        "those of --noisy; repeatable")  # fmt: skip
    add("--noisy", type=Path, metavar="DIR",
        help="read noisy files from this folder (default: mixtures of the training part of the "
        "bundled corpus)")  # fmt: skip
    add("--clean", type=Path, metavar="DIR", help="read clean files from this folder")
    add("--pair-by", **cli.PAIR_BY)
    add("--ranker", type=Path, default=DEFAULT_RANKER, metavar="FILE",
        help="judge by this ranker (default: the shipped one)")  # fmt: skip
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="FILE",
        help="write to this file (default %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
