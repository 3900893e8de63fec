"""Tables 1 to 3 of the paper, to stand beside ours.

M. Kim: Collaborative Deep Learning for Speech Enhancement: A Run-Time Model Selection Method Using
Autoencoders, ICASSP 2017. Rows are test conditions; columns are the experts, then `COLUMNS`.
"""

from __future__ import annotations

SOURCE = "Kim, ICASSP 2017, tables 1 to 3 (TIMIT)"

#: Column after the experts: metric of the selection and autoencoder.
COLUMNS = ("chance", "snr 128", "snr 2048x2", "ae 128", "ae 2048x2", "oracle")

EXPERTS: dict[str, tuple[str, ...]] = {
    "noise": ("birds", "typing", "motorcycle"),
    "gender": ("male", "female"),
    "snr": ("-5 dB", "0 dB", "5 dB"),
}

SDR_DB: dict[str, dict[str, tuple[float, ...]]] = {
    "noise": {
        "birds": (12.12, 0.00, 0.49, 4.21, 12.12, 12.12, 12.12, 12.12, 12.12),
        "typing": (0.18, 12.74, -0.83, 4.03, 12.74, 12.74, 12.74, 12.74, 12.74),
        "motorcycle": (5.80, 3.40, 10.15, 6.45, 9.93, 9.81, 9.93, 9.81, 10.15),
    },
    "gender": {
        "male": (10.38, 8.15, 9.27, 9.78, 10.10, 9.65, 10.06, 10.45),
        "female": (7.58, 11.00, 9.29, 10.85, 10.91, 10.76, 10.79, 11.02),
    },
    "snr": {
        "-5 dB": (6.89, 7.00, 6.37, 6.75, 7.01, 6.94, 7.03, 7.01, 7.27),
        "0 dB": (9.35, 9.87, 9.91, 9.71, 10.03, 10.07, 9.92, 10.04, 10.25),
        "5 dB": (11.55, 12.24, 12.79, 12.19, 12.64, 12.80, 12.49, 12.65, 12.90),
    },
}

STOI: dict[str, dict[str, tuple[float, ...]]] = {
    "noise": {
        "birds": (0.8501, 0.7820, 0.7636, 0.7986, 0.8501, 0.8501, 0.8501, 0.8501, 0.8501),
        "typing": (0.7130, 0.8581, 0.7161, 0.7624, 0.8581, 0.8581, 0.8581, 0.8581, 0.8581),
        "motorcycle": (0.7822, 0.7737, 0.8260, 0.7940, 0.8243, 0.8229, 0.8260, 0.8229, 0.8260),
    },
    "gender": {
        "male": (0.8561, 0.7951, 0.8256, 0.8362, 0.8447, 0.8338, 0.8457, 0.8561),
        "female": (0.8026, 0.8503, 0.8265, 0.8477, 0.8491, 0.8467, 0.8479, 0.8505),
    },
    "snr": {
        "-5 dB": (0.7569, 0.7535, 0.7380, 0.7495, 0.7494, 0.7470, 0.7508, 0.7496, 0.7609),
        "0 dB": (0.8253, 0.8305, 0.8268, 0.8276, 0.8289, 0.8283, 0.8289, 0.8289, 0.8340),
        "5 dB": (0.8775, 0.8837, 0.8863, 0.8825, 0.8856, 0.8864, 0.8850, 0.8855, 0.8883),
    },
}

TABLES = {"sdr": SDR_DB, "stoi": STOI}
