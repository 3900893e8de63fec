"""What ``python -m benchmarks.reproduce`` runs: the steps of each section, full and small.

A step is one command of this repository. Steps of a section stand in the order in which they can
run; what starts from the model of another step names that as a source.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "models/fcn.h5"
SMALLEST = "models/fcn_small.icse"
FOR_USE = "models/denoise.icse"

#: Soft pruning and fine-tuning of ``docs/compression.md``.
BATCH_SIZE = 4
#: Shares of the channels to prune, in percent; the first is the one that is quantized every way.
SHARES = (22, 15)
#: Of the one model at the second share.
K_MAIN = 16
#: Of the experts' copies that choose.
K_EXPERTS = 32
EXPERIMENTS = ("noise", "gender", "snr")
METRICS = ("pesq_wb", "pesq_nb", "stoi", "ssnri", "si_sdr")


Command = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        stages: Of soft pruning.
        stage_steps: Training steps of each.
        final_epochs: After the stages, each of ``stage_steps``.
        finetune_steps: Of the tied weights, in two epochs.
        ks: Centroids of a layer.
        targets: Sizes of the smallest files, in percent of the ``.h5``.
        num_open: Test files a noise and SNR of the open corpus.
        num_bundled: Likewise of the bundled one.
        thetas: Of the grid; '0.65' or 'none'.
        formats: Of the centroids in the grid.
        rounds: Of timings.
        lengths_s: Seconds of audio that are timed.
        two_stage: Experiments whose experts are quantized to choose.
        room_epochs: Of 500 steps, or of ``stage_steps`` where that is less.
    """

    stages: int = 7
    stage_steps: int = 100
    final_epochs: int = 6
    finetune_steps: int = 200
    ks: tuple[int, ...] = (4, 8, 16, 32, 64)
    targets: tuple[int, ...] = (4, 3)
    num_open: int = 2
    num_bundled: int = 6
    thetas: tuple[str, ...] = ("0.65", "0.70", "none")
    formats: tuple[str, ...] = ("fp32", "fp16", "int8")
    rounds: int = 21
    lengths_s: tuple[int, ...] = (1, 3, 10, 60)
    two_stage: tuple[str, ...] = EXPERIMENTS
    room_epochs: int = 3


FULL = Size()
SMALL = Size(
    stages=2,
    stage_steps=2,
    final_epochs=1,
    finetune_steps=4,
    ks=(4, 16),
    targets=(4,),
    num_open=1,
    num_bundled=1,
    thetas=("0.65", "none"),
    formats=("fp32", "int8"),
    rounds=7,
    lengths_s=(1,),
    two_stage=("noise",),
    room_epochs=1,
)


@dataclass(frozen=True)
class Setting:
    """Where everything is and goes.

    Attributes:
        out: Absolute folder of models, logs and records.
        small: The reduced version.
        speech: Tree of speech to train and test on, absolute; None for the bundled corpus.
        noise: Noise to mix it with.
        scale: Of the experiments of selection on them: 'open', or 'paper' for TIMIT.
        gtcrn: The streaming GTCRN as ONNX, absolute; None leaves it out.
        dtln: Both networks of DTLN, likewise.
    """

    out: Path
    small: bool = False
    speech: Path | None = None
    noise: Path | None = None
    scale: str = "open"
    gtcrn: Path | None = None
    dtln: tuple[Path, ...] = ()

    @property
    def size(self) -> Size:
        """How much is run."""
        return SMALL if self.small else FULL

    def word(self, path: Path) -> str:
        """Returns a path as commands in the root of the repository write it."""
        return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)

    def at(self, *parts: str) -> str:
        """Returns a path below ``out`` as commands write it."""
        return self.word(self.out.joinpath(*parts))

    @property
    def data(self) -> tuple[str, ...]:
        """Options of the commands that train or mix."""
        if self.speech is None or self.noise is None:
            return ()
        return ("--timit", self.word(self.speech), "--noise", self.word(self.noise))

    @property
    def onnx(self) -> tuple[str, ...]:
        """Options of the commands that run networks of others."""
        words = ("--gtcrn", self.word(self.gtcrn)) if self.gtcrn else ()
        return words + (("--dtln", *map(self.word, self.dtln)) if self.dtln else ())


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Unique, such as 'compression/pp22'.
        command: Module and arguments, to be run in the root of the repository.
        results: Files or folders that it writes, relative to that root or absolute; the first is
            the one that ``--adopt`` puts in place.
        sources: Models that it starts from, likewise.
    """

    name: str
    command: tuple[str, ...]
    results: tuple[str, ...]
    sources: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The command as a shell reads it."""
        return f"python -m {shlex.join(self.command)}"


