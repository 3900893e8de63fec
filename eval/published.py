"""Published scores of denoising and dereverberation by one network, to stand beside ours.

Means by SNR of a network trained for both jobs at once. The speech, noises and rooms are others
than ours.
"""

from __future__ import annotations

SOURCE = (
    "Wu, Yu, Fu, Liu, Chien, Tsao: Increasing Compactness of Deep Learning Based Speech "
    "Enhancement Models with Parameter Pruning and Quantization Techniques (2019)"
)

#: SNRs of the columns of `JOINT_TRAINING`.
JOINT_SNRS_DB = (18.0, 12.0, 6.0, 0.0, -6.0)

#: Job -> metric, by the names of `eval.metrics` -> a value for each SNR.
JOINT_TRAINING: dict[str, dict[str, tuple[float, ...]]] = {
    "denoising": {
        "pesq_wb": (3.33, 2.88, 2.45, 2.04, 1.68),
        "stoi": (0.94, 0.92, 0.88, 0.79, 0.64),
    },
    "dereverberation": {
        "pesq_wb": (2.13, 1.99, 1.81, 1.62, 1.46),
        "stoi": (0.72, 0.69, 0.65, 0.58, 0.48),
    },
}
