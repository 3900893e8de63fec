"""Builds a corpus of free speech and noise: ``python -m speech.opencorpus --out DIR``.

The tree has the shape of TIMIT, so ``DIR/speech`` is for ``--timit`` and ``DIR/noise`` for
``--noise`` of the other commands. The same command goes on after an interruption, and checks a
tree that is complete.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speech.base import cli
from speech.opencorpus import build, recipe, report


def run(out: Path, packages: Path | None, jobs: int, stats: bool, corpus_recipe: Path) -> int:
    """Builds the corpus, or only reads it for ``--stats``; prints its tables."""
    if packages and not packages.is_dir():
        raise ValueError(f"{packages}: not a folder of .deb files")
    book = recipe.read_recipe(corpus_recipe)
    if stats:
        records = build.read_records(book, out)
        if missing := build.missing_parts(book, records):
            raise ValueError(
                f"{out}: not complete, {len(missing)} parts such as {missing[0]} are "
                "missing; build it first, without --stats"
            )
    else:
        records = build.build(book, packages, out, jobs)
    print(report.statistics(book, records), end="")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: ``python -m speech.opencorpus --out DIR [--packages DIR] [--jobs N]``."""
    parser = argparse.ArgumentParser(
        prog="python -m speech.opencorpus",
        description="Build a TIMIT-shaped corpus of free speech and noise from Debian packages.",
        **cli.examples(
            "python -m speech.opencorpus -o corpus",
            "python -m speech.opencorpus -o corpus --packages debs --jobs 4",
            "python -m speech.opencorpus -o corpus --stats",
        ),
    )
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="write the tree here")
    add(
        "--packages",
        type=Path,
        metavar="DIR",
        help="take the .deb files from this folder; without it apt-get downloads them to "
        "OUT/packages",
    )
    add("--jobs", **cli.JOBS)
    add("--stats", action="store_true",
        help="build nothing, but print the tables of a built corpus")  # fmt: skip
    add(
        "--corpus-recipe",
        type=Path,
        default=recipe.BUNDLED,
        metavar="FILE",
        help="take another list of packages, voices and noises (default: the one of this package)",
    )
    options = parser.parse_args(argv)
    return cli.run(lambda: run(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