def use(setting: Setting) -> list[Step]:
    """The network for use beside other people's tools, those that are here.

    Rows of what has not changed, and of tools that are not here, stay as ``results`` has them.
    """
    models = {"denoise": FOR_USE, "fcn": BASELINE, "fcn_small": SMALLEST}
    result = setting.at("use", "cost.json")
    command: Command = ("eval.cost", *models.values(), "--json", result)
    steps = [Step("use/cost", command, (result,), tuple(models.values()))]
    for name in ("open", "rooms"):
        result = setting.at("use", f"{name}.json")
        own = {key: path for key, path in models.items() if name == "open" or path != SMALLEST}
        command = ("benchmarks.quality", *setting.data, "--num-test", str(setting.size.num_open))
        command += ("--rooms",) if name == "rooms" else ()
        command += ("--snr", "5") if setting.small else ()
        command += ("--model", *(f"{key}={path}" for key, path in own.items()))
        command += (*setting.onnx, "--json", result)
        command += () if setting.small else ("--keep", f"results/use/{name}.json")
        steps.append(Step(f"use/{name}", command, (result,), tuple(own.values())))
    return steps


def compression(setting: Setting) -> list[Step]:
    """Pruned, quantized, both, and the smallest file; scored on two test sets."""
    size, models = setting.size, compressed_models(setting)
    steps = [_soft_pruned(setting, share) for share in SHARES]
    pruned = setting.at("compression", f"{pruned_name(SHARES[0])}.h5")
    steps += [_tied(setting, f"pq-k{k}", BASELINE, k) for k in size.ks]
    steps += [_tied(setting, f"{pruned_name(SHARES[0])}-k{k}", pruned, k) for k in size.ks]
    other = setting.at("compression", f"{pruned_name(SHARES[1])}.h5")
    steps.append(_tied(setting, f"{pruned_name(SHARES[1])}-k{K_MAIN}", other, K_MAIN))
    for percent in size.targets:
        name = f"{pruned_name(SHARES[0])}-t{percent}"
        out = setting.at("compression", name)
        command: Command = ("quantization.run", pruned, "--target-percent", str(percent), "-o", out)
        steps.append(Step(f"compression/{name}", command, (f"{out}/model.icse",), (pruned,)))
    sources = tuple(models.values())
    sizes = setting.at("compression", "sizes.json")
    command = ("eval.cost", *sources, "--baseline", BASELINE, "--json", sizes)
    steps.append(Step("compression/sizes", command, (sizes,), sources))
    named = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    how = (*named, "--baseline", "fcn", "--metrics", *METRICS)
    if setting.data:
        test = _test_set(setting)
        folders = ("--clean", f"{test.results[0]}/clean", "--noisy", f"{test.results[0]}/noisy")
        steps += [test, _scored(setting, "open", (*folders, *how), sources)]
    bundled = ("--num-test", str(size.num_bundled), *how)
    return [*steps, _scored(setting, "bundled", bundled, sources)]


def pruned_name(percent: int) -> str:
    """Returns the name of the model with so many percent of its channels pruned."""
    return f"pp{percent}"


def compressed_models(setting: Setting) -> dict[str, str]:
    """Returns the models of section 'compression' by name, the baseline first."""
    size, first, second = setting.size, *(pruned_name(share) for share in SHARES)
    packed = [f"pq-k{k}" for k in size.ks] + [f"{first}-k{k}" for k in size.ks]
    packed += [f"{second}-k{K_MAIN}", *(f"{first}-t{percent}" for percent in size.targets)]
    models = {"fcn": BASELINE}
    models |= {name: setting.at("compression", f"{name}.h5") for name in (first, second)}
    return models | {name: setting.at("compression", name, "model.icse") for name in packed}


def _soft_pruned(setting: Setting, share: int) -> Step:
    size, name = setting.size, pruned_name(share)
    out = setting.at("compression", f"{name}.h5")
    command: Command = ("pruning.run", BASELINE, "-o", out)
    command += ("--target-sparsity", f"{share / 100:g}")
    command += ("--retrain", "--stages", str(size.stages), "--retrain-epochs", "1")
    command += ("--num-train", str(size.stage_steps * BATCH_SIZE))
    command += ("--final-epochs", str(size.final_epochs), "--learning-rate", "0.0005")
    command += ("--schedule", "constant", "--warmup", "50", *_best(setting), "--no-score")
    command += ("--work", setting.at("compression", "work", name))
    return Step(f"compression/{name}", command, (out,), (BASELINE,))


