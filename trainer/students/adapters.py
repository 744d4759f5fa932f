"""Low-rank adapters (LoRA: arXiv:2106.09685) on a student whose own weights stay as they are, by the PEFT library.

PEFT puts its layers into the model itself, so the student stays a model of its class: its head, body and layers are
found as before. The output layer and the embedding are not adapted: the head is applied apart, by its weight. What a
classifier has beside its body, and what its folder lacks, is trained whole and saved with the adapters.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from schemas.errors import StudentError, UsageError, one_line
from schemas.model_heads import body_of
from trainer.models.shrink import embedding
from trainer.students.lora import ALL_LINEAR, Lora

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_ADAPTER = "default"
_TRIED_B = 0.02
"""Largest entry of B while a student is tried; at birth B is zero, and the adapters say nothing."""


def peft_library() -> Any:
    """The module `peft`.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("adapters need a package that is not installed", do="pip install 'teachonce[lora]'")
    return importlib.import_module("peft")


def loading_options(lora: Lora) -> dict[str, Any]:
    """What `from_pretrained` is told of a base beside the usual.

    Raises:
        UsageError: a package or a device is missing.
    """
    peft_library()
    return lora.loading()


def attach(
    model: Any,
    lora: Lora,
    *,
    base: str,
    revision: str | None,
    task_type: str | None,
    whole: Sequence[str] = (),
) -> Any:
    """Puts adapters into a model and freezes all else; gives PEFT's view of it.

    Args:
        model: the base, opened from its folder or from the hub.
        lora: the settings.
        base: the base as the user named it.
        revision: its commit on the hub, where it is from there.
        task_type: what PEFT calls the task.
        whole: modules that are trained whole, and saved with the adapters.

    Raises:
        StudentError: no such layer, or one that cannot be adapted.
    """
    targets = _targets(model, lora.targets, whole)
    config = peft_library().LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(whole) or None,
        task_type=task_type,
    )
    folder = Path(base).expanduser()
    config.base_model_name_or_path = str(folder.absolute()) if folder.is_dir() else base
    config.revision = revision
    return inject(model, config)


def inject(model: Any, config: Any) -> Any:
    """Puts the layers of a `LoraConfig` into a model.

    Raises:
        StudentError: PEFT cannot, or the output layer or the embedding would be adapted.
    """
    ends = {"output layer": model.get_output_embeddings(), "embedding": embedding(model)}
    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning):  # GPT-2's transposed layers are told of, and handled
            warnings.simplefilter("ignore", kind)
        try:
            adapter = peft_library().PeftModel(model, config, _ADAPTER)
        except Exception as error:
            raise StudentError(
                f"{type(model).__name__} cannot be adapted by LoRA", got=one_line(error).rstrip(".")
            ) from error
    wrapped = {
        id(part)
        for module in model.modules()
        for name, inner in module.named_children()
        if name in ("base_layer", "original_module")
        for part in inner.modules()
    }
    for what, layer in ends.items():
        if id(layer) in wrapped:
            raise StudentError(
                f"the student's {what} cannot be adapted: the head is applied apart from the model",
                where=type(model).__name__,
                got=next(name for name, module in model.named_modules() if module is layer),
                do="Leave it out of the targets and of modules_to_save",
            )
    return adapter


def _targets(model: Any, wanted: Sequence[str], whole: Sequence[str]) -> list[str] | str:
    """The layers by the names that were told; each name must be one's.

    Raises:
        StudentError: naming the layers that there are.
    """
    if tuple(wanted) == (ALL_LINEAR,):
        return ALL_LINEAR
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and not any(name == part or name.startswith(f"{part}.") for part in whole)
    ]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise StudentError(
                "--lora: the student has no such linear layer to adapt",
                where=type(model).__name__,
                expected=", ".join(sorted({name.rpartition(".")[2] for name in linear})),
                got=target,
            )
    return sorted(wanted)


def trained_whole(model: Any, missing: Sequence[str], *, classifies: bool) -> tuple[str, ...]:
    """The modules that no adapter can do for: what a classifier has beside its body, and what its folder lacks."""
    body = body_of(model)
    found = {name.rpartition(".")[0] for name in missing} - {""}
    if classifies and body is not model:
        beside = {
            n
            for n, part in model.named_children()
            if part is not body and any(True for _ in part.parameters())
        }
        found = {name for name in found if name.partition(".")[0] not in beside} | beside
    return tuple(sorted(found))


@contextmanager
def speaking(model: nn.Module) -> Iterator[None]:
    """While it lasts the adapters say something: at birth they are a product with zero, which would hide a fault."""
    found = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    before = [weight.detach().clone() for weight in found]
    with torch.no_grad():
        for weight in found:
            some = torch.linspace(-_TRIED_B, _TRIED_B, weight.numel(), device=weight.device)
            weight.copy_(some.view(weight.shape))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(found, before, strict=True):
                weight.copy_(old)


def save_adapter(adapter: Any, folder: Path) -> None:
    """Writes what PEFT opens: its config and the weights that were trained, in safetensors."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in adapter_weights(adapter).items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = adapter.peft_config[_ADAPTER]
    targets = config.target_modules
    saved = copy.copy(config)
    saved.inference_mode = True
    saved.target_modules = targets if isinstance(targets, str) else sorted(targets)
    own = type(adapter.get_base_model())
    mapping = {"base_model_class": own.__name__, "parent_library": own.__module__}
    saved.save_pretrained(str(folder), auto_mapping_dict=None if saved.task_type else mapping)


def adapter_weights(adapter: Any) -> dict[str, Tensor]:
    """What is trained of a student with adapters, by PEFT's names."""
    found: dict[str, Tensor] = peft_library().get_peft_model_state_dict(
        adapter, adapter_name=_ADAPTER, save_embedding_layers=False
    )
    return found


def load_adapter(adapter: Any, folder: Path) -> None:
    """Takes the weights of a saved adapter.

    Raises:
        UsageError: the file cannot be read.
        StudentError: it is not of this base's layers and shapes.
    """
    try:
        saved = load_file(folder / WEIGHTS_NAME)
    except Exception as error:
        raise UsageError(
            "the adapter's weights cannot be read",
            where=folder / WEIGHTS_NAME,
            got=one_line(error).rstrip("."),
        ) from error
    ours = {name: tuple(weight.shape) for name, weight in adapter_weights(adapter).items()}
    theirs = {name: tuple(weight.shape) for name, weight in saved.items()}
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise StudentError(
            "the adapter does not fit its base model",
            where=folder,
            expected=f"{name} of shape {ours.get(name, 'none')}",
            got=f"{theirs.get(name, 'none')}, and {len(different) - 1} that differ besides",
        )
    peft_library().set_peft_model_state_dict(adapter, saved, adapter_name=_ADAPTER)
