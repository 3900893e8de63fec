"""Pictures of spectrograms, without axes: small PNG files of few colours."""

from __future__ import annotations

import io

import numpy as np

_NUM_COLORS = 64


def level_png(levels_db: np.ndarray, top_db: float, range_db: float) -> bytes:
    """Returns levels in time and frequency as a PNG: time to the right, frequency upwards.

    Args:
        levels_db: float [num_frames, num_bands].
        top_db: Level of the brightest colour.
        range_db: From there down to black.
    """
    import matplotlib
    from PIL import Image

    share = np.clip((levels_db - top_db) / range_db + 1, 0, 1)
    indices = np.round(share.T[::-1] * (_NUM_COLORS - 1)).astype(np.uint8)
    colors = matplotlib.colormaps["magma"](np.linspace(0, 1, _NUM_COLORS), bytes=True)[:, :3]
    image = Image.fromarray(indices, "L")
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
