"""A student that begins as the teacher with fewer layers, as DistilBERT did (arXiv:1910.01108, section 3).

Embeddings, final norm and head are taken as they are; of a multimodal teacher, its text model. The student is built
from its own config and filled. That it is what it should be is not believed but seen: each layer must be of the kind of
the teacher's that it was, and its logits those of the teacher whose other layers hand on what they were given.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import StudentError, UsageError, one_line
from trainer.models.config_cutting import cut_config
from trainer.models.layers import Stack, count_key, find_stack, kept_layers

_PREFIX = "shrink:"
_TOLERANCE = 2**-10
"""Largest difference of logits, relative to the largest of them: float32 and another order of sums."""
_DO = "Choose another number of layers, or start the student from a config .json"


Scores = Callable[[Any], Tensor]
"""From a forward's output."""


class Halves(NamedTuple):
    """Layers of an encoder-decoder's two halves."""

    encoder: int
    decoder: int


def parse_shrink(name: str) -> int | Halves | None:
    """The number of layers in `shrink:layers=3`, or of each half in `shrink:encoder=6,decoder=3`; None for a student
    that is named otherwise.

    Raises:
        UsageError: it begins with `shrink:` and goes on wrongly.
    """
    if not name.startswith(_PREFIX):
        return None
    number = r"([1-9]\d{0,5})"
    if match := re.fullmatch(f"layers={number}", name.removeprefix(_PREFIX)):
        return int(match[1])
    if match := re.fullmatch(f"encoder={number},decoder={number}", name.removeprefix(_PREFIX)):
        return Halves(int(match[1]), int(match[2]))
    expected = "shrink:layers=N; of an encoder-decoder also shrink:encoder=N,decoder=M"
    raise UsageError("--student shrinks how?", expected=expected, got=name)


def shrunk(
    teacher: Any,
    layers: int | Halves,
    kind: Any,
    scores: Scores = lambda output: output.logits,
    *,
    has_halves: bool = False,
) -> Any:
    """A new model with `layers` of the teacher's layers, by an Auto class; of one with two halves, of each. `scores`
    are what of an output must be the teacher's.

    Raises:
        StudentError: it has fewer layers, or they cannot be found or moved; or it has no halves.
    """
    if has_halves:
        halves = layers if isinstance(layers, Halves) else Halves(layers, layers)
        return _half_shrunk(
            _half_shrunk(teacher, "encoder", halves.encoder, kind), "decoder", halves.decoder, kind
        )
    if isinstance(layers, Halves):
        raise StudentError("this teacher is no encoder-decoder", got=type(teacher).__name__, do=_DO)
    config = teacher.config.get_text_config(decoder=True)
    body = teacher if config is teacher.config else teacher.get_decoder()
    stack = find_stack(body, config)
    kept = kept_layers(stack.kinds, layers)
    student = _built(teacher, config, kept, len(stack.kinds), kind)
    own = find_stack(student, student.config)
    _check_kinds(teacher, stack, own, kept)
    weights = _weights(teacher, body, student)
    moved = _moved(weights, student.state_dict(), own.name, kept, len(stack.kinds))
    try:
        student.load_state_dict(moved)
    except RuntimeError as error:
        raise _unmovable(teacher, str(error).splitlines()[-1].strip()) from error
    _check_scores(teacher, student, stack, kept, scores)
    return student


def _half_shrunk(teacher: Any, half: str, layers: int, kind: Any) -> Any:
    """A new model with so many of one half's layers; what the teacher generates by stays."""
    config, key = teacher.config, _count_of(teacher, half)
    module, prefix = _half_of(teacher, half)
    stack = find_stack(module, config, key)
    first_alone = len(set(stack.kinds[1:])) <= 1  # T5's has the positions of all, and number 0 is always kept
    kept = kept_layers(stack.kinds[-1:] * len(stack.kinds) if first_alone else stack.kinds, layers)
    student = _built(teacher, config, kept, len(stack.kinds), kind, key=key)
    _check_kinds(teacher, stack, find_stack(_half_of(student, half)[0], student.config, key), kept)
    place = f"{prefix}.{stack.name}"
    moved = _moved(teacher.state_dict(), student.state_dict(), place, kept, len(stack.kinds))
    try:
        student.load_state_dict(moved)
    except RuntimeError as error:
        raise _unmovable(teacher, str(error).splitlines()[-1].strip()) from error
    _check_scores(teacher, student, stack, kept, lambda output: output.logits)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _half_of(model: Any, half: str) -> tuple[Any, str]:
    """An encoder, or a decoder, and where it is."""
    found = model.get_encoder() if half == "encoder" else model.get_decoder()
    return found, next(name for name, module in model.named_modules() if module is found)


def _count_of(teacher: Any, half: str) -> str:
    """What a config calls the number of a half's layers: BART's names, or T5's."""
    names = [f"{half}_layers", f"num_{half}_layers", *(["num_layers"] if half == "encoder" else [])]
    name = next((name for name in names if isinstance(getattr(teacher.config, name, None), int)), None)
    if name is None:
        raise _unmovable(teacher, f"a config that does not count the {half}'s layers")
    return name


