"""A cache's images as the pixels that its teacher was given: decoded in the loader's thread, again in each epoch.

The images' bytes stand in the cache, and its image processor beside it. How the ones become what the other gives, is in
`schemas/images.py`, for teacher and student alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from schemas.errors import REPAIR, CorruptionError, StudentError
from schemas.images import BadImageError, Pictures
from schemas.rows.columns import IMAGE
from schemas.rows.rows import Rows
from schemas.spec import Spec
from schemas.tasks import VIEW_INDEX


def pictures_of(processor: Any, spec: Spec, where: str) -> Pictures:
    """How a cache's images become pixels, by its image processor.

    Raises:
        StudentError: this library's processor of that name does not do what the teacher's did.
    """
    try:
        return Pictures.of(processor, dict(spec.task_settings)).probed()
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise StudentError("the cache's images cannot be made", where=where, got=str(error)) from error


def pixels_of(rows: Rows, pictures: Pictures) -> Float32[Tensor, "R C H W"]:
    """What a student is given of some rows.

    Raises:
        CorruptionError: an image is none, though the teacher was shown it.
    """
    found = []
    columns = zip(rows.array(IMAGE), rows.example_ids, rows.array(VIEW_INDEX.name).tolist(), strict=True)
    for data, example, view in columns:
        try:
            found.append(pictures.pixels(data, example, view))
        except BadImageError as error:
            raise CorruptionError(
                "an image of the cache cannot be decoded",
                where=f"example {example.hex()}",
                expected=error.expected,
                got=error.got,
                do=REPAIR,
            ) from error
    return torch.from_numpy(np.stack(found))
