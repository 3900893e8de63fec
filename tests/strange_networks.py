"""Networks over time and frequency that other people might make, layer by layer."""

from __future__ import annotations

from pathlib import Path

from speech.modelfile.spec import ModelFile
from tests.builders import TINY, conv2d, graph


def model_of(layers, config=TINY):
    return ModelFile(tuple(layers), config.meta(), "", Path("tiny.h5"))


def padded(name, source, front):
    settings = {"padding": [[front, 0], [0, 0]], "data_format": "channels_last"}
    return "ZeroPadding2D", name, [source], settings, {}


def add(name, *sources):
    return "Add", name, list(sources), {}, {}


def act(name, source, activation="silu"):
    return "Activation", name, [source], {"activation": activation}, {}


def permute(name, source):
    return "Permute", name, [source], {"dims": [1, 3, 2]}, {}


def dense(name, source, ins, outs):
    settings = {"units": outs, "activation": "linear", "use_bias": True}
    return "Dense", name, [source], settings, {"kernel": (ins, outs), "bias": (outs,)}


def causal(name, source, ins, outs, taps, dilation=1):
    return conv2d(name, source, ins, outs, (taps, 1), padding="valid", dilation_rate=[dilation, 1])


#: Networks of other people: what they are made of, and how many frames they look back.
STRANGE = {
    "a sum and a padding of the same": (
        graph(
            conv2d("b", "input", 3, 8), conv2d("a", "input", 3, 8), act("s", "a"),
            padded("p", "s", 1), add("sum", "s", "b"), causal("c", "p", 8, 8, 2),
            add("all", "sum", "c"), conv2d("mask", "all", 8, 2),
        ), 1),
    "bands of the input": (
        graph(permute("p", "input"), dense("d", "p", 256, 256), permute("q", "d"),
              conv2d("mask", "q", 3, 2)), 0),
    "an activation of the input": (
        graph(act("s", "input"), conv2d("mask", "s", 3, 2)), 0),
    "a sum with the input": (
        graph(conv2d("a", "input", 3, 3), add("sum", "a", "input"), conv2d("mask", "sum", 3, 2)),
        0),
    "more taps than the kernels take": (
        graph(padded("p", "input", 66), causal("c", "p", 3, 8, 67),
              conv2d("mask", "c", 8, 2)), 66),
    "a wide kernel over bands": (
        graph(conv2d("a", "input", 3, 8, (1, 301)), conv2d("mask", "a", 8, 2, (1, 4))), 0),
    "branches of different reach": (
        graph(
            padded("p", "input", 3), causal("c", "p", 3, 8, 4), conv2d("a", "c", 8, 8, (1, 5)),
            padded("q", "input", 10), causal("d", "q", 3, 8, 3, 5),
            ("Concatenate", "both", ["a", "d"], {"axis": -1}, {}),
            ("LeakyReLU", "leaky", ["both"], {"negative_slope": 0.1}, {}),
            conv2d("mask", "leaky", 16, 2),
        ), 10),
    "a frame late": (
        graph(padded("p", "input", 4), causal("c", "p", 3, 8, 2, 3),
              conv2d("d", "c", 8, 8, (2, 1), padding="valid"), conv2d("mask", "d", 8, 2)), 4),
}  # fmt: skip
