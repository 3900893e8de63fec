"""On a Dask cluster: workers that die, schedulers that are not there, and the same results."""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from eval import run, scoring, sweep
from speech import prepare
from speech.base import cluster
from speech.base.cluster import Failed
from speech.base.files import atomic_path
from speech.data import corpus, prepared
from speech.sound.audio import read_audio, write_audio
from tests.builders import digests, wait_until

ROOT = Path(__file__).parent.parent

HAS_DASK = importlib.util.find_spec("distributed") is not None
needs_dask = pytest.mark.skipif(not HAS_DASK, reason="needs the extra 'cluster'")

# Of Dask itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def local():
    """Two workers on this machine, which come back when they die."""
    if not HAS_DASK or importlib.util.find_spec("cryptography") is None:
        pytest.skip("needs the extra 'cluster'")
    with cluster.connected("local", 2) as connection:
        yield connection


@pytest.fixture
def pairs(tmp_path):
    """Eight noisy files, u0 to u7, of 1.5 s each with their clean ones, in ``tmp_path/pairs``."""
    for place in range(8):
        path = corpus.bundled_speech("TEST")[place].path
        samples = read_audio(path).samples[8000:32000]
        write_audio(tmp_path / f"speech/u{place}.wav", samples)
    plans = corpus.plan_mixtures(
        corpus.find_speech(tmp_path / "speech"), corpus.bundled_noise("TEST")[:1], [5.0]
    )
    prepared.write_mixtures(plans, tmp_path / "pairs")
    return tmp_path / "pairs"


# --------------------------------------------------------------------------------------------
# Run by the workers, which import this module


def double(number, folder):
    """Notes that it was called, and dies on 13, and on 5 the first time."""
    with open(folder / "calls.txt", "a") as stream:
        stream.write(f"{number}\n")
    first = number == 5 and not (folder / "died").exists()
    if first:
        (folder / "died").touch()
    if first or number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def refuse(number):
    raise OSError(28, "No space left on device", f"file{number}")


def score_or_die(task, metrics, convert):
    """Scores, and dies in the middle of one file the first time."""
    scores = scoring._score_isolated(task, metrics, convert)
    folder = task.reference.parents[2]
    with open(folder / "scored.txt", "a") as stream:
        stream.write(f"{task.name}\n")
    if task.name == "u3" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return scores


def mix_or_die(plans, out, subtype):
    """Mixes, and dies with half a file: on one utterance always, on another the first time."""
    name = plans[0].utterance.id
    if name == "FAKS0_SA1" or (name == "MABW0_SX37" and not (out.parent / "died").exists()):
        (out.parent / "died").touch()
        prepared._mix_utterance(plans[:1], out, subtype)
        with atomic_path(out / "noisy" / plans[1].relative_path) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    return prepared._mix_on_cluster(plans, out, subtype)


# --------------------------------------------------------------------------------------------


def test_dead_workers_cost_only_the_task_that_kills_them(local, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "TASKS_A_THREAD", 3)
    monkeypatch.setattr(cluster, "MOST_CALLS", 4)
    drawn = 0

    def calls():
        nonlocal drawn
        for number in range(60):
            drawn += 1
            yield number, tmp_path

    results, most_waiting = {}, 0
    for place, result in local.map(double, calls(), 60):
        assert place not in results
        results[place] = result
        most_waiting = max(most_waiting, drawn - len(results))
    reason = results.pop(13).reason
    assert results == {number: 2 * number for number in range(60) if number != 13}
    assert "2 Dask workers died while they had it" in reason
    # Four calls in each of the tasks on their way; and what died with them waits for the end.
    assert most_waiting <= 2 * 4 * 3 * 2
    called = Counter((tmp_path / "calls.txt").read_text().split())
    assert 2 < called["13"] <= 4  # two workers when it was alone, two at most among the others
    assert called["5"] > 1 == called["59"]


