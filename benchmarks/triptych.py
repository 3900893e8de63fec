"""The picture of the README: spectrograms of a noisy file, what the network makes of it, and clean.

::

    python -m benchmarks.triptych -o docs/triptych.png
    python -m benchmarks.triptych --noise typing --snr 0 --model models/fcn.h5 -o typing.png

The file is the median one: of all bundled test utterances in that noise, mixed at that SNR, the one
whose gain in PESQ-WB is nearest to the median gain. It is named above the picture with its scores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from speech.base import cli

MODEL = Path("models/fcn_small.icse")

#: Of the file: less than half of the bytes that all would take.
NUM_COLORS = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triptych", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--model", type=Path, default=MODEL, metavar="FILE", help="default %(default)s")
    add("--noise", default="birds", metavar="NAME", help="a bundled one (default %(default)s)")
    add("--snr", type=cli.decibels, default=5.0, metavar="DB", help="default %(default)g")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="picture to write")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import numpy as np
    from PIL import Image

    from eval.metrics import METRICS
    from eval.plots import spectrogram_triptych
    from speech.data.corpus import bundled_noise, bundled_speech, plan_mixtures, render
    from speech.net.enhancer import Enhancer

    noises = [noise for noise in bundled_noise("TEST") if noise.name == options.noise]
    if not noises:
        names = sorted({noise.name for noise in bundled_noise("TEST")})
        raise ValueError(f"--noise is {options.noise!r}; there are {', '.join(names)}")
    enhancer = Enhancer(options.model)
    found = []
    for plan in plan_mixtures(bundled_speech("TEST"), noises, [options.snr]):
        mixture = render(plan)
        enhanced = enhancer.enhance(mixture.noisy.astype(np.float32)).astype(np.float64)
        scores = {
            name: [
                METRICS[name](mixture.clean, signal).value for signal in (mixture.noisy, enhanced)
            ]
            for name in ("pesq_wb", "stoi")
        }
        found.append((scores["pesq_wb"][1] - scores["pesq_wb"][0], plan, mixture, enhanced, scores))
    median = statistics.median(gain for gain, *_ in found)
    _, plan, mixture, enhanced, scores = min(found, key=lambda item: abs(item[0] - median))
    # Its level means nothing (`models/fcn.md`): the one that fits the clean speech best.
    enhanced = enhanced * (np.dot(mixture.clean, enhanced) / np.dot(enhanced, enhanced))
    (pesq, pesq_after), (stoi, stoi_after) = scores["pesq_wb"], scores["stoi"]
    title = (
        f"{plan.utterance.id}, {options.noise}, {options.snr:g} dB: PESQ-WB {pesq:.2f} to "
        f"{pesq_after:.2f}, STOI {stoi:.3f} to {stoi_after:.3f}"
    )
    spectrogram_triptych(mixture.noisy, enhanced, mixture.clean, options.out, title)
    with Image.open(options.out) as picture:
        small = picture.convert("RGB").quantize(NUM_COLORS)
    small.save(options.out, optimize=True)
    print(f"{title}\nmedian of {len(found)} files; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
