"""Reads every file below a folder, and says what became of it and what it took."""

import hashlib
import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.trials.fuzz import peak_mb, reset_peak

SOUNDS = (".wav", ".flac", ".sph", ".aiff", ".ogg", ".w64", ".au", ".caf", ".bin")


def content_of(file):
    """Returns a digest of what was read."""
    digest = hashlib.sha256()
    if hasattr(file, "samples"):
        digest.update(file.samples.tobytes())
        return digest.hexdigest()
    for layer in file.layers:
        digest.update(repr((layer.class_name, layer.name, layer.config)).encode())
        for key, array in layer.weights.items():
            digest.update(key.encode() + array.tobytes())
    return digest.hexdigest()


def read(path):
    import speech.sound.stft  # noqa: F401  what a reader imports on the way is no cost of an attack
    from speech.modelfile.read import read_model_file
    from speech.modelfile.spec import ModelFileError
    from speech.net.streaming import Stream
    from speech.sound.audio import AudioError, read_audio

    reader = read_audio if path.suffix in SOUNDS else read_model_file
    if path.stem.startswith("stream"):
        reader = Stream
    logging.getLogger("speech").setLevel(logging.ERROR)  # what is said of a file that is read
    before, start = reset_peak(), time.process_time()
    result = {"file": str(path)}
    try:
        result |= {"outcome": "accepted", "reason": content_of(reader(path))}
    except (AudioError, ModelFileError) as error:
        result |= {"outcome": "refused", "reason": str(error)}
    except BaseException as error:
        result |= {"outcome": "escaped", "reason": f"{type(error).__name__}: {error}"}
    return result | {"seconds": time.process_time() - start, "mb": peak_mb() - before}


def print_table():
    """Runs all attacks and prints what became of them."""
    from tests import hostile

    with tempfile.TemporaryDirectory() as folder:
        results = hostile.attack(Path(folder), hostile.FAMILIES)
    print(
        f"{'family':<28}{'attacks':>8}{'refused':>9}{'accepted':>9}{'escaped':>9}{'s':>7}{'MB':>6}"
    )
    counts = Counter()
    for family, of in results.items():
        found = Counter(result["outcome"] for result in of.values())
        counts += found
        print_row(family, found, max(r["seconds"] for r in of.values()),
                  max(r["mb"] for r in of.values()))  # fmt: skip
    print_row("all", counts)


def print_row(name, found, *most):
    cells = [found.total(), *(found[outcome] for outcome in ("refused", "accepted", "escaped"))]
    numbers = "".join(f"{cell:>{width}}" for cell, width in zip(cells, (8, 9, 9, 9), strict=True))
    print(
        f"{name:<28}{numbers}"
        + "".join(f"{m:>{w}.{w - 6}f}" for m, w in zip(most, (7, 6), strict=False))
    )


def read_all(folder):
    # Far above what is promised: a bomb shall fail the test, not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    said = os.dup(1)
    os.dup2(2, 1)  # whatever is printed lands on stderr, which must stay empty
    with os.fdopen(said, "w") as stream:
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            print(json.dumps(read(path)), file=stream, flush=True)


if __name__ == "__main__":
    read_all(sys.argv[1]) if len(sys.argv) > 1 else print_table()
