"""Networks as plain C: compiled with all warnings and sanitizers, they give what Python gives."""

import dataclasses
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech import export
from speech.net import plain_c
from speech.net.enhancer import BASELINE_MODEL, Enhancer
from speech.net.folding import fold_batch_normalization
from speech.net.plan import plan_of
from speech.net.timefrequency import SIZES
from speech.sound.audio import read_audio
from tests.builders import TINY, mask_layers, write_mask_network

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler here")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=address,undefined",
          "-fno-sanitize-recover=all")  # fmt: skip


def clustered(layers, num_values, share_of_zeros=0.0, exact_halves=True):
    """Rounds each kernel of a folded network to a few values."""
    result = []
    for layer in fold_batch_normalization(layers):
        weights = dict(layer.weights)
        if "kernel" in weights:
            kernel = weights["kernel"]
            cuts = np.quantile(kernel, (np.arange(num_values) + 0.5) / num_values)
            book = cuts.astype("f2" if exact_halves else "f4").astype("f4")
            rounded = book[np.abs(kernel[..., None] - book).argmin(axis=-1)]
            limit = np.quantile(np.abs(kernel), share_of_zeros)
            weights["kernel"] = np.where(np.abs(kernel) < limit, np.float32(0), rounded)
        result.append(dataclasses.replace(layer, weights=weights))
    return tuple(result)


def zero_channels(layers):
    """Lets kernels of the convolutions over time vanish, column by column."""
    result = []
    for layer in layers:
        weights = dict(layer.weights)
        if layer.class_name == "Conv2D" and layer.config["kernel_size"] == [3, 1]:
            weights["kernel"] = weights["kernel"].copy()
            weights["kernel"][..., ::2, :] = 0
        result.append(dataclasses.replace(layer, weights=weights))
    return tuple(result)


def halves(layers):
    return tuple(
        dataclasses.replace(
            layer, weights={n: a.astype("f2").astype("f4") for n, a in layer.weights.items()}
        )
        for layer in fold_batch_normalization(layers)
    )


def write(file, folder):
    found = plain_c.plain_c(file)
    for name, text in found.files.items():
        (folder / name).write_text(text)
    return found


def compiled(folder, *flags):
    subprocess.run(
        [COMPILER, *flags, "main.c", "denoise.c", "weights.c", "-o", "denoise", "-lm"],
        cwd=folder, check=True,
    )  # fmt: skip

    def run(signal, *arguments):
        done = subprocess.run(
            ["./denoise", *arguments], cwd=folder, input=signal.tobytes(), capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, signal.dtype), done.stderr.decode()

    return run


