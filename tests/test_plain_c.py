"""Networks as plain C: compiled with all warnings and sanitizers, they give what Python gives."""

import dataclasses
import functools
import math
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech import export
from speech.modelfile.read import read_model_file
from speech.net import indexcoder, plain_c
from speech.net.enhancer import BASELINE_MODEL, Enhancer
from speech.net.folding import fold_batch_normalization
from speech.net.plan import plan_of
from speech.net.timefrequency import SIZES
from speech.sound.audio import read_audio
from tests.builders import TINY, mask_layers, write_mask_network
from tests.reference.range_decoder import decode

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


def uneven(layers):
    """Makes four of five weights of each kernel the same."""
    rng = np.random.default_rng(1)
    result = []
    for layer in layers:
        weights = dict(layer.weights)
        if "kernel" in weights:
            is_same = rng.random(weights["kernel"].shape) < 0.8
            weights["kernel"] = np.where(is_same, np.float32(0.5), weights["kernel"])
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


def write(file, folder, weights=None):
    found = plain_c.plain_c(file, weights)
    for name, text in found.files.items():
        (folder / name).write_text(text)
    return found


@functools.cache
def runtime(source, header, flags):
    """Compiles denoise.c, which is the same for all networks."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "denoise.c").write_text(source)
        Path(folder, "denoise.h").write_text(header)
        subprocess.run([COMPILER, *flags, "-c", "denoise.c"], cwd=folder, check=True)
        return Path(folder, "denoise.o").read_bytes()


def compiled(folder, *flags):
    texts = [(folder / name).read_text() for name in ("denoise.c", "denoise.h")]
    (folder / "denoise.o").write_bytes(runtime(*texts, flags))
    subprocess.run(
        [COMPILER, *flags, "main.c", "weights.c", "denoise.o", "-o", "denoise", "-lm"],
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
    "coded, books of halves": lambda: uneven(clustered(mask_layers(TINY), 16)),
    "coded, books of floats": lambda: uneven(clustered(mask_layers(TINY), 5, exact_halves=False)),
    "coded, single zeros": lambda: clustered(mask_layers(TINY), 16, 0.9),
    "coded, zero columns": lambda: zero_channels(uneven(clustered(mask_layers(TINY), 16))),
}


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_of_weights_gives_what_python_gives(name, tmp_path):
    file = write_mask_network(tmp_path / "net.icse", NETWORKS[name]())
    found = write(file, tmp_path, "coded" if name.startswith("coded") else "packed")
    assert (found.sizes.index_bytes > 0) == name.startswith("coded")
    if name.startswith("coded, books"):
        assert f"DENOISE_CODED_TO_{name[16:].upper()}" in found.files["weights.c"]
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
def test_the_shipped_network_takes_no_more_flash_than_its_file(tmp_path):
    file = read_model_file(ROOT / "models" / "denoise.icse")
    found = write(file, tmp_path)
    assert found.sizes.weight_bytes <= found.packed_bytes == file.path.stat().st_size
    packed = plain_c.sizes_of(file, "packed")
    assert found.sizes.ram_bytes == packed.ram_bytes + found.sizes.index_bytes
    assert 0 < found.sizes.index_bytes <= found.sizes.num_unpacked and packed.index_bytes == 0
    run = compiled(tmp_path, *STRICT)
    (signal,) = clips(1, 4000)
    assert_allclose(run(signal, "-f")[0], Enhancer(file.path)(signal), rtol=0, atol=1e-4)


@needs_compiler
def test_indices_are_decoded_within_their_bytes(rng, tmp_path):
    """Arrays of exactly the bytes that are needed, so that the sanitizers see one byte too many."""
    cases = []
    for num_values, count, evenness in [
        (2, 1, 1), (2, 40_000, 0.01), (3, 500, 1), (16, 3072, 1), (62, 3072, 0.3), (200, 20_000, 1),
        (256, 1, 1), (256, 9000, 100), (1, 50, 1), (16, 0, 1),
    ]:  # fmt: skip
        shares = rng.dirichlet(np.full(num_values, evenness))
        cases.append((num_values, rng.choice(num_values, count, p=shares)))
    # One value for long, then the others: halved counts go down to 1 and stay there.
    cases.append((9, np.append(np.full(50_000, 4), np.arange(9))))
    (tmp_path / "decode.c").write_text(
        """#include "denoise.c"
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    int32_t sizes[3]; /* values, indices, bytes */
    while (fread(sizes, sizeof sizes, 1, stdin) == 1) {
        size_t count = (size_t)sizes[1], num_bytes = (size_t)sizes[2];
        uint8_t *data = malloc(num_bytes), *indices = malloc(count);
        if (fread(data, 1, num_bytes, stdin) != num_bytes) return 1;
        decode(data, count, (unsigned)sizes[0], indices);
        fwrite(indices, 1, count, stdout);
        free(data);
        free(indices);
    }
    return 0;
}
"""
    )
    kernels = ROOT / "speech" / "net" / "kernels"
    subprocess.run(
        [COMPILER, *STRICT, f"-I{kernels}", "decode.c", "-o", "decode", "-lm"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    coded = [indexcoder.encode(indices, num_values) for num_values, indices in cases]
    records = [
        struct.pack("=3i", num_values, len(indices), len(data)) + data
        for (num_values, indices), data in zip(cases, coded, strict=True)
    ]
    # No encoder writes this; it lies beyond all counts and still is an index into the codebook.
    records.append(struct.pack("=3i", 7, 20, 64) + b"\xff" * 64)
    cases.append((7, np.full(20, 6)))
    done = subprocess.run(["./decode"], cwd=tmp_path, input=b"".join(records), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = np.frombuffer(done.stdout, np.uint8)
    assert_array_equal(found, np.concatenate([indices for _, indices in cases]))


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
    assert found.sizes.table_bytes == sizes
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
    if stored.num_indices:
        assert stored.num_indices == kept.sum()
        indices = decode(stored.data, stored.num_indices, stored.book_size)
    else:
        width = math.ceil(math.log2(stored.book_size))
        text = "".join(f"{byte:08b}" for byte in stored.data)
        indices = [int("0" + text[at * width :][:width], 2) for at in range(kept.sum())]
        assert len(stored.data) == math.ceil(kept.sum() * width / 8) + 2
    book = np.frombuffer(stored.book, {2: "<f4", 3: "<f2", 4: "<f4", 5: "<f2"}[stored.format])
    assert len(book) == stored.book_size
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
    coded = plain_c.stored(kernel, coded=True)
    assert coded.num_bytes <= stored.num_bytes
    # Coding saves something where some values are rare, or take a fraction of a bit less.
    pays = form in ("columns of zeros", "zeros")
    assert coded == stored if not pays else coded.num_indices > 0
    assert_array_equal(decoded(coded, shape), kernel)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_coded_indices_come_close_to_their_entropy(rng, share):
    shares = np.append(share, rng.dirichlet(np.ones(19)) * (1 - share))
    indices = rng.permutation(np.repeat(np.arange(20), np.rint(6000 * shares).astype(int)))
    found = np.bincount(indices, minlength=20) / len(indices)
    bits = -len(indices) * (found[found > 0] * np.log2(found[found > 0])).sum()
    data = indexcoder.encode(indices, 20)
    assert decode(data, len(indices), 20) == indices.tolist()
    # Each of 19 free shares costs about half of log2(6000) bits to learn.
    assert bits <= 8 * len(data) <= bits + 19 * 0.5 * np.log2(6000) + 64


def test_indices_outside_of_the_codebook_are_refused():
    for indices, num_values in [([0, 3], 3), ([-1], 3), ([0], 257)]:
        with pytest.raises(ValueError, match=f"into {num_values} values, expected"):
            indexcoder.encode(np.array(indices), num_values)


def test_indices_are_coded_where_that_pays(tmp_path):
    """Values of about equal numbers are packed, values of which some are rare are coded."""
    even = clustered(mask_layers(TINY), 16)
    for layers, is_coded in ((even, False), (uneven(even), True)):
        file = write_mask_network(tmp_path / "net.icse", layers)
        coded, packed = (plain_c.sizes_of(file, name) for name in plain_c.WEIGHTS)
        assert (coded.weight_bytes < 0.95 * packed.weight_bytes) == is_coded
        assert plain_c.sizes_of(file) == (coded if is_coded else packed)
    with pytest.raises(ValueError, match="weights is 'gzip', expected coded or packed, or None"):
        plain_c.plain_c(file, "gzip")


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


def test_the_command_stores_weights_as_told(tmp_path, capsys):
    file = write_mask_network(tmp_path / "net.icse", clustered(mask_layers(TINY), 16, 0.7))
    words = [str(file.path), "--to", "c", "-o", str(tmp_path / "c")]
    for weights in plain_c.WEIGHTS:
        sizes = plain_c.sizes_of(file, weights)
        assert export.main([*words, "--weights", weights]) == 0
        output = capsys.readouterr().out
        texts = {path.name: path.read_text() for path in (tmp_path / "c").iterdir()}
        assert ("DENOISE_CODED_TO" in texts["weights.c"]) == (weights == "coded")
        assert f"flash      {sizes.weight_bytes:,} bytes of weights" in output
        decoded_indices = f"{sizes.index_bytes:,} for decoded indices\n"
        in_memory = f"{sizes.index_bytes:,} bytes of them for decoded indices"
        in_readme = f"{sizes.index_bytes:,} are decoded indices"
        for part, text in (
            (decoded_indices, output),
            (in_memory, texts["weights.h"]),
            (in_readme, texts["README.md"]),
        ):
            assert (part in text) == (weights == "coded")
    with pytest.raises(SystemExit) as stopped:
        export.main([str(file.path), "--to", "onnx", "--weights", "coded"])
    assert stopped.value.code == 2 and "--weights is for --to c" in capsys.readouterr().err


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
