"""Recurrent layers by their equations: naive float64, a frame, a unit and a gate at a time."""

import math

ACTIVATIONS = {
    "linear": lambda a: a,
    "relu": lambda a: max(a, 0.0),
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "tanh": math.tanh,
    "silu": lambda a: a / (1 + math.exp(-a)),
}


def _dot(vector, matrix, column):
    return sum(float(value) * float(row[column]) for value, row in zip(vector, matrix, strict=True))


def _bias(weights, column, row=None):
    if "bias" not in weights:
        return 0.0
    bias = weights["bias"]
    if row is None:
        return float(bias[column])
    if bias.ndim == 2:
        return float(bias[row][column])
    return 0.0 if row else float(bias[column])


def lstm(config, weights, frames):
    """Hochreiter and Schmidhuber 1997, Gers et al. 2000, gates i f c o."""
    units = config["units"]
    gate, squash = ACTIVATIONS[config["recurrent_activation"]], ACTIVATIONS[config["activation"]]
    h, c, output = [0.0] * units, [0.0] * units, []
    for x in frames:

        def pre(number, unit, x=x, h=h):
            column = number * units + unit
            read = _dot(x, weights["kernel"], column) + _dot(h, weights["recurrent_kernel"], column)
            return read + _bias(weights, column)

        after = []
        for unit in range(units):
            i, f, o = (gate(pre(number, unit)) for number in (0, 1, 3))
            cell = f * c[unit] + i * squash(pre(2, unit))
            after.append((o * squash(cell), cell))
        h, c = [one for one, _ in after], [cell for _, cell in after]
        output.append(h)
    return output


def gru(config, weights, frames):
    """Cho et al. 2014, gates z r h; with ``reset_after`` the reset follows the recurrent kernel."""
    units = config["units"]
    gate, squash = ACTIVATIONS[config["recurrent_activation"]], ACTIVATIONS[config["activation"]]
    h, output = [0.0] * units, []
    for x in frames:

        def given(number, unit, x=x):
            column = number * units + unit
            return _dot(x, weights["kernel"], column) + _bias(weights, column, 0)

        def read(number, unit, state):
            column = number * units + unit
            return _dot(state, weights["recurrent_kernel"], column) + _bias(weights, column, 1)

        r = [gate(given(1, unit) + read(1, unit, h)) for unit in range(units)]
        after = []
        for unit in range(units):
            z = gate(given(0, unit) + read(0, unit, h))
            if config["reset_after"]:
                candidate = squash(given(2, unit) + r[unit] * read(2, unit, h))
            else:
                reset = [a * b for a, b in zip(r, h, strict=True)]
                candidate = squash(given(2, unit) + read(2, unit, reset))
            after.append(z * h[unit] + (1 - z) * candidate)
        h = after
        output.append(h)
    return output


def simple_rnn(config, weights, frames):
    """Elman 1990."""
    units, squash = config["units"], ACTIVATIONS[config["activation"]]
    h, output = [0.0] * units, []
    for x in frames:
        h = [
            squash(
                _dot(x, weights["kernel"], unit)
                + _dot(h, weights["recurrent_kernel"], unit)
                + _bias(weights, unit)
            )
            for unit in range(units)
        ]
        output.append(h)
    return output


RUN = {"LSTM": lstm, "GRU": gru, "SimpleRNN": simple_rnn}


def bidirectional(config, weights, frames):
    """Both directions, each with its own weights, merged frame by frame."""
    run, settings = RUN[config["layer"]["class_name"]], config["layer"]["config"]
    own = [
        {key.partition("_")[2]: value for key, value in weights.items() if key.startswith(which)}
        for which in ("forward_", "backward_")
    ]
    one = run(settings, own[0], frames)
    other = run(settings, own[1], frames[::-1])[::-1]
    merge = {
        "concat": lambda a, b: [*a, *b],
        "sum": lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        "mul": lambda a, b: [x * y for x, y in zip(a, b, strict=True)],
        "ave": lambda a, b: [(x + y) / 2 for x, y in zip(a, b, strict=True)],
    }[config["merge_mode"]]
    return [merge(a, b) for a, b in zip(one, other, strict=True)]


def run(layer, frames):
    """Returns what a `LayerSpec` gives for frames [num_frames, num_inputs]: a list of lists."""
    if layer.class_name == "Bidirectional":
        return bidirectional(layer.config, layer.weights, frames)
    return RUN[layer.class_name](layer.config, layer.weights, frames)
