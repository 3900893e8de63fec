"""Quantizes a model file, with or without fine-tuning: what ``python -m quantization.run`` does.

::

    result = quantize_file("fcn.h5", "small", QuantizationConfig(target_percent=4))
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantization import calibration, graphs
from quantization.accounting import SizeRow, account
from quantization.budget import can_measure
from quantization.config import FINETUNE_EPOCHS, FINETUNE_LEARNING_RATE, QuantizationConfig
from quantization.kmeans import Codebooks, clustered_layers
from quantization.plans import ByK, ByLambda, Plan
from quantization.ratedistortion import RateDistortion, Signals
from quantization.tfmot_bridge import CHECKPOINT, cluster
from speech.base import cli, lazy
from speech.base.device import select_devices
from speech.base.files import held, sha256_of
from speech.data.corpus import Pair
from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import inspect_compact, pack, write_compact
from speech.modelfile.meta import MaskConventions
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK, LayerSpec, ModelFile, sha256_of_weights
from speech.net.folding import fold_batch_normalization
from speech.training.continuing import Continuation, check_trains, continuation
from speech.training.datasets import load_data

if TYPE_CHECKING:
    from quantization import finetune
else:
    finetune = lazy.module("quantization.finetune")

Layers = tuple[LayerSpec, ...]
Say = Callable[[str], None]

CLUSTERED, PACKED = "clustered.h5", "model.icse"
#: Of a target's bytes: what meta data may differ by from the search to the end.
SLACK_BYTES = 24
#: A variance can be too small for FP16.
_STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True)
class QuantizationResult:
    """The result of a quantization.

    Attributes:
        settings: How it was quantized, as the meta data of the files say.
        rows: The size of the packed file by every count (`quantization.accounting`).
        original_bytes: Length of the model's file.
        clustered: The .h5 file that was written.
        clustered_sha256: SHA-256 of that file.
        packed: The .icse file that was written.
        packed_sha256: Likewise.
        packed_bytes: Its length.
        test: ``speech.data.corpus.Pair`` objects to score on; [] for none.
    """

    settings: dict[str, Any]
    rows: list[SizeRow]
    original_bytes: int
    clustered: Path
    clustered_sha256: str
    packed: Path
    packed_sha256: str
    packed_bytes: int
    test: list[Pair]


def quantize_file(
    path: str | os.PathLike,
    out: str | os.PathLike,
    config: QuantizationConfig,
    *,
    say: Say = lambda line: None,
    finish: Callable[[QuantizationResult], None] = lambda result: None,
) -> QuantizationResult:
    """Quantizes a model file; the same call resumes a fine-tuning that was interrupted.

    Args:
        path: The model.
        out: The folder to write.
        config: How.
        say: Called with lines for people, as work goes on.
        finish: Called with the result, such as to score it, before another run may have its folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, a value makes no sense, no data are found, a target cannot
            be reached, or ``out`` is no folder or the model's.
    """
    out = Path(out)
    file = read_model_file(path)
    cli.check_folder(out)
    if file.path.resolve() in ((out / name).resolve() for name in (CLUSTERED, PACKED)):
        raise ValueError(f"{out}: would overwrite the model; choose another -o")
    is_long = config.needs_training_data or config.score
    with held(out) if is_long else contextlib.nullcontext():
        result = _Quantization(file, out, config, say).run()
        finish(result)
    return result


@dataclass(frozen=True)
class _Quantization:
    """One call of `quantize_file`: its arguments, and the steps that share them."""

    file: ModelFile
    out: Path
    config: QuantizationConfig
    say: Say

    def run(self) -> QuantizationResult:
        config, file = self.config, self.file
        _check_recurrent(file, config)
        if not config.keep_norms:
            file = _folded(file, self.say)
        training = None
        if config.needs_training_data:
            check_trains(file)
            training = self.training(file)
        plan, layers, test = self.quantized(file, self.plan(file, training), training)
        layers = packable(layers, config)
        num_dead = len(dead_biases(layers))
        if num_dead:
            self.say(
                f"biases      of {num_dead} layers in front of a normalisation have no effect: zero"
            )
        settings = _settings(file, config, plan.settings)
        meta = _meta(file, settings)
        clustered, packed = self.out / CLUSTERED, self.out / PACKED
        write_model_file(clustered, layers, meta)
        write_compact(packed, layers, meta, entropy=config.entropy)
        found = inspect_compact(packed)
        _check_same(read_model_file(clustered), found.model)
        return QuantizationResult(
            settings=settings,
            rows=account(found, plan.k_of(layers), settings["centroids"]),
            original_bytes=file.path.stat().st_size,
            clustered=clustered,
            clustered_sha256=sha256_of(clustered),
            packed=packed,
            packed_sha256=found.model.sha256,
            packed_bytes=found.file_bytes,
            test=test if config.score is not False else [],
        )

    def training(self, file: ModelFile) -> Continuation:
        """Returns data and settings of the fine-tuning."""
        config = self.config
        select_devices(config.gpu, several=config.method != "tfmot")
        usual = {"epochs": FINETUNE_EPOCHS, "schedule": "cosine"}
        asked = replace(config.train_on, settings={**usual, **config.train_on.settings})
        # A folder that is held: another run's test set must not get in between.
        test_folder = (config.work or self.out) / "test"
        found = continuation(file, asked, FINETUNE_LEARNING_RATE, test_folder)
        self.say(f"data        {found.description}")
        return found

    def plan(self, file: ModelFile, training: Continuation | None) -> Plan:
        """Returns how to quantize."""
        config = self.config
        if not config.is_by_lambda:
            codebooks = Codebooks(
                k=config.k,
                k_last=config.k_last,
                k_of=config.k_of,
                per_sign=config.per_sign,
                centroids=config.centroids or "fp32",
            )
            return ByK(codebooks, self.say)
        how = RateDistortion(
            lam=RateDistortion.lam if config.lam is None else config.lam,
            centroids=config.centroids or "fp16",
            weighting=config.weighting,
        )
        target = config.target_bytes
        if config.target_percent is not None:
            target = int(file.path.stat().st_size * config.target_percent / 100)
        signals = _signals(file, training)
        if config.target_snr_db is not None and not can_measure(file.layers, signals):
            raise ValueError(
                f"{file.path}: --target-snr measures outputs, and networks of this kind are not "
                "run here; give --lambda or a size"
            )
        return ByLambda(
            how, file.layers, signals, partial(_packed_bytes, file, config),
            target, config.target_snr_db, say=self.say,
        )  # fmt: skip

    def quantized(
        self, file: ModelFile, plan: Plan, training: Continuation | None
    ) -> tuple[Plan, Layers, list[Pair]]:
        """Returns the quantized network, trained on if asked, and the test set to score on."""
        start, plan = plan(file.layers, final=training is None)
        work = self.config.work or Path("runs") / "quantization" / self.run_name(start)
        if training is None:
            if not self.config.score:
                self.say("one-shot    not fine-tuned (--finetune-epochs uses the bundled corpus)")
                return plan, start, []
            asked = self.config.train_on
            return plan, start, load_data(asked.data, work / "test", num_jobs=asked.num_jobs).test
        if self.config.method == "tfmot":
            layers = self.with_tfmot(file.layers, start, training, work)
        else:
            layers, plan = self.with_kmeans(file.layers, start, plan, training, work)
        layers = plan.finish(layers)
        if plan.is_missed(layers):
            self.say("target      missed by fine-tuning: quantized once more")
            layers, plan = plan(layers, final=True)
        return plan, layers, training.test

    def run_name(self, layers: Layers) -> str:
        """Returns the name of the folder of checkpoints: other weights are another run."""
        config = self.config
        start = f"{config.method} {config.rounds} {sha256_of_weights(layers)}"
        name = config.name(self.file.path.stem)
        return f"{name}-{hashlib.sha256(start.encode()).hexdigest()[:8]}"

    def with_kmeans(
        self, original: Layers, layers: Layers, plan: Plan, training: Continuation, work: Path
    ) -> tuple[Layers, Plan]:
        """Trains with free weights and quantizes again, round by round; then with tied weights."""
        for number in range(1, self.config.rounds + 1):
            label, config = f"round-{number}", training.config
            one = replace(training, config=replace(config, epochs=1, seed=config.seed + number))
            layers = finetune.fine_tune(
                layers, one, work / label, held=original, on_epoch=partial(_tell, self.say, label)
            )
            layers, plan = plan(layers)
        tell = partial(_tell, self.say, "tied")
        return finetune.fine_tune(layers, training, work / "tied", on_epoch=tell), plan

    def with_tfmot(
        self, layers: Layers, start: Layers, training: Continuation, work: Path
    ) -> Layers:
        """Clusters and fine-tunes through TF-MOT, from the centroids that k-means found."""
        config = training.config
        with held(work / CHECKPOINT):
            return cluster(
                layers,
                codebooks_of(layers, start),
                data=training.training,
                validation=training.validation,
                epochs=(config.epochs or 0) if self.config.finetune else 0,
                learning_rate=config.learning_rate,
                loss=config.loss,
                seed=config.seed,
                progress=partial(_tell, self.say, "tfmot"),
                work=work,
                conv=config.conv,
                conventions=training.conventions,
            )


def _tell(say: Say, label: str, row: dict[str, float]) -> None:
    training = row.get("training_loss")
    shown = "" if training is None else f"training {training:.5f}  "
    if "validation_loss" in row:
        shown += f"validation {row['validation_loss']:.5f}  "
    say(f"{label:<11} epoch {row['epoch']}  {shown}{row['seconds']:.1f} s")


def _check_recurrent(file: ModelFile, config: QuantizationConfig) -> None:
    """Raises ValueError for what only convolutions and matrices can do."""
    layer = next((layer for layer in file.layers if len(layer.kernels) > 1), None)
    if layer is None:
        return
    for is_asked, what in (
        (config.is_by_lambda, "--lambda and targets weigh the kernels of"),
        (config.method == "tfmot", "--method tfmot clusters"),
    ):
        if is_asked:
            raise ValueError(
                f"{file.path}: {what} convolutions and matrices only, and {layer.where} is "
                "recurrent; give -k, by --method kmeans"
            )


def _folded(file: ModelFile, say: Say) -> ModelFile:
    """Returns a model without batch normalisation, as far as it can be folded away."""

    def count(layers: Layers) -> int:
        return sum(layer.class_name == "BatchNormalization" for layer in layers)

    layers = fold_batch_normalization(file.layers) if count(file.layers) else file.layers
    gone, left = count(file.layers) - count(layers), count(layers)
    if gone:
        rest = f", {left} are left" if left else ""
        say(f"folded      {gone} batch normalisations into the layers before them{rest}")
    return replace(file, layers=layers)


def _signals(file: ModelFile, training: Continuation | None) -> Signals:
    """Returns signals to quantize for: of the training data, or of the bundled corpus."""
    signals = (
        calibration.bundled_signals()
        if training is None
        else calibration.signals_of(training.training)
    )
    if file.kind != COMPLEX_MASK:
        return signals
    if not graphs.is_known(file.layers):
        return []
    signals = graphs.at_levels(signals) if training is None else signals
    return graphs.spectra_of(signals, MaskConventions.of(file.meta))


def _settings(file: ModelFile, config: QuantizationConfig, of_plan: dict[str, Any]) -> dict:
    return {
        "method": config.method,
        **of_plan,
        "rounds": config.rounds if config.finetune else 0,
        "epochs": config.num_epochs,
        "from_sha256": file.sha256,
    }


def _meta(file: ModelFile, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the meta data of the results; the masks are left to the zeros that they made."""
    meta = {**file.meta, "created_by": "python -m quantization.run", "quantization": settings}
    if isinstance(meta.get("pruning"), dict):
        meta["pruning"] = {k: v for k, v in meta["pruning"].items() if k != "masks"}
    return meta


