"""Whole utterances through the FCN side by side: ours, Keras, ONNX Runtime, LiteRT, PyTorch.

::

    python -m benchmarks.inference --json results/cost/inference.json

Then ours on a pruned and on a smaller network, and with ``--growth`` time and peak memory against
length (1 s to 1 h) and against the number of files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from eval.cost import measure
from speech.base import cli

BASE = "ours"
GROWTH_SECONDS = (1, 10, 60, 120, 600, 3600)
PRUNED_SHARE = 0.22  # of the kernels of every hidden layer, the released model's share


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1.0, 3.0, 10.0, 60.0], metavar="S"
    )
    parser.add_argument("--rounds", type=int, default=21, metavar="N")
    parser.add_argument("--growth", action="store_true", help="also time and memory by length")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.device import quiet_start

    with quiet_start():
        import keras  # noqa: F401
    from speech.net.fcn import build_fcn

    model = build_fcn()
    result: dict[str, Any] = {"utterances": {}, "compressed": {}}
    for seconds in options.seconds:
        signal = common.random_speech(seconds)
        timing = common.take_turns(
            {
                BASE: partial(_ours, _spec_of(model), signal),
                "Keras predict": partial(partial, model.predict, signal, verbose=0),
                "tf.function": partial(_tf_function, model, signal),
                "ONNX Runtime": partial(_onnx_runtime, model, signal),
                "LiteRT": partial(_litert, model, signal),
                "PyTorch": partial(_torch, signal),
            },
            options.rounds if seconds <= 10 else common.MIN_ROUNDS,
        )
        common.print_table(f"one utterance of {seconds:g} s", timing, BASE)
        others = [name for name in timing.seconds if name != BASE]
        best = min(others, key=timing.median)
        print(f"  best of the others: {best}, {timing.ratio(best, BASE):.2f} x ours")
        result["utterances"][f"{seconds:g}"] = timing.as_json(BASE) | {"best_other": best}
        common.write_result(options.json, result)  # what is measured is kept
    result["compressed"] = _compressed(model, options.rounds)
    if options.growth:
        result["growth"] = _growth(model)
        result["files"] = _files(model)
    common.write_result(options.json, result)
    return 0


def _spec_of(model: Any) -> tuple[Any, ...]:
    from speech.net.keras_models import layers_of

    return layers_of(model)


def _network(layers: Sequence[Any]) -> Any:
    from speech.net.chain import blocks_from_layers, parameters_of
    from speech.net.inference import InferenceNetwork

    found = blocks_from_layers([(layer.class_name, layer.config) for layer in layers])
    assert found is not None, "a chain"
    return InferenceNetwork(found[0], parameters_of(layers), tanh=found[1])


def _ours(layers: Sequence[Any], signal: Any) -> Callable[[], Any]:
    network, samples = _network(layers), signal[0]
    return lambda: network(samples)


def _tf_function(model: Any, signal: Any) -> Callable[[], Any]:
    import tensorflow as tf

    call = tf.function(
        lambda x: model(x, training=False),
        input_signature=[tf.TensorSpec([None, None, 1], tf.float32)],
    )
    tensor = tf.constant(signal)
    return lambda: call(tensor).numpy()


def _onnx_runtime(model: Any, signal: Any) -> Callable[[], Any]:
    import onnxruntime

    from speech.export import to_onnx

    session = onnxruntime.InferenceSession(
        to_onnx(_spec_of(model)), providers=["CPUExecutionProvider"]
    )

    def run() -> Any:
        return session.run(None, {"input": signal})[0]

    _require_equal(model, signal, run())
    return run


def _litert(model: Any, signal: Any) -> Callable[[], Any]:
    import os

    from ai_edge_litert.interpreter import Interpreter

    from speech.export import to_tflite

    interpreter = Interpreter(
        model_content=to_tflite(_spec_of(model)), num_threads=len(os.sched_getaffinity(0))
    )
    entry = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(entry, signal.shape)
    interpreter.allocate_tensors()
    out = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        interpreter.set_tensor(entry, signal)
        interpreter.invoke()
        return interpreter.get_tensor(out)

    _require_equal(model, signal, run())
    return run


def _torch(signal: Any) -> Callable[[], Any]:
    import torch

    model = common.torch_fcn().eval()
    tensor = torch.from_numpy(signal).transpose(1, 2).contiguous()

    def run() -> Any:
        with torch.inference_mode():
            return model(tensor)

    return run


def _require_equal(model: Any, signal: Any, output: Any) -> None:
    """Raises ValueError if a contender computes something else: it would be no comparison."""
    import numpy as np

    expected = np.asarray(model(signal[:, :8000]))
    if signal.shape[1] <= 8000 and np.abs(expected - output).max() > 1e-3:
        raise ValueError("a contender's output differs from Keras'")


def _compressed(model: Any, rounds: int) -> dict[str, Any]:
    """Times ours dense, with kernels at zero, and with half of the filters, on 3 s."""
    import numpy as np

    from speech.modelfile.spec import LayerSpec
    from speech.net.fcn import FCNConfig, build_fcn

    rng = np.random.default_rng(0)
    dense = _spec_of(model)
    convolutions = [layer.name for layer in dense if layer.class_name == "Conv1D"]
    pruned = []
    for layer in dense:
        weights = dict(layer.weights)
        if layer.class_name == "Conv1D" and layer.name != convolutions[-1]:
            kernel = weights["kernel"]
            weights["kernel"] = kernel * (rng.random((1, *kernel.shape[1:])) >= PRUNED_SHARE)
        pruned.append(LayerSpec(layer.class_name, layer.name, layer.config, weights))
    half = _spec_of(build_fcn(FCNConfig(num_filters=15)))
    signal = common.random_speech(3.0)
    timing = common.take_turns(
        {
            "dense": lambda: _ours(dense, signal),
            "22 % of kernels zero": lambda: _ours(pruned, signal),
            "half of the filters": lambda: _ours(half, signal),
        },
        max(rounds, 101),  # milliseconds each: many rounds cost little,
    )
    common.print_table("compressed networks, 3 s, ours", timing, "dense")
    for name in ("22 % of kernels zero", "half of the filters"):
        print(f"  dense / {name}: {timing.ratio('dense', name):.3f}")
    return timing.as_json("dense") | {
        f"dense / {name}": timing.ratio("dense", name) for name in timing.seconds if name != "dense"
    }


def _growth(model: Any) -> list[dict[str, Any]]:
    """Measures each length in a process of its own, so that peak memory is that length's."""
    from speech.net.enhancer import WHOLE_SECONDS
    from speech.net.keras_models import save_model

    rows = []
    print(f"\n  {'seconds':>8}{'time s':>10}{'time/audio':>12}{'peak MB':>10}  way")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fcn.h5"
        save_model(model, path, {})
        for seconds in GROWTH_SECONDS:
            rounds = common.MIN_ROUNDS if seconds <= 600 else 1
            found = measure(path, seconds, rounds, one_core=False)
            rows.append({
                "seconds": seconds,
                "time_s": found.real_time_factor * seconds,
                "peak_bytes": found.peak_bytes,
                "way": "whole" if seconds <= WHOLE_SECONDS else "blocks",
            })  # fmt: skip
            print(
                f"  {seconds:>8g}{rows[-1]['time_s']:>10.3f}{found.real_time_factor:>12.5f}"
                f"{found.peak_bytes / 1e6:>10.0f}  {rows[-1]['way']}"
            )
    return rows


def _files(model: Any, counts: Sequence[int] = (1, 4, 16, 64)) -> list[dict[str, float]]:
    """Times many utterances of 3 s and of unequal lengths: no length costs anything to be new."""
    import numpy as np

    network = _network(_spec_of(model))
    rng = np.random.default_rng(0)
    rows = []
    print(f"\n  {'files':>8}{'3 s each, ms/s of audio':>26}{'unequal lengths, ms/s':>26}")
    for count in counts:
        equal = [common.random_speech(3.0, seed)[0] for seed in range(count)]
        unequal = [signal[: rng.integers(16000, 48001)] for signal in equal]
        row: dict[str, float] = {"files": count}
        for name, signals in (("equal", equal), ("unequal", unequal)):
            network(equal[0])
            start = time.perf_counter()
            for signal in signals:
                network(signal)
            spent = time.perf_counter() - start
            row[name] = 1e3 * spent / (sum(len(signal) for signal in signals) / 16000)
        rows.append(row)
        print(f"  {count:>8}{row['equal']:>26.2f}{row['unequal']:>26.2f}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