def test_many_calls_share_a_task_and_few_do_not(local, monkeypatch):
    sizes = []
    submit = local._client.submit

    def count(work, packed, **kwargs):
        sizes.append(len(pickle.loads(packed)[1]))
        return submit(work, packed, **kwargs)

    monkeypatch.setattr(local._client, "submit", count)
    results = dict(local.map(abs, ((-number,) for number in range(1000)), 1000))
    assert results == {number: number for number in range(1000)}
    assert sum(sizes) == 1000 and len(sizes) < 150
    assert sizes[:8] == [16] * 8 and sizes[-8:] == [1] * 8


def test_a_result_that_is_lost_on_its_way_is_asked_for_again(local, monkeypatch):
    import distributed

    class Forgetful(distributed.as_completed):
        num_made = 0

        def next_batch(self, block):
            batch = super().next_batch(block=block)
            return batch if Forgetful.num_made > 1 else []

        def __init__(self, *args, **kwargs):
            Forgetful.num_made += 1
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(distributed, "as_completed", Forgetful)
    monkeypatch.setattr(cluster, "_ASK_AGAIN_S", 1.0)
    assert dict(local.map(abs, [(-1,), (-2,)], 2)) == {0: 1, 1: 2}
    assert Forgetful.num_made > 1


def test_what_a_task_raises_ends_the_run(local):
    with pytest.raises(OSError, match="No space left on device") as caught:
        list(local.map(refuse, ((number,) for number in range(9)), 9))
    assert caught.value.filename.startswith("file")


