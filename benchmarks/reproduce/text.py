"""Numbers, intervals and tables as the results page writes them."""

from __future__ import annotations

import math

from benchmarks.reproduce.raw import Row

#: Decimals of means and of differences.
DIGITS = {"pesq_wb": (3, 3), "pesq_nb": (3, 3), "stoi": (3, 4), "ssnri": (2, 2), "si_sdr": (2, 2)}
LABELS = {
    "pesq_wb": "PESQ-WB",
    "pesq_nb": "PESQ-NB",
    "stoi": "STOI",
    "ssnri": "SSNRI, dB",
    "si_sdr": "SI-SDR, dB",
}


def duration(seconds: float) -> str:
    """Returns seconds as words."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float | None, digits: int, sign: str = "") -> str:
    """Returns a number in so many decimals, '-' for one that is not defined; never '-0.00'."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def interval(low: float, high: float, digits: int, sign: str = "+") -> str:
    """Returns '(LOW to HIGH)', or nothing where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" ({number(low, digits, sign)} to {number(high, digits, sign)})"


def score(row: Row, baseline: bool = False) -> str:
    """Returns the mean of a row of `raw.compared`, its difference and interval."""
    digits, finer = DIGITS[row["metric"]]
    text = number(row["mean"], digits)
    if baseline or not row["n"]:
        return text
    ends = interval(row["low"], row["high"], finer)
    return f"{text}, {number(row['difference'], finer, '+')}{ends}"
