"""Published figures that `benchmarks.reproduce.page` puts beside ours."""

from __future__ import annotations

from dataclasses import dataclass

from eval.plots import PUBLISHED_SIZE_PESQ
from mnn import published

ICSE = "Wu et al. 2019 (TIMIT)"

TIMIT_FCN = {"pesq_wb": 2.55, "stoi": 0.85}

#: theta, k, size in percent by the paper's rule, PESQ.
SIZE_PESQ = PUBLISHED_SIZE_PESQ

#: Corpus, size, (PESQ of the FCN, of PP + PQ), (STOI likewise).
COMPRESSED = (
    ("TIMIT, theta 0.65, k = 16", "9.76 %", (2.55, 2.52), (0.85, 0.84)),
    ("abstract of arXiv:1906.01078", "10.03 %", (1.85, 1.79), (0.70, 0.69)),
    ("CHiME-2", "8 times smaller", (2.03, 2.01), (0.75, 0.74)),
    ("MHINT", "10 times smaller", (2.17, 2.08), (0.86, 0.84)),
)

#: Key of ``eval.cost`` -> of the FCN, of the pruned one.
COST = {
    "parameters": ("300,931", "-"),
    "zero_kernels": ("0", "1,190"),
    "flop_per_step": ("600,600", "-"),
    "sparse_flop_per_step": ("-", "480,000"),
}

#: SCALE-Sim, Conv1 to Conv7.
CYCLES = {
    "dense": (131984, 3955099, 3951809, 3950137, 3946847, 3943557, 3941885),
    "pruned": (131980, 3295924, 3424909, 3291787, 3157487, 3154857, 2627935),
}

#: Metric -> experiment -> row -> experts, chance, selections, oracle.
MNN = published.TABLES

#: Of this page's tables, beyond docs/departures.md and docs/mnn.md; the first is the header.
DEPARTURES = (
    ("what", "published", "here", "why"),
    (
        "speech and noise",
        "TIMIT, MHINT, CHiME-2 with their noises",
        "the open corpus and the bundled one",
        "TIMIT is licensed; all of ours can be had by anybody",
    ),
    (
        "length of training",
        "60 passes over 30,000 utterances",
        "the shipped model: `models/fcn.md`; what follows it: the commands above",
        "hours of two cores",
    ),
    (
        "what is pruned",
        "channels above theta = 0.65",
        "the share that this left out of the released model, 22 %, and 15 %",
        "one theta gives other shares on other networks",
    ),
    (
        "size",
        "non-zero weights x log2(k) bits",
        "bytes of a file that works; the paper's rule stands beside it",
        "the rule leaves out codebooks, masks, biases and normalisation",
    ),
    (
        "PESQ",
        "called PESQ",
        "PESQ-WB, which the published scripts compute, and PESQ-NB",
        "two scales, far apart",
    ),
    ("intervals", "none", "95 % bootstrap", "files differ far more than systems"),
    (
        "optimizer of experts and autoencoders",
        "Rprop, up to 5000 iterations",
        "Adam, fewer (`SCALES` in `mnn/experiments.py`)",
        "hours in place of days",
    ),
    (
        "cycles",
        "SCALE-Sim, settings not given",
        "the settings that give the published figures ([docs/cost.md](docs/cost.md))",
        "",
    ),
)


@dataclass(frozen=True)
class Tool:
    """What is known of a system of other people; '-' is what is not.

    Attributes:
        parameters: Of its networks.
        million_macs: Per second of audio.
        block_ms: Of the samples that it takes at a time; 0 if it needs all of them.
        latency: If ``block_ms`` is 0.
        causal: Whether no output depends on later input than its latency allows.
        trained_on: Data.
    """

    parameters: str = "-"
    million_macs: str = "-"
    block_ms: float = 0.0
    latency: str = "-"
    causal: str = "-"
    trained_on: str = "-"


TOOLS = {
    "noisereduce": Tool("none", latency="the whole utterance", causal="no", trained_on="nothing"),
    "WebRTC": Tool("none", block_ms=10, causal="yes", trained_on="nothing"),
    "RNNoise": Tool(block_ms=10, causal="yes"),
    "GTCRN": Tool("48,228", "33", 16, causal="yes", trained_on="third DNS-Challenge"),
    "DTLN": Tool("987,000", "123", 8, causal="yes", trained_on="first DNS-Challenge, 500 h"),
    "DeepFilterNet 3": Tool("2,135,000", block_ms=10, causal="no, 20 ms ahead"),
}
TOOLS_SOURCE = (
    "What others were trained on and the MACs of GTCRN stand in their repositories "
    "(Xiaobin-Rong/gtcrn, breizhn/DTLN). Parameters of others were counted in their files, with "
    "the fixed bands of GTCRN; the MACs of DTLN are its weights, each used once per frame of 8 ms; "
    "the time ahead of DeepFilterNet 3 is that of its configuration. What is not known is left out."
)

#: Name of our model -> data.
OUR_TRAINING = {
    "denoise": "open corpus, 200 utterances of LibriSpeech ([card](models/denoise.md))",
    "fcn": "open corpus ([card](models/fcn.md))",
    "fcn_small": "open corpus ([card](models/compressed.md))",
}


def recoveries(metric: str = "sdr") -> dict[str, dict[str, list[float]]]:
    """Returns recovery of the published rows: experiment -> column -> a value a row.

    Args:
        metric: 'sdr' or 'stoi'.
    """
    found: dict[str, dict[str, list[float]]] = {}
    columns = published.COLUMNS
    for experiment, rows in published.TABLES[metric].items():
        own = found.setdefault(experiment, {name: [] for name in columns[1:-1]})
        for values in rows.values():
            by_name = dict(zip(columns, values[-len(columns) :], strict=True))
            gap = by_name["oracle"] - by_name["chance"]
            for name in own:
                own[name].append((by_name[name] - by_name["chance"]) / gap)
    return found
