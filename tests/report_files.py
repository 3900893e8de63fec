"""Run folders as the commands write them, small and without any training."""

from __future__ import annotations

import csv
import json

import numpy as np
import soundfile

from tests.builders import make_speech, write_sound

RATE = 16000
NOISES, SNRS_DB = ("birds", "rain"), (0, 10)

#: Hostile on purpose.
EVIL = '<img src=x onerror="alert(1)">'


def names():
    return [f"{noise}/S1/{snr}db/U{i}.wav" for noise in NOISES for snr in SNRS_DB for i in (1, 2)]


def write_audio(root, systems, seed=1, scale=1.0):
    """Writes root/test/noisy, root/test/clean and a folder for each (name, gain) of systems."""
    rng = np.random.default_rng(seed)
    for index in (1, 2):
        clean = make_speech(rng, RATE)
        write_sound(root / "test" / "clean" / f"U{index}.wav", scale * clean)
        for name in (name for name in names() if name.endswith(f"U{index}.wav")):
            noise = 0.05 * rng.standard_normal(RATE)
            write_sound(root / "test" / "noisy" / name, scale * (clean + noise))
            for system, share in systems.items():
                write_sound(root / system / name, clean + share * noise)


def rows(systems, metrics=("pesq_wb", "stoi"), shift=0.0):
    """Rows of scores.csv: noisy 1.0, 1.1, ...; each system's gain grows along the names."""
    result = []
    for place, name in enumerate(names()):
        noise, _, snr, _ = name.split("/")
        for number, system in enumerate(["noisy", *systems]):
            base = {"pesq_wb": 1.0 + 0.1 * place + shift, "stoi": 0.7, "pesq_nb": 1.5}
            gain = 0.01 * number * (place + 1)
            result.append(
                {"system": system, "noise": noise, "snr_db": float(snr[:-2]), "name": name}
                | {metric: base[metric] + gain for metric in metrics}
                | {"status": "ok"}
            )
    return result


def write_rows(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, table[0].keys())
        writer.writeheader()
        writer.writerows(table)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def training_run(root):
    """As timit_fcn_mse.py leaves it."""
    write_audio(root, {"FCN_TIMIT_MSE_wav": 0.3})
    write_rows(root / "scores.csv", rows(["enhanced"]))
    info = {"model": "gone.h5", "model_sha256": "0", "command": ["timit_fcn_mse.py", EVIL]}
    write_json(root / "results.json", info)
    (root / "model.h5").write_bytes(b"0" * 2000)
    (root / "history.csv").write_text(
        "epoch,training_loss,validation_loss\n1,0.2,0.1\n2,0.1,0.05\n3,0.08,0.06\n"
    )
    return root


def evaluation_run(root, systems=("pruned", "small"), **more):
    """As eval.run leaves it."""
    write_audio(root, {f"enhanced/{name}": 0.1 for name in systems})
    write_rows(root / "scores.csv", rows(systems, **more))
    info = {
        "systems": [{"name": "noisy", "source": "", "sha256": None}]
        + [
            {"name": name, "source": f"{name}.h5", "sha256": "1", "file_bytes": 1000 * place}
            for place, name in enumerate(systems, 1)
        ],
        "folders": {kind: str(root / "test" / kind) for kind in ("noisy", "clean")},
    }
    write_json(root / "summary.json", info)
    return root


def sweep_run(root):
    """As eval.sweep leaves it."""
    models = [("fcn", {}), ("k16", {"theta": 0.65, "k": 16}), ("k4", {"theta": 0.65, "k": 4})]
    write_audio(root, {f"enhanced/{name}": 0.2 for name, _ in models})
    write_rows(root / "scores.csv", rows([name for name, _ in models]))
    info = {
        "models": [{"name": n, "path": f"{n}.h5", "sha256": "1", "labels": ls} for n, ls in models],
        "table": [{"name": "noisy", "file_bytes": None}]
        + [{"name": n, "file_bytes": 4000 >> i} for i, (n, _) in enumerate(models)],
    }
    write_json(root / "sweep.json", info)
    return root


def selection_run(root, source, files, scale=2.0):
    """As mnn.select --json leaves it, for files of another run, at another level."""
    listed = []
    for name in files:
        noisy, _ = soundfile.read(source / "test" / "noisy" / name)
        write_sound(root / "noisy" / name, scale * noisy)
        write_sound(root / "selected" / name, 0.5 * noisy)
        listed.append(
            {
                "input": str(root / "noisy" / name),
                "output": str(root / "selected" / name),
                "scores": {"expert_birds": 12.5, "expert_rain": 31.0},
                "pick": "expert_birds",
                "segments": [{"start_s": 0.0, "pick": "expert_birds"}],
            }
        )
    info = {
        "dae": {},
        "experts": [{"name": "expert_birds"}, {"name": "expert_rain"}],
        "files": listed,
        "picks": {"expert_birds": len(listed), "expert_rain": 0},
        "metric": "ae",
        "scoring": "voiced",
    }
    write_json(root / "select.json", info)
    return root


def experiment_run(root):
    """As mnn.experiments leaves it."""
    line = {"condition": "birds", "n": 4, "unscored": 0, "birds": 9.5, "chance": 5.25,
            "oracle": 10.0, "recovery": {"ae": 0.5}}  # fmt: skip
    info = {
        "experiment": "noise",
        "scale": "bundled",
        "experts": ["birds", "rain"],
        "default": "ae voiced 128",
        "table": [{"metric": "sdr", **line}, {"metric": "stoi", **line}],
        "confusion": {"ae voiced 128": [[4, 0], [1, 3]]},
        "published": {"sdr": {"experts": ["birds"], "columns": ["chance"],
                              "rows": {"birds": [13.71, 7.5]}}},
    }  # fmt: skip
    write_json(root / "results.json", info)
    return root
