"""The systems to compare: the noisy files, folders of enhanced files, and models that make them.

There is one task per noisy file and system, even if the system has no file for it: then the task
says why, and the file is counted as unscored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.scoring import NOISY, Task, read_at_16k
from speech.base import cli, schema
from speech.base.files import append_text, sha256_of, write_text
from speech.base.lazy import joblib
from speech.base.written import Written
from speech.data import corpus
from speech.data.made import MadeFiles
from speech.data.pairing import key_of
from speech.data.prepared import write_mixtures
from speech.net.enhancer import Enhancer
from speech.sound.audio import write_audio

_logger = logging.getLogger("speech")


@dataclass
class System:
    """One system and its file for each pair.

    Attributes:
        name: Name in the tables.
        source: The folder or model file; '' for the noisy files.
        files: Relative path of the pair -> file, or why there is none.
        sha256: Of a model file.
    """

    name: str
    source: str
    files: dict[str, Path | str] = field(default_factory=dict)
    sha256: str = ""


def bundled_pairs(
    folder: Path, num_each: int, snrs_db: Sequence[float], jobs: int
) -> list[corpus.Pair]:
    """Writes the bundled test set, the same files each time, and returns its pairs.

    Args:
        folder: Gets ``noisy`` and ``clean``.
        num_each: Utterances for each noise and SNR.
        snrs_db: SNRs in dB.
        jobs: Processes.
    """
    plans = corpus.spread_mixtures(
        corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST"), snrs_db, num_each
    )
    write_mixtures(plans, folder, num_jobs=jobs)
    return [plan.pair(folder) for plan in plans]


def noisy_system(pairs: Sequence[corpus.Pair]) -> System:
    """Returns the noisy files as a system."""
    return System(NOISY, "", {pair_name(pair): pair.noisy_path for pair in pairs})


def folder_system(
    name: str,
    folder: Path,
    pairs: Sequence[corpus.Pair],
    noisy_root: Path,
    pair_by: str | None = None,
) -> System:
    """Finds the file of each pair in a folder of enhanced files.

    A file belongs to a pair as `speech.data.made.MadeFiles` says, by the path that the noisy file
    has below its own folder or by ``<noise>/<speaker>/<dB>/<name>``; its name will do where no two
    pairs share it. With ``pair_by``, which is that of `speech.data.corpus.find_matches`, it also
    belongs by what the pattern finds in its name, where that is of one pair only.

    Raises:
        ValueError: The folder is missing or empty, or has a file for no pair.
    """
    made = MadeFiles(folder)
    by_key = defaultdict(list)
    for path in made.paths:
        by_key[key_of(pair_by, path.relative_to(folder))].append(path)
    keys = [key_of(pair_by, pair.noisy_path.relative_to(noisy_root)) for pair in pairs]
    times = Counter(keys)
    names = Counter(pair.name.lower() for pair in pairs)
    system, used = System(name, str(folder)), set()
    for pair, key in zip(pairs, keys, strict=True):
        relatives = pair.noisy_path.relative_to(noisy_root), pair.relative_path
        try:
            found = made.of(*relatives, by_name=names[pair.name.lower()] == 1)
        except ValueError as error:
            own = by_key[key] if key is not None and times[key] == 1 else []
            if len(own) != 1:
                system.files[pair_name(pair)] = str(error)
                continue
            found = own[0]
        system.files[pair_name(pair)] = found
        used.add(found)
    if not used:
        raise ValueError(
            f"{folder}: none of its files belongs to one of {len(pairs)} noisy files, such as "
            f"{pairs[0].relative_path}; name them like the noisy files"
        )
    unused = [str(path) for path in made.paths if path not in used]
    if unused:
        _logger.warning(
            "%d files in %s belong to no noisy file: %s", len(unused), folder, corpus.listed(unused)
        )
    return system


def model_system(
    name: str, model: Path, pairs: Sequence[corpus.Pair], folder: Path, convert: bool, num_jobs: int
) -> System:
    """Applies a model to the noisy files and writes float32 WAVs of peak 1, as published.

    Files made by an earlier run with the same model from the same noisy file are kept.

    Args:
        name: Of the system.
        model: The model file.
        pairs: What to enhance.
        folder: Where ``<noise>/<speaker>/<dB>/<name>.wav`` are written.
        convert: Resample and average channels where needed; otherwise such files are left out.
        num_jobs: Files enhanced side by side; -1 for one per core.

    Raises:
        ValueError: The model is refused.
        OSError: The disk is full.
    """
    enhancer = Enhancer(model)
    made = _Made(folder / "made.jsonl", enhancer.file.sha256)
    num_workers = joblib.cpu_count() if num_jobs < 1 else num_jobs
    if enhancer.engine != "c":
        num_workers = 1

    def work(pair: corpus.Pair) -> Path | str:
        target = folder / pair.relative_path
        try:
            made.once(pair.noisy_path, target, lambda: _enhance(enhancer, pair, target, convert))
        except cli.EXPECTED_ERRORS as error:
            if cli.means_no_room(error):
                raise
            return f"not enhanced: {cli.one_line(error)}"
        return target

    system = System(name, str(model), sha256=enhancer.file.sha256)
    with made, ThreadPoolExecutor(num_workers) as pool:
        results = cli.progress(pool.map(work, pairs), total=len(pairs), label=f"enhancing: {name}")
        for pair, result in zip(pairs, results, strict=True):
            system.files[pair_name(pair)] = result
    return system


def enhanced_alone(
    folders: Sequence[tuple[str, Path]], clean: Path, pair_by: str | None = None
) -> tuple[list[corpus.Pair], list[System], list[tuple[Path, str]]]:
    """Pairs folders of enhanced files with the clean ones where there are no noisy files.

    Files are paired as noisy ones are (`speech.data.corpus.find_matches`). The tables take their
    names from the first folder; files of the other folders are found by these names, and files that
    only the others have come last.

    Args:
        folders: Name of the system, and its folder.
        clean: Folder of the clean files.
        pair_by: See `speech.data.corpus.find_matches`.

    Returns:
        Pairs whose noisy file is an enhanced one, the systems, and files without a clean one.

    Raises:
        ValueError: A folder is missing or empty, or has no file with a clean partner.
    """
    pairs: list[corpus.Pair] = []
    systems, unpaired = [], []
    others = [folder for _, folder in folders]
    for name, folder in folders:
        apart = [other for other in others if other != folder]
        found = corpus.find_matches(folder, clean, pair_by, apart)
        unpaired += found.unpaired
        system = System(name, str(folder))
        new = list(found.pairs)
        for key in (_name_key, _condition_key, _clean_key):
            own, theirs = _grouped(new, key), _grouped(pairs, key)
            for words in own.keys() & theirs.keys():
                if len(own[words]) == len(theirs[words]) == 1:
                    known = pair_name(theirs[words][0])
                    if known not in system.files:
                        system.files[known] = own[words][0].noisy_path
            taken = set(system.files.values())
            new = [pair for pair in new if pair.noisy_path not in taken]
        for pair in new:
            system.files[pair_name(pair)] = pair.noisy_path
        pairs += new
        systems.append(system)
    names = [pair_name(pair) for pair in pairs]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(
            f"{twice}: two of the folders of --enhanced have this name for other clean files; name "
            "and place the files alike in each folder"
        )
    for system in systems:
        for pair in pairs:
            name = pair_name(pair)
            system.files.setdefault(name, f"{system.source}: no file for {name}")
    return pairs, systems, unpaired


def _grouped(
    pairs: Sequence[corpus.Pair], key: Callable[[corpus.Pair], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[corpus.Pair]]:
    groups: dict[tuple[Any, ...], list[corpus.Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair)].append(pair)
    return groups


def _name_key(pair: corpus.Pair) -> tuple[Any, ...]:
    return pair.clean_path, pair.relative_path


def _condition_key(pair: corpus.Pair) -> tuple[Any, ...]:
    return pair.clean_path, pair.noise, corpus.snr_folder(pair.snr_db)


def _clean_key(pair: corpus.Pair) -> tuple[Any, ...]:
    return (pair.clean_path,)


def tasks_of(systems: Sequence[System], pairs: Sequence[corpus.Pair]) -> list[Task]:
    """Returns one task for each pair and system, the systems of a pair side by side."""
    has_noisy = any(system.name == NOISY for system in systems)
    tasks = []
    for pair in pairs:
        for system in systems:
            found = system.files[pair_name(pair)]
            problem = found if isinstance(found, str) else ""
            tasks.append(
                Task(
                    system.name,
                    pair.noisy_path.with_suffix(".missing") if problem else Path(found),
                    pair.clean_path,
                    pair.noise,
                    pair.snr_db,
                    pair_name(pair),
                    pair.noisy_path if has_noisy else None,
                    problem,
                )
            )
    return tasks


def pair_name(pair: corpus.Pair) -> str:
    """Returns the name of a pair in the tables."""
    return pair.relative_path.as_posix()


def _enhance(enhancer: Enhancer, pair: corpus.Pair, target: Path, convert: bool) -> None:
    noisy = read_at_16k(pair.noisy_path, convert)
    write_audio(target, enhancer.enhance(noisy, peak=1.0, threads=1))


@dataclass
class _Line:
    """A line of `_Made`; no hash of the noisy file while a file is being made anew.

    Lines of before have no ``made``: what they name is made again.
    """

    file: str
    noisy_sha256: str | None
    model_sha256: str
    made: Written | None = None


class _Made:
    """A record of the files that earlier runs made, with hashes of their inputs and of themselves.

    A line is added as soon as a file is made, so that a run that is killed resumes where it
    stopped. A file that has been replaced since is made again.
    """

    def __init__(self, path: Path, model_sha256: str) -> None:
        self._path, self._model = path, model_sha256
        self._made: dict[str, tuple[str, Written] | None] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> _Made:
        """Reads what is known; lines of other models, and one that was cut, are dropped."""
        with contextlib.suppress(FileNotFoundError):
            for entry in schema.lines(self._path, _Line):
                if entry.model_sha256 == self._model:
                    self._made[entry.file] = None
                    if entry.noisy_sha256 and entry.made:
                        self._made[entry.file] = entry.noisy_sha256, entry.made
        self._made = {name: known for name, known in self._made.items() if known}
        write_text(self._path, "".join(map(self._line, self._made)))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _line(self, name: str) -> str:
        noisy_sha256, made = self._made[name] or (None, None)
        entry = _Line(name, noisy_sha256, self._model, made)
        return json.dumps(asdict(entry)) + "\n"

    def _note(self, name: str, known: tuple[str, Written] | None) -> None:
        with self._lock:
            self._made[name] = known
            append_text(self._path, self._line(name))

    def once(self, source: Path, target: Path, make: Callable[[], object]) -> None:
        """Calls ``make`` unless ``target`` is what was made from the same ``source``."""
        name = target.relative_to(self._path.parent).as_posix()
        digest = sha256_of(source)
        known = self._made.get(name)
        if known is not None and known[0] == digest and known[1].is_still(target):
            return
        if name in self._made:
            self._note(name, None)
        make()
        self._note(name, (digest, Written.of(target)))