def _tied(setting: Setting, name: str, source: str, k: int) -> Step:
    """Returns k-means with tied weights that are trained on."""
    out = setting.at("compression", name)
    command: Command = ("quantization.run", source, "-k", str(k), "--centroids", "fp16", "-o", out)
    command += ("--finetune-epochs", "2", "--learning-rate", "0.0002", "--warmup", "10")
    command += ("--num-train", str(setting.size.finetune_steps // 2 * BATCH_SIZE), *_best(setting))
    command += ("--work", setting.at("compression", "work", name))
    return Step(f"compression/{name}", command, (f"{out}/model.icse",), (source,))


def _best(setting: Setting) -> tuple[str, ...]:
    how = ("--recipe", "best", "--batch-size", str(BATCH_SIZE), "--gpu", "-1", "--num-test", "1")
    return (*how, *setting.data)


def _test_set(setting: Setting) -> Step:
    """Returns what writes the test mixtures of the corpus; sections share it."""
    out = setting.at("test")
    command: Command = ("timit_fcn_mse", "--eval-only", "--model", BASELINE, "--gpu", "-1")
    command += ("--num-test", str(setting.size.num_open), *setting.data, "--out", out)
    return Step("test-set", command, (f"{out}/test",), (BASELINE,))


def _scored(
    setting: Setting, name: str, options: tuple[str, ...], sources: tuple[str, ...]
) -> Step:
    out = setting.at("compression", name)
    command: Command = ("eval.run", *options, "--out", out)
    results = (f"{out}/summary.json", f"{out}/scores.csv")
    return Step(f"compression/{name}", command, results, sources)


#: Rows of ``benchmarks.pruning`` that are retrained, and what the figure calls them.
CONTROLS = {
    "control": "not pruned, trained on",
    "soft-sparsity": "22 % pruned, the paper's criterion",
    "soft-magnitude": "22 % pruned by magnitude",
    "soft-random": "22 % pruned at random",
    "filters": "a quarter of the filters removed",
    "small": "as small, from random weights",
}


def grid(setting: Setting) -> list[Step]:
    """Theta x k x format, and the controls of pruning, on the same test files."""
    size, test = setting.size, ("--num-test", str(setting.size.num_bundled))
    out = setting.at("grid", "sweep")
    command: Command = ("eval.sweep", "--model", BASELINE, "--theta", *size.thetas)
    command += ("--k", "none", *map(str, size.ks), "--centroids", *size.formats)
    results = (f"{out}/sweep.json",)
    steps = [Step("grid/sweep", (*command, *test, "--out", out), results, (BASELINE,))]
    folder = setting.at("grid", "pruning")
    models = {name: f"{folder}/{name}/model.h5" for name in CONTROLS}
    result = setting.at("grid", "pruning.json")
    command = ("benchmarks.pruning", *setting.data, "--out", folder, "--json", result)
    command += ("--rounds", str(size.rounds), *test)
    if setting.small:
        command += ("--which", "retrained", "--stage-steps", str(size.stage_steps))
        command += ("--final-steps", str(size.final_epochs * size.stage_steps))
        command += ("--long-steps", "0")
    steps.append(Step("grid/pruning", command, (result, *models.values()), (BASELINE,)))
    packed = {name: setting.at("grid", f"{name}-k{K_MAIN}") for name in CONTROLS}
    for name, source in models.items():
        command = ("quantization.run", source, "-k", str(K_MAIN), "--centroids", "fp16", "-o",
                   packed[name])  # fmt: skip
        file = f"{packed[name]}/model.icse"
        steps.append(Step(f"grid/{name}-k{K_MAIN}", command, (file,), (source,)))
    points = [f"fcn={BASELINE}"]
    points += [f"{name}={path}" for name, path in models.items()]
    points += [f"{name}-k{K_MAIN}={packed[name]}/model.icse,k={K_MAIN}" for name in models]
    out = setting.at("grid", "controls")
    command = ("eval.sweep", "--model", *points, *test, "--out", out)
    sources = (BASELINE, *models.values(), *(f"{path}/model.icse" for path in packed.values()))
    return [*steps, Step("grid/controls", command, (f"{out}/sweep.json",), sources)]


def _experts(setting: Setting) -> dict[str, list[str]]:
    """Returns the file names of the experts of each experiment, without their ending."""
    from mnn.experiments import NOISE_TYPES, conditions_of, file_name

    corpus = setting.scale if setting.data else "bundled"
    return {
        name: [Path(file_name(c.name)).stem for c in conditions_of(name, NOISE_TYPES[corpus])]
        for name in EXPERIMENTS
    }


def _experiment(setting: Setting, name: str) -> Step:
    """Returns what trains the experts of an experiment; sections share it."""
    from mnn.experiments import SCALES

    corpus = setting.scale if setting.data else "bundled"
    scale = "small" if setting.small and "small" in SCALES else corpus
    out, models = setting.at("mnn", name), setting.at("mnn", "models")
    command: Command = ("mnn.experiments", name, "--scale", scale, *setting.data)
    command += ("--models", models, "--gpu", "-1", "--out", out)
    results = [f"{out}/results.json", f"{out}/scores.csv", f"{models}/dae_128.h5"]
    results += [f"{models}/{expert}.h5" for expert in _experts(setting)[name]]
    return Step(f"mnn/{name}", command, tuple(results))


def mnn(setting: Setting) -> list[Step]:
    """The three experiments, and two-stage selection with compressed experts."""
    experts, models = _experts(setting), setting.at("mnn", "models")
    steps = [_experiment(setting, experiment) for experiment in EXPERIMENTS]
    inputs: tuple[str, ...] = ()
    if setting.data:
        test = _test_set(setting)
        steps.append(test)
        inputs = (f"{test.results[0]}/noisy",)
    for experiment in setting.size.two_stage:
        names = experts[experiment]
        full = [f"{models}/{name}.h5" for name in names]
        copies = []
        for name, source in zip(names, full, strict=True):
            out = setting.at("mnn", f"k{K_EXPERTS}", name)
            command: Command = ("quantization.run", source, "-k", str(K_EXPERTS))
            command += ("--centroids", "fp16", "-o", out)
            copies.append(f"{out}/model.icse")
            steps.append(Step(f"mnn/k{K_EXPERTS}-{name}", command, (copies[-1],), (source,)))
        dae, result = f"{models}/dae_128.h5", setting.at("mnn", f"two_stage_{experiment}.json")
        command = ("mnn.select", *inputs, "--dae", dae, "--selector-experts", *copies)
        command += ("--experts", *full, "--check", "--json", result)
        command += ("-o", setting.at("mnn", f"two_stage_{experiment}"))
        name = f"mnn/two-stage-{experiment}"
        steps.append(Step(name, command, (result,), (dae, *copies, *full)))
    return steps


def eq10(setting: Setting) -> list[Step]:
    """Readings of the criterion of selection, on mixtures of the training parts."""
    result = setting.at("eq10", "eq10.json")
    command: Command = ("benchmarks.eq10", *setting.data, "--json", result)
    models = setting.at("mnn", "models")
    command += ("--experts", models, "--out", setting.at("eq10", "work"))
    if setting.small:
        command += ("--num", "1", "1", "1", "--iterations", "10")
    names = _experts(setting)
    experts = tuple(f"{models}/{name}.h5" for name in (*names["gender"], *names["snr"]))
    made = [_experiment(setting, name) for name in ("gender", "snr")]
    return [*made, Step("eq10/eq10", command, (result,), experts)]


def cost(setting: Setting) -> list[Step]:
    """Arithmetic, cycles and time of the shipped models."""
    models, steps = (BASELINE, SMALLEST), []
    for name in ("cost", "cycles"):
        result = setting.at("cost", f"{name}.json")
        command: Command = (f"eval.{name}", *models, "--json", result)
        steps.append(Step(f"cost/{name}", command, (result,), models))
    result = setting.at("cost", "inference.json")
    command = ("benchmarks.inference", "--seconds", *map(str, setting.size.lengths_s))
    command += ("--rounds", str(setting.size.rounds), "--json", result)
    command += () if setting.small else ("--growth",)
    return [*steps, Step("cost/inference", command, (result,))]


def rooms(setting: Setting) -> list[Step]:
    """One network against noise and reverberation, trained on simulated rooms."""
    size, out = setting.size, setting.at("rooms", "joint")
    command: Command = ("timit_fcn_mse", "--rooms", "0.5", "--init", BASELINE)
    command += ("--epochs", str(size.room_epochs))
    command += ("--num-train", str(8 * size.stage_steps if setting.small else 2000))
    command += ("--learning-rate", "0.001", "--warmup", "50", *_best(setting), "--out", out)
    model = f"{out}/last.h5"  # model.h5 is the best at validation, which has no rooms
    steps = [Step("rooms/joint", command, (model, f"{out}/history.csv"), (BASELINE,))]
    result = setting.at("rooms", "rooms.json")
    command = ("benchmarks.rooms", *setting.data, "--model", f"fcn={BASELINE}", f"joint={model}")
    command += ("--json", result, "--out", setting.at("rooms", "test"))
    if setting.small:
        command += ("--num-test", "1")
    return [*steps, Step("rooms/rooms", command, (result,), (BASELINE, model))]


def departures(setting: Setting) -> list[Step]:
    """Text only."""
    return []


#: Section -> its steps, in the order of the page.
SECTIONS: dict[str, Callable[[Setting], Sequence[Step]]] = {
    "use": use,
    "compression": compression,
    "grid": grid,
    "mnn": mnn,
    "eq10": eq10,
    "cost": cost,
    "rooms": rooms,
    "departures": departures,
}