def test_what_workers_cannot_import_is_said(local, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(number): return number\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("only_here").work
    with pytest.raises(ValueError, match="worker lacks what it needs .*only_here.*; install"):
        list(local.map(work, [(1,)], 1))


def test_a_worker_killed_in_mid_run_loses_no_score_and_doubles_none(
    local, pairs, tmp_path, monkeypatch
):
    tasks = [
        scoring.Task("noisy", pair.noisy_path, pair.clean_path, "n", 5.0, pair.name)
        for pair in corpus.find_pairs(pairs / "noisy", pairs / "clean")
    ]
    tasks.append(scoring.Task("noisy", pairs / "no.wav", tasks[0].reference, "n", 5.0, "no"))
    expected = scoring.score_all(tasks, 2, ("stoi", "si_sdr"))
    monkeypatch.setattr(scoring, "_score_isolated", score_or_die)
    path = tmp_path / "cache.jsonl"
    cache = scoring.ScoreCache(path)
    rows = scoring.score_all(tasks, 2, ("stoi", "si_sdr"), cache=cache, cluster=local)
    assert (tmp_path / "died").exists()
    assert scoring.to_csv(rows) == scoring.to_csv(expected)
    assert [row["status"] == "ok" for row in rows] == [True] * 8 + [False]
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 8
    scored = Counter((tmp_path / "scored.txt").read_text().split())
    assert len(scored) == 9
    # What the dead worker was at, and what it still held, is done again; nothing else is.
    assert max(scored.values()) == 2 and scored.total() < 9 + 2 + cluster.TASKS_A_THREAD
    assert scored["u3"] == 2
    monkeypatch.setattr(scoring, "_score_isolated", None)  # whatever is scored again fails
    again = scoring.score_all(tasks[:8], 1, ("stoi", "si_sdr"), cache=scoring.ScoreCache(path))
    assert scoring.to_csv(again) == scoring.to_csv(expected[:8])


def inodes(folder):
    return {path: path.stat().st_ino for path in folder.rglob("*.wav")}


def test_prepare_on_dying_workers_writes_the_same_bytes(
    local, timit, noises, tmp_path, monkeypatch, capsys
):
    snrs_db = [-5, 0, 5.5]
    prepared.prepare(timit, noises, snrs_db, tmp_path / "one")
    expected = digests(tmp_path / "one")
    out = tmp_path / "two"
    monkeypatch.chdir(tmp_path)  # the workers stand elsewhere
    sources = [Path("TIMIT"), Path("noises")]
    with monkeypatch.context() as patched:
        patched.setattr(prepared, "_mix_on_cluster", mix_or_die)
        report = prepared.prepare(*sources, snrs_db, Path("two"), cluster=local)
    ((source, reason),) = report.skipped
    assert source == str(timit / "TEST/DR1/FAKS0/SA1.WAV")
    assert reason == f"{source}: 2 Dask workers died while they had it"
    lost = {name: digest for name, digest in expected.items() if "FAKS0_SA1" in name}
    assert len(lost) == 1 + 2 * 3
    found = digests(out)
    with open(out / "manifest.csv", newline="") as stream:
        rows = [row["clean"] for row in csv.DictReader(stream)]
    assert len(rows) == 7 * 2 * 3 and "clean/FAKS0_SA1.wav" not in rows
    found["manifest.csv"] = expected["manifest.csv"]
    assert found == {name: digest for name, digest in expected.items() if name not in lost}

    before = inodes(out)
    monkeypatch.chdir("/")
    report = prepared.prepare(timit, noises, snrs_db, out)
    assert not report.skipped
    assert digests(out) == expected
    assert before.items() < inodes(out).items()  # only what was missing has been written


def test_prepare_needs_files_that_all_see(tmp_path):
    with pytest.raises(ValueError, match="out: is not there for the Dask worker on .*same files"):
        prepared._mix_on_cluster([], tmp_path / "out", "FLOAT")


def test_a_sweep_gives_the_same_table(local, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "draw", lambda *_: None)
    points = [sweep.Point("small", ROOT / "models/fcn_small.icse")]
    chosen = corpus.find_pairs(pairs / "noisy", pairs / "clean")[:3]
    sweep.sweep(points, chosen, tmp_path / "one", num_jobs=1)
    sweep.sweep(points, chosen, tmp_path / "two", cluster=local)
    for name in ("scores.csv", "sweep.csv", "sweep.md"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


# --------------------------------------------------------------------------------------------
# Clusters of other processes


@contextlib.contextmanager
def dask(*words):
    """Runs ``dask ...`` in another folder; kills it in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *words], cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def scheduler():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    with dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard") as process:
        yield process, f"tcp://127.0.0.1:{port}"


@needs_dask
def test_a_command_survives_one_worker_and_ends_without_any(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "PATIENCE_S", 2.0)
    words = ["--clean", "pairs/clean", "--noisy", "pairs/noisy", "--metrics", "pesq_wb", "stoi"]
    assert run.main([*words, "--jobs", "2", "--out", "one"]) == 0
    expected = Path("one/scores.csv").read_text()
    cache = Path("two/cache.jsonl")

    def num_scored():
        return len(cache.read_text().splitlines()) if cache.exists() else 0

    def kill_when(count, worker):
        assert wait_until(lambda: num_scored() >= count, 60)
        worker.kill()

    with scheduler() as (_, address), contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                dask("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
            )
            for _ in range(2)
        ]
        killers = [
            threading.Thread(target=kill_when, args=(count, worker))
            for count, worker in zip((1, 3), workers, strict=True)
        ]
        for killer in killers:
            killer.start()
        monkeypatch.setattr(cluster, "TASKS_A_THREAD", 1)  # few results come after a death
        words += ["--out", "two"]
        capsys.readouterr()
        assert run.main([*words, "--dask", address]) == 1
        assert capsys.readouterr().err == (
            f"error: {address}: no Dask worker for 2 s; start some and repeat the command: it "
            "goes on\n"
        )
        for killer in killers:
            killer.join()
        kept = cache.read_text()
        assert 3 <= num_scored() < 8
        with dask("worker", address, "--nthreads", "2", "--no-nanny", "--no-dashboard"):
            monkeypatch.setattr(cluster, "PATIENCE_S", 60.0)
            assert run.main([*words, "--dask", address]) == 0
    assert cache.read_text().startswith(kept) and num_scored() == 8
    assert Path("two/scores.csv").read_text() == expected


@needs_dask
def test_a_scheduler_that_goes_away_ends_the_run(monkeypatch):
    with scheduler() as (process, address):
        with cluster.connected(address) as connection:
            threading.Timer(1.0, process.kill).start()
            with pytest.raises(ValueError, match="the Dask scheduler is gone; start it and repeat"):
                list(connection.map(os.path.exists, [("x",)], 1))


@contextlib.contextmanager
def other_service(answer):
    """Yields the address of a server that is no scheduler, and says the same to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])
                    taken[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()
        server.shutdown(socket.SHUT_RDWR)


@needs_dask
@pytest.mark.parametrize("command", [prepare, run, sweep])
def test_a_wrong_address_is_one_line_in_time(command, timit, noises, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "TIMEOUT_S", 0.5)
    words = {
        prepare: ["--clean", timit, "--noise", noises, "--snr", 0],
        run: ["--clean", timit, "--noisy", timit],
        sweep: ["--model", ROOT / "models/fcn_small.icse", "--num-test", 1],
    }[command]
    words = [str(word) for word in (*words, "--out", tmp_path / "out")]
    with other_service(b"") as mute, other_service(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web:
        for address in ("tcp://127.0.0.1:9", mute, web, "nowhere", "http://127.0.0.1:9", ""):
            started = time.monotonic()
            assert command.main([*words, "--dask", address]) == 1
            assert time.monotonic() - started < 10
            error = capsys.readouterr().err
            assert error.startswith(f"error: {address}: no Dask scheduler answers")
            assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@needs_dask
def test_the_address_of_a_worker_is_none():
    from distributed import LocalCluster

    settings = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, **settings) as own:
        address = next(iter(own.workers.values())).address
        with pytest.raises(ValueError, match="is a Dask worker; give the scheduler's address"):
            with cluster.connected(address):
                pass


@pytest.mark.parametrize("command", [prepare, run, sweep])
def test_the_option_says_the_same_everywhere(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "on a Dask cluster: tcp://HOST:PORT, or local; its workers must see the same" in text


def test_without_dask_the_option_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with cluster.connected(None) as connection:
        assert connection is None
    with pytest.raises(ValueError, match=r"pip install 'dask\[distributed\]'"):
        with cluster.connected("local"):
            pass


@needs_dask
def test_without_keys_no_local_cluster_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ValueError, match="pip install cryptography, or leave --dask out"):
        with cluster.connected("local"):
            pass


def test_strangers_on_this_machine_run_nothing_in_a_local_cluster(local, tmp_path):
    from distributed import Client

    scheduler = local._client.scheduler.address
    workers = list(local._client.scheduler_info()["workers"])
    assert len(workers) == 2 and all(name.startswith("tls://127.0.0.1:") for name in workers)
    assert scheduler.startswith("tls://127.0.0.1:")
    served = local._client.cluster.scheduler.http_server._sockets.values()
    assert {own.getsockname()[0] for own in served} == {"127.0.0.1"}
    for address in (scheduler, scheduler.replace("tls:", "tcp:")):
        with pytest.raises((OSError, TypeError, ValueError)):
            Client(address, timeout=2, set_as_default=False).close()
        with pytest.raises(ValueError, match="no Dask scheduler answers"):
            cluster._check_address(address)
    assert dict(local.map(double, [(1, tmp_path), (2, tmp_path)], 2)) == {0: 2, 1: 4}


def test_a_failed_file_has_no_score(tmp_path):
    class Dying:
        def map(self, function, calls, total):
            return ((place, Failed("2 Dask workers died")) for place, _ in enumerate(calls))

        def tell(self, function):
            pass

    task = scoring.Task("noisy", tmp_path / "n.wav", tmp_path / "c.wav", "n", 5.0, "x")
    cache = scoring.ScoreCache(tmp_path / "cache.jsonl")
    (row,) = scoring.score_all([task], 1, ("stoi",), cache=cache, cluster=Dying())
    assert row["status"] == "2 Dask workers died" and row["stoi"] != row["stoi"]
    assert not (tmp_path / "cache.jsonl").exists()
