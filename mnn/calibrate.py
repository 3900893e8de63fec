"""Measures once what the ranker can't know of each expert of a pool (`mnn.calibration`).

::

    python -m mnn.calibrate -o pool.json                      # shipped experts, bundled corpus
    python -m mnn.calibrate --experts a.h5 b.icse -o pool.json
    python -m mnn.calibrate --noisy N --clean C --experts a.h5 --candidates rnnoise=DIR -o pool.json
    python -m mnn.select --calibration pool.json noisy/ -o chosen/

It takes mixtures whose speech is known: the files of ``--noisy`` with those of ``--clean``, or 120
of the training part of the bundled corpus, every noise at -5, 0, 5, 10 and 15 dB. No network is
trained. Folders of ``--candidates`` hold what other tools have made of the files of ``--noisy``;
`speech.prepare` writes such files. If you can, take speech and noise that no expert was trained on,
because an expert is better on what it was trained on than on new recordings.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.metrics import OK, sdr
from mnn.arbiter import Arbiter
from mnn.calibration import MIN_FILES, Calibration, HeldOut, fitted, held_out, seen
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, Place
from mnn.pool import open_pool
from mnn.ranker import Ranker
from mnn.select import CANDIDATES, DEFAULT_DAE, DEFAULT_EXPERTS, DEFAULT_RANKER, RANKER
from speech.base import cli
from speech.data import corpus
from speech.data.made import MadeFiles
from speech.data.prepared import write_mixtures
from speech.sound.audio import is_silent, lag_samples, read_audio
from speech.training.request import SNRS_DB

_logger = logging.getLogger("speech")

DEFAULT_OUT = Path("runs") / "pool.json"

#: Mixtures of the bundled corpus for each noise and SNR.
NUM_EACH = 3

#: A delay of so many samples (1 ms) or more is reported; longer delays than the most are not found.
LATE_SAMPLES, MOST_LATE = 16, 4000

#: A warning says so where a calibration loses more than this on parts left out.
LOSS_DB = 0.1

#: An SDR above this means that the expert was given the clean speech.
TOO_GOOD_DB = 50.0

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


@dataclass(frozen=True)
class CalibrateResult:
    """What `calibrate` has found.

    Attributes:
        calibration: For `mnn.select`.
        held_out: What it is worth on mixtures that it was not made with; None for too few.
        late_samples: By how many samples each expert is late, at 16 kHz; those on time are absent.
    """

    calibration: Calibration
    held_out: HeldOut | None
    late_samples: dict[str, int]


def calibrate(
    config: CalibrateConfig, *, on_skipped: Callable[[str], None] = _logger.warning
) -> CalibrateResult:
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
    found: list[_Measured] = []
    failed: Counter[str] = Counter()
    with _mixtures(config) as (pairs, root):
        for expert in experts:
            if expert.kind == "folder":
                MadeFiles(expert.source).check_apart(p.noisy_path.relative_to(root) for p in pairs)
        for pair in cli.progress(pairs, total=len(pairs), label="measuring"):
            try:
                relative = pair.noisy_path.relative_to(root)
                found.append(_measure(pair, relative, experts, arbiter, ranker))
            except _ExpertFailed as error:
                failed[error.name] += 1
                on_skipped(f"skipped: {cli.one_line(error)}")
            except ValueError as error:
                on_skipped(f"skipped: {cli.one_line(error)}")
    if len(found) < MIN_FILES:
        left = f"{len(found)} mixtures are left, expected {MIN_FILES} at least"
        if failed:
            ((name, count),) = failed.most_common(1)
            left = f"{name} gives nothing of use for {count} of {len(pairs)}; {left}"
        raise ValueError(left)
    costs, between, sdr_db, products, late = (
        np.array([getattr(own, name) for own in found])
        for name in ("costs", "between", "sdr_db", "products", "late_samples")
    )
    known = [(expert.name, expert.sha256) for expert in experts]
    calibration = fitted(costs, between, sdr_db, known, ranker.file.sha256)
    names = [expert.name for expert in experts]
    return CalibrateResult(
        calibration,
        held_out(costs, between, sdr_db, products, names),
        _late(names, late),
    )


def _late(names: Sequence[str], late: np.ndarray) -> dict[str, int]:
    """Returns the delays that are reported, from those in each mixture, [num_files, num_experts].

    Where fewer than half of the mixtures agree, what was found is chance.
    """
    medians = np.median(late, axis=0)
    agree = np.mean(np.abs(late - medians) < LATE_SAMPLES, axis=0)
    return {
        name: int(median)
        for name, median, share in zip(names, medians, agree, strict=True)
        if abs(median) >= LATE_SAMPLES and share >= 0.5
    }


@contextlib.contextmanager
def _mixtures(config: CalibrateConfig) -> Iterator[tuple[list[corpus.Pair], Path]]:
    """Yields the mixtures and the folder that they are below."""
    if config.noisy is not None and config.clean is not None:
        yield corpus.find_pairs(config.noisy, config.clean, config.pair_by), config.noisy
        return
    plans = corpus.spread_mixtures(*corpus.recordings(None, None, "TRAIN"), SNRS_DB, NUM_EACH)
    with tempfile.TemporaryDirectory(prefix="mnn-calibrate-") as name:
        write_mixtures(plans, Path(name))
        noisy = Path(name) / "noisy"
        yield corpus.find_pairs(noisy, Path(name) / "clean"), noisy


class _ExpertFailed(ValueError):
    """An expert that is to blame for a mixture that tells nothing."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class _Measured:
    """A mixture: costs, distances and SDR as for `fitted`, products as for `held_out`; delays."""

    costs: np.ndarray
    between: np.ndarray
    sdr_db: np.ndarray
    products: np.ndarray
    late_samples: np.ndarray