def _built(
    teacher: Any, config: Any, kept: Sequence[int], total: int, kind: Any, *, key: str | None = None
) -> Any:
    """The student, from a config as it will be read again from its folder."""
    values = cut_config(config.to_dict(), kept, total, key or count_key(config))
    if key == "encoder_layers" and "num_hidden_layers" in values:
        values["num_hidden_layers"] = len(kept)  # BART's other name of it
    for name in ("num_labels", "id2label", "label2id", "problem_type"):
        values.pop(name, None)
    try:
        own = type(config).from_dict(copy.deepcopy(values))
        for name in ("id2label", "label2id", "problem_type"):
            setattr(own, name, copy.deepcopy(getattr(teacher.config, name)))
        return kind.from_config(own, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise _unmovable(teacher, one_line(error).rstrip(".")) from error


def _check_kinds(teacher: Any, stack: Stack, own: Stack, kept: Sequence[int]) -> None:
    """The config must give the student the layers that were chosen."""
    common = stack.settings.keys() & own.settings.keys()
    for new, old in enumerate(kept):
        same = own.signatures[new] == stack.signatures[old] and all(
            own.settings[key][new] == stack.settings[key][old] for key in common
        )
        if not same:
            raise _unmovable(teacher, f"layer {new} is of another kind than the teacher's layer {old}")


def _weights(teacher: Any, body: Any, student: Any) -> Mapping[str, Tensor]:
    """The teacher's weights by the names that they have in the student."""
    if body is teacher:
        weights: Mapping[str, Tensor] = teacher.state_dict()
        return weights
    inner = {f"{student.base_model_prefix}.{name}": tensor for name, tensor in body.state_dict().items()}
    around = f"{teacher.base_model_prefix}."
    return inner | {name: t for name, t in teacher.state_dict().items() if not name.startswith(around)}


def _moved(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], layers: str, kept: Sequence[int], total: int
) -> dict[str, Tensor]:
    """Weights outside the layers, and those of kept layers under their new numbers."""
    numbers = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.(.*)")
    found = {}
    for name, tensor in weights.items():
        match = pattern.fullmatch(name)
        if match is None:
            found[name] = _sliced(tensor, wanted.get(name), kept, total)
        elif int(match[1]) in numbers:
            found[f"{layers}.{numbers[int(match[1])]}.{match[2]}"] = tensor
    return found


def _sliced(tensor: Tensor, wanted: Tensor | None, kept: Sequence[int], total: int) -> Tensor:
    """One tensor for all layers side by side (Gemma-3n's embeddings of each layer): the parts of the kept ones."""
    if wanted is None or wanted.ndim != tensor.ndim:
        return tensor
    for axis, (size, small) in enumerate(zip(tensor.shape, wanted.shape, strict=True)):
        if size != small and size % total == 0 and small == size // total * len(kept):
            return torch.cat([tensor.chunk(total, axis)[index] for index in kept], axis)
    return tensor


@torch.no_grad()
def _check_scores(teacher: Any, student: Any, stack: Stack, kept: Sequence[int], scores: Scores) -> None:
    """The student is the teacher whose other layers hand on their input; with all layers, the teacher itself."""
    ids = plain_ids(student, 8)
    inputs = {"input_ids": ids}
    if getattr(teacher.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    training = teacher.training, student.training
    teacher.eval()
    student.eval()
    with ExitStack() as hooks:
        for index in sorted(set(range(len(stack.modules))) - set(kept)):
            handle = stack.modules[index].register_forward_hook(_hand_on, with_kwargs=True)
            hooks.callback(handle.remove)
        try:
            expected, got = (scores(model(**inputs)).float() for model in (teacher, student))
        except Exception as error:
            raise _unmovable(teacher, one_line(error).rstrip(".")) from error
    teacher.train(training[0])
    student.train(training[1])
    bound = _TOLERANCE * max(1.0, expected.abs().max().item())
    if not (expected - got).abs().max().item() <= bound:
        raise _unmovable(teacher, "logits that are not the teacher's with its other layers left out")


def _hand_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """A layer's output, with the hidden states that came in for those that went out."""
    came = args[0] if args else kwargs["hidden_states"]
    return came if isinstance(output, Tensor) else (came, *output[1:])


def plain_ids(model: Any, number: int) -> Tensor:
    """`[1, number]` ids that stand for nothing special, on the model's device."""
    rows = embedding_rows(model) or 256
    told = {**model.config.to_dict(), **model.config.get_text_config().to_dict()}
    special = {v for key, v in told.items() if "token" in key and type(v) is int}
    plain = [index for index in range(min(rows, 4 * number + 64)) if index not in special] or [0]
    chosen = [plain[(7 * index + 3) % len(plain)] for index in range(number)]
    return torch.tensor([chosen], device=model.device)


def embedding_rows(model: Any) -> int | None:
    """How many ids the model has embeddings for; None where it looks none up in a table."""
    table = getattr(embedding(model), "weight", None)
    return None if table is None else int(table.shape[0])


def embedding(model: Any) -> Any:
    """The layer that looks ids up; None where there is none."""
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def _unmovable(teacher: Any, got: str) -> StudentError:
    return StudentError(f"the layers of {type(teacher).__name__} cannot be moved", got=got, do=_DO)