def _packed_bytes(
    file: ModelFile, config: QuantizationConfig, layers: Layers, of_plan: dict[str, Any]
) -> int:
    """Returns the most bytes that the packed file of a network will have."""
    meta = _meta(file, _settings(file, config, of_plan))
    return len(pack(packable(layers, config), meta, entropy=config.entropy)) + SLACK_BYTES


def packable(layers: Layers, config: QuantizationConfig) -> Layers:
    """Returns the network with what is not a kernel as it is stored, and no negative zeros."""
    dead = dead_biases(layers)
    rounded = []
    for layer in layers:
        weights = {key: array + np.float32(0) for key, array in layer.weights.items()}
        if layer.name in dead:
            weights["bias"] = np.zeros_like(weights["bias"])
        if config.others == "fp16":
            for key in weights.keys() - {*layer.kernels, *_STATISTICS}:
                weights[key] = _as_fp16(weights[key])
        rounded.append(replace(layer, weights=weights))
    return tuple(rounded)


def _as_fp16(array: np.ndarray) -> np.ndarray:
    """Returns an array rounded to FP16, as it is if that can't hold it."""
    if np.abs(array).max() > float(np.finfo(np.float16).max):
        return array
    return array.astype(np.float16).astype(np.float32)


def dead_biases(layers: Sequence[LayerSpec]) -> set[str]:
    """Returns the layers whose bias the next layer, a normalisation over time, takes out again."""
    found = set()
    for layer, after in zip(layers, layers[1:], strict=False):
        if (
            layer.class_name == "Conv1D"
            and layer.config["activation"] == "linear"
            and "bias" in layer.weights
            and after.class_name == "GroupNormalization"
            and after.config["groups"] in (-1, layer.config["filters"])
        ):
            found.add(layer.name)
    return found


def codebooks_of(layers: Layers, clustered: Layers) -> dict[str, np.ndarray]:
    """Returns the values that the non-zero weights of each layer have after clustering.

    TF-MOT needs two: to a single one its neighbour among floats is added.
    """
    after = {
        layer.name: layer.weights["kernel"] for layer in clustered if "kernel" in layer.weights
    }
    found = {}
    for layer in clustered_layers(layers):
        # A centroid may be zero; the zero of what is pruned is none.
        values = np.unique(after[layer.name][layer.weights["kernel"] != 0])
        if len(values) == 1:
            values = np.append(values, np.nextafter(values[0], np.float32(np.inf)))
        found[layer.name] = values
    return found


def _check_same(one: ModelFile, other: ModelFile) -> None:
    """Raises ValueError unless two files hold the same weights, bit for bit."""
    for a, b in zip(one.layers, other.layers, strict=True):
        for key, array in a.weights.items():
            if array.tobytes() != b.weights[key].tobytes():
                raise ValueError(f"{other.path}: {a.name}/{key} differs from {one.path}")
