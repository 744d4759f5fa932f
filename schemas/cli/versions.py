"""`teachonce --version`: ours, and those of the libraries that decide what a run says. Nothing is imported for it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    *("apache-beam", "torch", "transformers", "tokenizers", "accelerate", "peft"),
    *("numpy", "pyarrow", "deltalake", "obstore"),
)


def versions() -> list[str]:
    """One line each, as a report of a fault needs them."""
    names = ("teachonce", *_LIBRARIES)
    return [*(f"{name} {_version(name)}" for name in names), f"python {platform.python_version()}"]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
