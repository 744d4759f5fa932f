"""The distribution `teachonce`, listed by name; also what Beam's `--setup_file` ships to workers.

Beam installs it on workers *without* extras: a worker image holds `[pipelines]` already.
"""

from setuptools import setup

ROOMS = {
    "schemas": "storage rows shards versions upkeep reports reports.plots cli",
    "pipelines": "keep engine tasks corpus teacher fingerprint scoring job upkeep cli",
    "trainer": "models reading losses batches metrics tasks stream students checkpoints training evaluation sweep cli",
}
"""What is not listed does not reach Beam's workers."""

TORCH = ["torch>=2.9", "transformers>=5", "tokenizers", "safetensors", "huggingface_hub"]

setup(
    name="teachonce",
    version="0.1.0",
    description="Knowledge distillation where the teacher runs once and students train many times",
    python_requires=">=3.11",
    packages=[*ROOMS, *(f"{package}.{room}" for package, rooms in ROOMS.items() for room in rooms.split())],
    package_data={package: ["py.typed"] for package in ROOMS},
    py_modules=["teachonce"],
    install_requires=[
        "numpy>=2",
        "pyarrow>=20",
        "deltalake>=1.6",
        "obstore>=0.9",
        "rich>=14",
        "jaxtyping>=0.3",
        "zstandard>=0.23",
    ],
    extras_require={
        "detection": ["pycocotools>=2.0.8", "torchmetrics>=1.4"],
        "gcs": ["apache-beam[gcp]>=2.77"],
        "images": ["pillow>=11", "timm>=1.0", "torchvision>=0.24"],
        "lora": ["peft>=0.20"],
        "large": ["accelerate>=1.1", "compressed-tensors>=0.12"],
        "pipelines": ["apache-beam>=2.77", "jinja2>=3.1", "numba>=0.60", *TORCH],
        "onnx": ["onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.6"],
        "report": ["altair>=6", "vl-convert-python>=1.8"],
        "s3": ["boto3>=1.35"],
        "sweep": ["optuna>=4.5"],
        "tensorboard": ["tensorboard>=2.19"],
        "text": ["sacrebleu>=2.4", "torchmetrics>=1.4"],
        "trainer": ["accelerate>=1.1", "numba>=0.60", "scikit-learn>=1.6", "scipy>=1.11", "pyyaml", *TORCH],
        "dev": [
            "beartype>=0.20",
            "datasets",
            "duckdb",
            "gguf",
            "import-linter>=2.3",
            "matplotlib",
            "mypy",
            "pandas",
            "peft>=0.20",
            "polars",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff",
            "uv",
        ],
    },
    entry_points={"console_scripts": ["teachonce = teachonce:main"]},
)
