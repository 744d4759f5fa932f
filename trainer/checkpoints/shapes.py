"""Whether a checkpoint's student has the shape of the one that is trained."""

from __future__ import annotations

from typing import Any

from schemas.errors import UsageError

_NOT_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def check_same_shape(ours: Any, theirs: Any, checkpoint: str) -> None:
    """Whether a checkpoint's config is the student's.

    Raises:
        UsageError: naming the first key that differs.
    """
    here, there = ours.to_dict(), theirs.to_dict()
    for name in sorted({*here, *there} - set(_NOT_SHAPE)):
        if here.get(name) != there.get(name):
            raise UsageError(
                f"a run cannot be resumed with another student: {name}",
                where=checkpoint,
                expected=there.get(name),
                got=here.get(name),
            )
