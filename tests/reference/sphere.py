"""NIST SPHERE files by hand, from the description of the format: 16-bit PCM behind 1024 bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def sphere_header(
    num_samples: int, sample_rate_hz: int = 16000, num_channels: int = 1, coding: str = ""
) -> bytes:
    fields = [
        "NIST_1A",
        "   1024",
        "database_id -s5 TIMIT",
        f"channel_count -i {num_channels}",
        f"sample_count -i {num_samples}",
        f"sample_rate -i {sample_rate_hz}",
        "sample_n_bytes -i 2",
        "sample_byte_format -s2 01",
        "sample_sig_bits -i 16",
    ]
    if coding:
        fields.append(f"sample_coding -s{len(coding)} {coding}")
    return "\n".join([*fields, "end_head\n"]).encode("ascii").ljust(1024)


def quantize(samples: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(samples) * 32768).astype("<i2")


def write_sphere(path: Path, samples: np.ndarray, sample_rate_hz: int = 16000) -> None:
    """Writes float [num_samples] or [num_samples, num_channels] within +-1."""
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    header = sphere_header(len(samples), sample_rate_hz, num_channels)
    path.write_bytes(header + quantize(samples).tobytes())
