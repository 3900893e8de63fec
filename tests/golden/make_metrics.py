"""Writes metrics.json: scores of 20 bundled mixtures by outside tools, none of this package's.

::

    pip install mir_eval==0.8.2 fast_bss_eval==0.1.4
    python -m tests.golden.make_metrics
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from pathlib import Path

from speech.data import corpus

FILE = Path(__file__).with_name("metrics.json")
NUM_PAIRS = 20
TOOLS = ("mir_eval", "fast_bss_eval", "pesq", "pystoi")


def mixtures():
    """Yields (name, clean, noisy) of one utterance in each noise, at all SNRs in turn."""
    speech, noises = corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST")
    plans = corpus.spread_mixtures(speech, noises, [-5.0, 0.0, 5.0, 10.0, 15.0], 1)
    for plan in sorted(plans, key=lambda p: (p.noise.name, p.snr_db))[:: len(plans) // NUM_PAIRS]:
        mixture = corpus.render(plan)
        yield (
            plan.relative_path.as_posix(),
            mixture.clean.astype(float),
            mixture.noisy.astype(float),
        )


def main() -> None:
    import fast_bss_eval
    import mir_eval
    import pesq
    import pystoi

    warnings.simplefilter("ignore", FutureWarning)  # mir_eval takes the function away in 0.9
    pairs = []
    for name, clean, noisy in mixtures():
        one, other = clean[None], noisy[None]
        pairs.append(
            {
                "name": name,
                "num_samples": len(clean),
                "sdr": float(mir_eval.separation.bss_eval_sources(one, other, False)[0][0]),
                "si_sdr": float(fast_bss_eval.si_sdr(one, other)[0]),
                "pesq_wb": pesq.pesq(16000, clean, noisy, "wb"),
                "pesq_nb": pesq.pesq(16000, clean, noisy, "nb"),
                "stoi": float(pystoi.stoi(clean, noisy, 16000)),
                "estoi": float(pystoi.stoi(clean, noisy, 16000, extended=True)),
            }
        )
    golden = {
        "what": "Noisy against clean: mixtures of the bundled test set",
        "sources": {
            "sdr": "mir_eval.separation.bss_eval_sources (Raffel et al. 2014, BSS Eval v3)",
            "si_sdr": "fast_bss_eval.si_sdr (Scheibler 2021, arXiv:2110.06440)",
            "pesq_wb, pesq_nb": "pesq.pesq (C code of ITU-T P.862 and P.862.2)",
            "stoi, estoi": "pystoi.stoi (Pariente; checked by its author against the MATLAB code)",
        },
        "versions": {tool: importlib.metadata.version(tool) for tool in TOOLS},
        "made_by": "python -m tests.golden.make_metrics",
        "pairs": pairs,
    }
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
