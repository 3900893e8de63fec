"""Active speech level, frame by frame, in float64."""

import math


def active_power(samples, frame=320, range_db=30.0):
    """Mean square over the frames within ``range_db`` of the loudest one."""
    powers = []
    for start in range(0, len(samples) - frame + 1, frame):
        powers.append(sum(float(x) ** 2 for x in samples[start : start + frame]) / frame)
    loudest = max(powers)
    active = [p for p in powers if p > 0 and 10 * math.log10(p / loudest) >= -range_db]
    return sum(active) / len(active)