def clips(count, num_samples):
    paths = sorted((ROOT / "speech" / "minicorpus" / "speech").rglob("*.flac"))
    noise = 0.03 * np.random.default_rng(0).standard_normal((count, num_samples))
    speech = [read_audio(path).samples[:num_samples] for path in paths[:: len(paths) // count]]
    return [(own + hiss).astype("f4") for own, hiss in zip(speech, noise, strict=False)]


#: Every form in which weights are stored.
NETWORKS = {
    "floats": lambda: mask_layers(TINY),
    "halves": lambda: halves(mask_layers(TINY)),
    "4 bits, books of halves": lambda: clustered(mask_layers(TINY), 16),
    "3 bits, books of floats": lambda: clustered(mask_layers(TINY), 5, exact_halves=False),
    "8 bits": lambda: clustered(mask_layers(TINY), 200),
    "single zeros": lambda: clustered(mask_layers(TINY), 16, 0.7),
    "zero columns": lambda: zero_channels(clustered(mask_layers(TINY), 16)),
    "one value": lambda: clustered(mask_layers(TINY), 1),
}


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_of_weights_gives_what_python_gives(name, tmp_path):
    file = write_mask_network(tmp_path / "net.icse", NETWORKS[name]())
    write(file, tmp_path)
    run = compiled(tmp_path, *STRICT)
    (signal,) = clips(1, 2500)
    found, complaints = run(signal, "-f")
    expected = Enhancer(file.path)(signal)
    assert not complaints
    assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@needs_compiler
def test_the_small_form_on_files(tmp_path):
    """20 clips, as floats and as 16 bits; the sizes are those that devices have room for."""
    layers = clustered(mask_layers(SIZES["small"]), 16)
    file = write_mask_network(tmp_path / "small.icse", layers, SIZES["small"])
    found = write(file, tmp_path)
    assert found.sizes.weight_bytes <= 1.1 * file.path.stat().st_size == 1.1 * found.packed_bytes
    assert found.sizes.ram_bytes <= 256_000
    run, enhancer = compiled(tmp_path, *STRICT), Enhancer(file.path)
    for place, signal in enumerate(clips(20, 4000)):
        signal = signal[: 4000 - 37 * place]
        expected = enhancer(signal)
        assert_allclose(run(signal, "-f")[0], expected, rtol=0, atol=1e-4)
    integers = np.round(signal * 32768).clip(-32768, 32767).astype(np.int16)
    expected = enhancer(integers / np.float32(32768)).clip(-1, 32767 / 32768)
    assert_allclose(run(integers)[0] / 32768, expected, rtol=0, atol=1e-4)


@needs_compiler
def test_any_length_and_no_number(tmp_path):
    file = write_mask_network(tmp_path / "net.icse")
    write(file, tmp_path)
    run = compiled(tmp_path, *STRICT)
    for num_samples in (0, 1, 256, 257, 512, 1000):
        signal = np.full(num_samples, 0.1, "f4")
        assert run(signal, "-f")[0].shape == signal.shape
    signal[300] = np.nan
    found, complaints = run(signal, "-f")
    assert np.isfinite(found).all() and complaints.startswith("1 hops held no number")


@needs_compiler
def test_other_compilers_and_no_vectors(tmp_path):
    file = write_mask_network(tmp_path / "net.icse", clustered(mask_layers(TINY), 16))
    write(file, tmp_path)
    (signal,) = clips(1, 2000)
    expected = Enhancer(file.path)(signal)
    plain = tmp_path / "denoise.c"
    plain.write_text(plain.read_text().replace("defined(__GNUC__)", "0"))  # as for others
    found, _ = compiled(tmp_path, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2")(signal, "-f")
    assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@needs_compiler
def test_sizes_are_those_that_a_compiler_sees(tmp_path):
    file = write_mask_network(tmp_path / "net.icse", clustered(mask_layers(TINY), 16))
    found = write(file, tmp_path)
    sizes = {}
    (tmp_path / "sizes.c").write_text(
        '#include <stdio.h>\n#include "weights.h"\n#include "weights.c"\nint main(void) { '
        'printf("%zu %zu %zu %zu %zu %zu", sizeof(denoise_tensor), sizeof(denoise_layer), '
        "sizeof(denoise_model), sizeof(denoise_state), sizeof tensors / sizeof *tensors, "
        "sizeof layers / sizeof *layers); return 0; }"
    )
    subprocess.run([COMPILER, "sizes.c", "-o", "sizes"], cwd=tmp_path, check=True)
    done = subprocess.run(["./sizes"], cwd=tmp_path, capture_output=True, text=True, check=True)
    tensor, layer, model, state, num_tensors, num_layers = map(int, done.stdout.split())
    # Pointers take 8 bytes here, 4 on the devices that the figures are for.
    sizes = tensor * num_tensors + (layer - 16) * num_layers + model - 8
    assert found.sizes.table_bytes <= sizes <= found.sizes.table_bytes + 8 * num_layers + 8
    plan = plan_of(file)
    assert found.sizes.state_bytes == plan.state_bytes < found.sizes.ram_bytes
    assert state - 8 <= 12 + 128 + 8


def decoded(stored, shape):
    """Returns the kernel of what is stored, as denoise.c reads it: bits with the highest first."""
    if not stored.book_size:
        return np.frombuffer(stored.data, {0: "<f4", 1: "<f2"}[stored.format]).reshape(shape)
    size = math.prod(shape)
    kept = np.ones(size, bool)
    if stored.mask:
        columns = shape[-2] * shape[-1]
        bits = np.unpackbits(np.frombuffer(stored.mask, np.uint8))[: stored.mask_rows * columns]
        rows = np.broadcast_to(bits.reshape(-1, columns), (size // columns, columns))
        kept = rows.ravel().astype(bool)
    width = math.ceil(math.log2(stored.book_size))
    text = "".join(f"{byte:08b}" for byte in stored.data)
    indices = [int("0" + text[at * width :][:width], 2) for at in range(kept.sum())]
    book = np.frombuffer(stored.book, {2: "<f4", 3: "<f2"}[stored.format])
    assert len(book) == stored.book_size
    assert len(stored.data) == math.ceil(kept.sum() * width / 8) + 2
    kernel = np.zeros(size, np.float32)
    kernel[kept] = book[indices]
    return kernel.reshape(shape)


@pytest.mark.parametrize("form", ["a few values", "exact in floats", "columns of zeros", "zeros",
                                  "one value", "halves", "floats"])  # fmt: skip
def test_a_kernel_comes_back_from_what_is_stored(rng, form):
    shape = (3, 1, 5, 90)
    kernel = rng.choice(np.array([-0.5, 0, 0.25, 1], "f4"), shape)
    rows = {"columns of zeros": 1, "zeros": 3}.get(form, 0)
    if form == "exact in floats":
        kernel[kernel == 1] = 0.1
    elif form == "columns of zeros":
        kernel = rng.choice(np.array([-0.5, 0.125, 0.25, 1, 2], "f4"), shape)
        kernel[..., rng.random(shape[2:]) < 0.7] = 0
    elif form == "zeros":
        kernel = rng.standard_normal(50).astype("f4")[rng.integers(50, size=shape)]
        kernel[rng.random(shape) < 0.9] = 0
    elif form == "one value":
        kernel = np.full(shape, 0.25, "f4")
    elif form in ("halves", "floats"):
        kernel = rng.standard_normal(shape).astype({"halves": "f2", "floats": "f4"}[form])
        kernel = kernel.astype("f4")
    stored = plain_c.stored(kernel)
    assert stored.format == {"exact in floats": 2, "zeros": 2, "halves": 1, "floats": 0}.get(
        form, 3
    )
    assert stored.mask_rows == rows
    assert_array_equal(decoded(stored, shape), kernel)


def test_the_command(tmp_path, capsys):
    file = write_mask_network(tmp_path / "net.icse")
    assert export.main([str(file.path), "--to", "c"]) == 0
    names = {path.name for path in (tmp_path / "net_c").iterdir()}
    assert names == {"denoise.h", "denoise.c", "weights.h", "weights.c", "main.c", "Makefile",
                     "README.md"}  # fmt: skip
    runtime = ROOT / "speech" / "net" / "kernels" / "denoise.c"
    assert (tmp_path / "net_c" / "denoise.c").read_text() == runtime.read_text()
    output = capsys.readouterr().out
    assert "bytes of weights (net.icse as .icse" in output and "RAM" in output
    readme = (tmp_path / "net_c" / "README.md").read_text()
    assert "$" not in readme.replace("$(", "") and "latency | 512 samples (32 ms)" in readme


@pytest.mark.parametrize("name", ["README.md", "Makefile", "main.c", "weights.c"])
def test_files_of_others_stay(name, tmp_path, capsys):
    file = write_mask_network(tmp_path / "net.icse")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / name).write_text("mine")
    words = [str(file.path), "--to", "c", "-o", str(folder)]
    assert export.main(words) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and f"would replace {name}" in said
    assert {path.name for path in folder.iterdir()} == {name, "notes.txt"}
    assert (folder / name).read_text() == "mine"
    (folder / name).unlink()
    for _ in range(2):  # the second time over what is ours
        assert export.main(words) == 0
    assert (folder / "notes.txt").read_text() == "mine" and (folder / name).exists()


def test_what_cannot_stream_is_refused(tmp_path, capsys):
    folder = tmp_path / "c"
    assert export.main([str(BASELINE_MODEL), "--to", "c", "-o", str(folder)]) == 1
    assert "is of the kind 'waveform', expected" in capsys.readouterr().err
    assert not folder.exists()
    file = write_mask_network(tmp_path / "net.icse")
    folder.write_text("a file")
    assert export.main([str(file.path), "--to", "c", "-o", str(folder)]) == 1
    assert "c: a file stands where a folder is needed" in capsys.readouterr().err
