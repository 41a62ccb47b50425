"""All metadata of the package: `pip install .`, or `pip install -e .[dev]` to work on it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(
    r'__version__ = "(.+)"', Path(__file__).with_name("vit_jax").joinpath("__init__.py").read_text()
)[1]

setup(
    name="vit_jax",
    version=VERSION,
    description="Trains Vision Transformers in JAX and Flax, from one CPU core to a pod",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["vit_jax", "vit_jax.*"]),
        "vit_jax.configs",
        "vit_jax.launch",
    ],
    package_data={
        "vit_jax.data": ["synsets.txt.xz"],
        "vit_jax.launch": ["kubernetes.yaml"],
        "vit_jax.planning": ["gpus.csv"],
        "vit_jax.pretrained": ["catalog.csv"],
    },
    package_dir={"vit_jax.configs": "configs", "vit_jax.launch": "launch"},
    entry_points={"console_scripts": ["vit = vit_jax.cli:entry"]},
    # Lower bounds: .ci/constraints-lowest.txt. Upper ones: the next minor version of JAX's family
    # after what Python 3.12+ has (.ci/constraints-3.12.txt), the next major one of the rest.
    install_requires=[
        "absl-py>=2.3,<3",
        "array_record>=0.8.1,<0.9",
        "clu>=0.0.12,<0.1",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "importlib_resources>=6,<8",  # of TFDS's builders in packages, which do not ask for it
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3,<0.4",
        "ml_collections>=1.1,<2",
        "numpy>=2.2,<3",
        "opencv-python-headless>=4.11,<6",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=11.3,<14",
        "pyyaml>=6.0.1,<7",
        "rich>=13,<16",
        "safetensors>=0.5,<1",
        "scikit-learn>=1.6,<2",
        "simplejpeg>=1.8,<2",
        "tensorboardX>=2.6.2.2,<3",
        "tensorflow-datasets>=4.9.10,<5",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "tf": ["tensorflow-cpu>=2.21"],
        "hf": ["datasets>=3"],
        "weights": ["torch>=2.6"],
        "export": ["flatbuffers>=24.3.25"],
        # Of jax2onnx pip takes 0.13.0: what follows refuses the orbax-checkpoint needed above.
        "onnx": ["flatbuffers>=24.3.25", "jax2onnx>=0.13,<0.18", "onnx>=1.20.1,<2",
                 "onnxruntime>=1.24.1,<2"],
        "sweep": ["optuna>=4,<6"],
        "slurm": [],  # nothing any more: for those who still ask for it
        "kubernetes": ["kubernetes>=37,<38"],
        "plots": ["matplotlib>=3.10"],
        "wandb": ["wandb>=0.25,<1"],
        "mlflow": ["mlflow>=3,<4"],  # mlflow-skinny is enough for a server or a folder
        "trackio": ["trackio>=0.43,<1"],
        "dev": [
            "flatbuffers>=24.3.25", "hypothesis>=6", "import-linter>=2", "ipykernel>=6",
            "kubernetes>=37,<38", "kubernetes-validate>=1.37", "matplotlib>=3.10", "mypy>=1.15",
            "nbclient>=0.10", "optuna>=4,<6", "pycocotools>=2.0.10", "pytest>=8", "pytest-xdist>=3",
            "ruff>=0.9",
        ],
        "peers": [
            "datasets>=3", "mlflow-skinny>=3", "timm>=1.0.15", "torch>=2.6", "torchvision>=0.21",
            "transformers>=5", "wandb>=0.25,<1",
        ],
    },
)  # fmt: skip
