"""python -m speech.doctor: each fault is found and named with its fix; all well gives 0."""

import importlib.metadata
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from speech import doctor
from speech.data.corpus import bundled_noise
from speech.net import blockconv

ROOT = Path(__file__).parent.parent
QUICK = ("packages", "processor", "disk", "corpus", "C compiler")


def trouble(check, *arguments):
    with pytest.raises(doctor.Trouble) as found:
        check(*arguments)
    assert found.value.fix
    return str(found.value), found.value.fix


def versions(monkeypatch, **changed):
    real = importlib.metadata.version

    def version(name):
        if name in changed:
            if changed[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return changed[name]
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_bounds_are_those_of_the_set_up():
    text = (ROOT / "setup.py").read_text().partition("extras_require")[0]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)', text.partition("install_requires")[2]))
    assert bounds.pop("jinja2", None) is None
    assert bounds == doctor.PACKAGES


def test_packages_missing_and_old(monkeypatch):
    assert "keras" in doctor.check_packages()
    versions(monkeypatch, pesq=None, soxr="0.4.9", numpy="2.10")
    what, fix = trouble(doctor.check_packages)
    assert what == "soxr 0.4.9 is older than 0.5, pesq is missing"
    assert fix == "pip install -r requirements.txt"
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.12")
    assert "3.10.12 is too old" in trouble(doctor.check_packages)[0]


def test_no_room(monkeypatch, tmp_path):
    assert "GB free" in doctor.check_disk(tmp_path)
    full = shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: full)
    what, fix = trouble(doctor.check_disk, tmp_path)
    assert "only 1.0 GB" in what and str(tmp_path) in fix


def test_no_compiler(monkeypatch):
    blockconv.library.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(blockconv.shutil, "which", lambda _: None)
    try:
        what, fix = trouble(doctor.check_kernels)
        assert "no C compiler" in what and "gcc" in fix
        blockconv.library.cache_clear()
        monkeypatch.setenv("CC", "false")
        assert "did not compile" in trouble(doctor.check_kernels)[0]
    finally:
        blockconv.library.cache_clear()
    monkeypatch.setenv("SPEECH_NO_C_KERNELS", "1")
    assert trouble(doctor.check_kernels)[1] == "unset SPEECH_NO_C_KERNELS"


CARD = {"device_name": "GTX 1080 Ti", "compute_capability": (6, 1)}


def gpus(monkeypatch, seen, cards=()):
    monkeypatch.setattr(doctor, "tensorflow_gpus", lambda: seen)
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: list(cards))


def test_pascal_with_a_cudnn_that_dropped_it(monkeypatch):
    gpus(monkeypatch, [CARD])
    versions(monkeypatch, **{"nvidia-cudnn-cu12": "9.11.0.98"})
    what, fix = trouble(doctor.check_gpu)
    assert "6.1" in what and "9.11.0.98" in what
    assert fix == "pip install -r requirements-pascal.txt"
    versions(monkeypatch, **{"nvidia-cudnn-cu12": "9.10.2.21"})
    assert doctor.check_gpu() == "GTX 1080 Ti; cuDNN 9.10.2.21"


def test_a_card_that_tensorflow_does_not_see(monkeypatch):
    gpus(monkeypatch, [], [("A100", (8, 0))])
    versions(monkeypatch, tensorflow="2.21.0")
    what, fix = trouble(doctor.check_gpu)
    assert "A100" in what and fix == "pip install 'tensorflow[and-cuda]==2.21.0'"
    gpus(monkeypatch, [], [("GTX 1080", (6, 1))])
    assert trouble(doctor.check_gpu)[1] == "pip install -r requirements-pascal.txt"
    gpus(monkeypatch, [])
    assert "CPU" in doctor.check_gpu()


def test_the_driver_is_asked(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce GTX 1080 Ti, 6.1'\necho 'H200, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor.nvidia_cards() == [("NVIDIA GeForce GTX 1080 Ti", (6, 1)), ("H200", (9, 0))]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.nvidia_cards() == []


class FakeKeras:
    """Convolves wrongly, or not at all."""

    class ops:
        @staticmethod
        def conv(signal, kernel):
            length = signal.shape[1] - len(kernel) + 1
            return np.zeros((1, length, kernel.shape[2]), np.float32)

        convert_to_numpy = staticmethod(np.asarray)

    class device:
        def __init__(self, name):
            if name == "gpu:0":
                raise RuntimeError("no kernel image is available\nfor execution")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None


def test_a_device_that_convolves_wrongly_or_not():
    assert "wrong by 1e+02 %" in trouble(doctor.convolve_on, FakeKeras, "cpu:0")[0]
    what, fix = trouble(doctor.convolve_on, FakeKeras, "gpu:0")
    assert "no kernel image is available for execution" in what and "pascal" in fix


def test_a_convolution_on_this_machine():
    assert "cpu:0" in doctor.check_convolutions()


def test_a_network_on_this_machine(monkeypatch):
    expected = "C kernels and Keras agree" if blockconv.is_available() else "Keras runs it"
    assert expected in doctor.check_network()
    monkeypatch.setattr(doctor, "_TOLERANCE", -1.0)
    if blockconv.is_available():
        assert "differ by" in trouble(doctor.check_network)[0]


def test_corpora(monkeypatch, tmp_path, timit, noises):
    from speech.data import corpus

    assert "8 noises" in doctor.check_bundled_corpus()
    copy = tmp_path / "speech" / "minicorpus"
    shutil.copytree(corpus.MINICORPUS, copy)
    monkeypatch.setattr(corpus, "MINICORPUS", copy)
    damaged = sorted(copy.rglob("*.flac"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    what, fix = trouble(doctor.check_bundled_corpus)
    assert "1 files" in what and damaged.name in what and "git checkout" in fix
    (copy / "MANIFEST.sha256").unlink()
    assert "MANIFEST" in trouble(doctor.check_bundled_corpus)[0]

    assert "TEST 4 utterances of 2 speakers" in doctor.check_timit(timit)
    assert "2 noises" in doctor.check_noise(noises)
    assert "opencorpus" in trouble(doctor.check_timit, tmp_path / "none")[1]
    (tmp_path / "empty").mkdir()
    assert "opencorpus" in trouble(doctor.check_noise, tmp_path / "empty")[1]


def test_models(tmp_path):
    kinds = "1 autoencoder, 8 complex_mask, 3 mask, 15 waveform"
    assert doctor.check_models().endswith(f"all can be read: {kinds}")
    assert "no model" in trouble(doctor.check_models, tmp_path)[0]
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n cut")
    what, fix = trouble(doctor.check_models, tmp_path)
    assert "broken.h5" in what and fix == "git checkout -- models"


def only(monkeypatch, *names):
    real = doctor.checks_of
    monkeypatch.setattr(
        doctor, "checks_of", lambda *folders: [c for c in real(*folders) if c[0] in names]
    )


def test_the_command(monkeypatch, capsys):
    only(monkeypatch, *QUICK)
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert text.count("ok ") == len(QUICK) and "All is well" in text
    monkeypatch.setattr(doctor, "check_disk", lambda: 1 / 0)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert re.search(r"WRONG disk .*ZeroDivisionError", text) and "1 of these" in text
    assert text.count("fix: ") == 1


def test_a_named_corpus_is_checked(monkeypatch, capsys, tmp_path):
    only(monkeypatch, "--timit", "--noise")
    noise = str(bundled_noise("TEST")[0].path.parent.parent)
    assert doctor.main(["--timit", str(tmp_path), "--noise", noise]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("WRONG --timit") and lines[1].strip().startswith("fix: ")
    assert lines[2].startswith("ok    --noise")