def _measure(
    pair: corpus.Pair, relative: Path, experts: Sequence[Expert], arbiter: Arbiter, ranker: Ranker
) -> _Measured:
    noisy, clean = (read_audio(path).samples for path in (pair.noisy_path, pair.clean_path))
    if len(noisy) != len(clean):
        raise ValueError(
            f"{pair.noisy_path}: {len(noisy)} samples at 16 kHz, its speech has {len(clean)}"
        )
    for path, samples in ((pair.clean_path, clean), (pair.noisy_path, noisy)):
        if is_silent(samples):
            raise ValueError(f"{path}: silent")
    hearings = arbiter.run(noisy, experts, Place(relative))
    for hearing in hearings:
        if hearing.reason:
            name = hearing.expert.name
            raise _ExpertFailed(name, f"{pair.noisy_path}: {name}: {hearing.reason}")
    estimates = [own.signal for own in hearings if own.signal is not None]
    sdr_db = []
    for expert, estimate in zip(experts, estimates, strict=True):
        score = sdr(clean, estimate)
        if score.status != OK:
            raise _ExpertFailed(expert.name, f"{pair.noisy_path}: {expert.name}: {score.status}")
        if score.value > TOO_GOOD_DB:
            raise _ExpertFailed(
                expert.name,
                f"{pair.noisy_path}: {expert.name} gives the clean speech; was it told to?",
            )
        sdr_db.append(score.value)
    signals = np.stack([*estimates, clean]).astype(np.float64)
    tiles, between = seen(ranker, noisy, estimates)
    return _Measured(
        tiles.sum(axis=(1, 2), dtype=np.float64),
        between,
        np.array(sdr_db),
        signals @ signals.T,
        np.array([lag_samples(estimate, noisy, MOST_LATE) for estimate in estimates]),
    )


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
    try:
        tempfile.TemporaryFile(dir=out.parent).close()  # an error before the work, not after it
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from None
    if config.noisy is None:
        print("note: the shipped networks were trained on these voices and look better than they "
              "are; give mixtures of others with --noisy and --clean", file=sys.stderr)  # fmt: skip
    result = calibrate(config, on_skipped=lambda line: print(line, file=sys.stderr))
    calibration = result.calibration
    calibration.write(out)
    for name, expert in calibration.experts.items():
        print(f"{name:20s}  offset {DECIBELS * expert.offset:+.2f} dB")
    print(f"slope                 {calibration.slope:.3f} of the ranker's cost")
    _print_worth(result.held_out)
    for name, number in result.late_samples.items():
        when = "late" if number > 0 else "early"
        print(f"warning: {name} is {when} by {abs(number)} samples at 16 kHz; take the delay out: "
              "neither sums nor distances allow for it", file=sys.stderr)  # fmt: skip
    print(f"written               {out} ({calibration.num_files} mixtures)")
    return 0


def _print_worth(found: HeldOut | None) -> None:
    if found is None:
        print("warning: too few mixtures to try the calibration on some that it was not made with",
              file=sys.stderr)  # fmt: skip
        return
    own = found.si_sdr_db
    print(f"on parts left out     {found.best} alone {own['best']:.2f} dB of SI-SDR; pick "
          f"{own['pick']:.2f}, calibrated {own['calibrated pick']:.2f}; sum {own['sum']:.2f}, "
          f"calibrated {own['calibrated sum']:.2f}")  # fmt: skip
    if own["best"] > max(value for name, value in own.items() if name != "best"):
        print(f"warning: on parts left out {found.best} alone is better than all picks and sums",
              file=sys.stderr)  # fmt: skip
    for what in ("pick", "sum"):
        if own[f"calibrated {what}"] < own[what] - LOSS_DB:
            print(f"warning: on parts left out the calibrated {what} is worse than the plain one; "
                  "do without the calibration, or take more mixtures", file=sys.stderr)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.calibrate",
        description="Measure once, on mixtures whose speech is known, what the ranker can't know "
        "of each expert of a pool, for mnn.select --calibration. No network is trained.",
        **cli.examples(
            "python -m mnn.calibrate -o pool.json",
            "python -m mnn.calibrate --experts a.h5 b.icse -o pool.json",
            "python -m mnn.calibrate --noisy N --clean C --experts a.h5 --candidates rnnoise=DIR",
        ),
    )
    add = parser.add_argument
    add("--experts", type=Path, nargs="+", metavar="FILE",
        help="take these models (.h5, .icse, .onnx) as experts (default: the shipped ones, "
        "without --candidates)")  # fmt: skip
    add("--candidates", **CANDIDATES)
    add("--noisy", type=Path, metavar="DIR",
        help="read noisy files from this folder (default: mixtures of the training part of the "
        "bundled corpus)")  # fmt: skip
    add("--clean", type=Path, metavar="DIR",
        help="read clean files from this folder: the speech of the noisy ones")  # fmt: skip
    add("--pair-by", **cli.PAIR_BY)
    add("--ranker", **RANKER)
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="FILE",
        help="write to this file (default %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
