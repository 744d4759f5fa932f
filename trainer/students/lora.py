"""What LoRA adapters a student is asked to have, as words of the command line (LoRA: arXiv:2106.09685)."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from schemas.errors import UsageError

ALL_LINEAR = "all-linear"
LARGEST_RANK = 2**16
_EXPECTED = "r=16 alpha=32 dropout=0.05 targets=q_proj,v_proj"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What adapters are asked for."""

    r: int = 16
    alpha: int | float = 32
    """The adapters' product is multiplied by `alpha / r`."""
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of linear layers, or ends of names; `all-linear` is each but the output layer."""
    load_in_4bit: bool = False

    @classmethod
    def parse(cls, words: Sequence[str], *, load_in_4bit: bool = False) -> Lora:
        """The value of `r=16 alpha=32 dropout=0.05 targets=q_proj,v_proj`; alpha is 2 r where it is not told.

        Raises:
            UsageError: a name that is none of these or stands twice, or a value that cannot be.
        """
        told: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if name not in ("r", "alpha", "dropout", "targets") or not equals or name in told:
                raise UsageError(
                    "--lora cannot be read", expected=f"NAME=VALUE ..., as {_EXPECTED}", got=word
                )
            told[name] = value
        r = _number(told, "r", 16)
        if not (r == int(r) and 1 <= r <= LARGEST_RANK):
            raise UsageError(f"--lora: r must be a whole number from 1 to {LARGEST_RANK}", got=told["r"])
        alpha, dropout = _number(told, "alpha", 2 * r), _number(told, "dropout", 0.0)
        if alpha <= 0:
            raise UsageError("--lora: alpha must be above 0", got=told["alpha"])
        if not 0 <= dropout < 1:
            raise UsageError("--lora: dropout must be at least 0 and below 1", got=told["dropout"])
        targets = tuple(told.get("targets", ALL_LINEAR).split(","))
        if not all(re.fullmatch(r"[\w.-]+", name) for name in targets):
            raise UsageError(
                "--lora: targets are names of layers", expected="q_proj,v_proj", got=told["targets"]
            )
        if ALL_LINEAR in targets and len(targets) > 1:
            raise UsageError(f"--lora: {ALL_LINEAR} stands alone", got=told["targets"])
        alpha = int(alpha) if alpha == int(alpha) else alpha
        return cls(r=int(r), alpha=alpha, dropout=dropout, targets=targets, load_in_4bit=load_in_4bit)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record of a run."""
        return {**vars(self), "targets": ",".join(sorted(self.targets))}

    def loading(self) -> dict[str, Any]:
        """What `from_pretrained` is told of the base beside the usual.

        Raises:
            UsageError: 4 bits need a package, or a GPU.
        """
        if not self.load_in_4bit:
            return {}
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UsageError(
                "--load_in_4bit needs a package that is not installed", do="pip install bitsandbytes"
            )
        if not torch.cuda.is_available():
            raise UsageError(
                "--load_in_4bit needs a CUDA device", do="Leave it out: the base is then held in float32"
            )
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        return {"quantization_config": how, "device_map": {"": torch.cuda.current_device()}}


def _number(told: Mapping[str, str], name: str, default: int | float) -> float:
    try:
        value = float(told.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--lora: {name} must be a number", got=told[name])
    return value
