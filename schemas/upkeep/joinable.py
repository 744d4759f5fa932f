"""Whether caches of several teachers can be one, and which features they have then: at replay, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from schemas.errors import UsageError
from schemas.features import Feature
from schemas.spec import Header, Spec, differences

_MAY_DIFFER = ("features",)
"""They are joined where all declare the same, of whatever widths."""


def refuse_unlike(first: Header, other: Header, where: str) -> None:
    """Raises a `UsageError` that names all in which two caches differ that are to be joined."""
    lines = differences(first, other, ("spec",), _MAY_DIFFER)
    lines += _tokenizers(first, other)
    if not first.spec.kind.has_positions:
        lines.append(f"--task {first.spec.task} has no distributions")
    if first.spec.kind.has_boxes:
        lines.append("one detector's positions are not another's")
    if lines:
        raise UsageError(
            "two caches cannot be joined: they differ",
            where=where,
            got="; ".join(line.replace(": cache ", " ").replace(", run ", " and ") for line in lines),
            do="Precompute both over one corpus with the same flags, by teachers of one tokenizer and the same classes",
        )


def joined_features(specs: Sequence[Spec]) -> tuple[Feature, ...]:
    """One behind the other, where all declare the same, in the same order and kind; else none."""
    declared = {tuple((one.column, one.dtype) for one in spec.features) for spec in specs}
    if len(declared) > 1:
        return ()
    each = zip(*(spec.features for spec in specs), strict=True)
    return tuple(replace(own[0], width=sum(one.width for one in own)) for own in each)


def _tokenizers(ours: Header, theirs: Header) -> list[str]:
    names = sorted({*ours.tokenizer, *theirs.tokenizer})
    return [f"tokenizer {name}" for name in names if ours.tokenizer.get(name) != theirs.tokenizer.get(name)]
