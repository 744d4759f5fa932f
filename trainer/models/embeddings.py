"""A text's embedding from a model's states: pooled, mapped where the folder has a map, and divided by its length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.embedding_folders import (
    EmbeddingFolder,
    check_dense,
    read_embedding_folder,
    write_embedding_folder,
)
from schemas.errors import UsageError, one_line
from schemas.spec import Spec

_WEIGHTS = "model.safetensors"


def pooled(
    hidden: Float[Tensor, "B S H"], mask: Int64[Tensor, "B S"] | None, pooling: str
) -> Float[Tensor, "B H"]:
    """`mean` over the tokens that are not padding, the first token (`cls`), or the `last` that is not padding; without
    a mask none is."""
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden[:, -1] if pooling == "last" else hidden.mean(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(-1) - 1]
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedder:
    """How a student's states become its embedding."""

    told: EmbeddingFolder
    """As its folder says, or as the cache has its teacher's."""
    dense: nn.Linear | None = None
    """The map of its folder."""

    @classmethod
    def of(cls, spec: Spec, folder: str | Path | None = None, *, is_static: bool = False) -> Embedder | None:
        """Of the student in a folder, or of one that is new; None where a cache's task is another. Of a static one
        every token's state is the text's mean.

        Raises:
            UsageError: the folder's modules are not known here.
        """
        if spec.kind.has_positions:
            return None
        settings = dict(spec.task_settings)
        told = EmbeddingFolder(
            pooling=spec.features[0].pooling,
            normalize=bool(settings["normalize"]),
            max_length=None if spec.kind.reads_images else spec.max_length,
            prompt=str(settings.get("prompt", "")),
            is_static=is_static,
        )
        found = None if folder is None else read_embedding_folder(folder, is_static=is_static)
        if found is None or found.dense is None:
            return cls(told=found or told)
        return cls(told=found, dense=_dense(Path(str(folder)), found.dense))

    def __call__(
        self, states: Float[Tensor, "B S H"], mask: Int64[Tensor, "B S"] | None
    ) -> Float[Tensor, "B D"]:
        """In float32, from the last hidden states and 1 for what is no padding."""
        found = pooled(states, mask, self.told.pooling)
        if self.dense is not None:
            found = self.dense.to(found.device, found.dtype)(found)
        return F.normalize(found.float(), dim=-1) if self.told.normalize else found.float()

    def save(self, folder: Path, *, width: int, dense: tuple[Tensor, Tensor] | None) -> None:
        """Beside a saved model whose states are so wide: the modules, and weight and bias of the map where there is
        one."""
        dense_width = None if dense is None else len(dense[1])
        write_embedding_folder(folder, self.told, width=width, dense_width=dense_width)
        if dense is not None:
            weight, bias = (part.detach().float().cpu().contiguous() for part in dense)
            save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / _WEIGHTS)


def _dense(folder: Path, name: str) -> nn.Linear:
    check_dense(folder, name)
    path = folder / name / _WEIGHTS
    try:
        weights = load_file(path)
        weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")
        found = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        found.load_state_dict(
            {"weight": weight} if bias is None else {"weight": weight, "bias": bias.float()}
        )
    except (OSError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            "a student's linear map cannot be opened", where=path, got=one_line(error)
        ) from error
    return found.requires_grad_(False)
