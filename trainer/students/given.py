"""A student that is a model object: checked as a folder's is, but for what an object has no files for."""

from __future__ import annotations

from typing import Any

import torch

from schemas.errors import StudentError
from schemas.spec import Spec
from trainer.students.compatibility import check_labels
from trainer.tasks.tasks import STUDENT_TASKS


def check_given(model: Any, spec: Spec, where: str) -> None:
    """Whether the Auto class of the cache's task would open what this model is saved as, and it is held in float32.

    Raises:
        StudentError: naming the class or the dtype.
    """
    auto = STUDENT_TASKS[spec.task].auto
    known, kind = auto._model_mapping, type(model.config)
    found = known.get(kind, ())
    classes = found if isinstance(found, list | tuple) else (found,)
    if type(model) not in classes:
        raise StudentError(
            f"a {type(model).__name__} is none that {auto.__name__} opens, as the cache's task asks",
            where=where,
            expected=" or ".join(each.__name__ for each in classes) or f"a class of {auto.__name__}",
            do=f"Make it by {auto.__name__}.from_pretrained(...) or .from_config(...)",
        )
    dtypes = {weight.dtype for weight in model.parameters()}
    if other := sorted(str(dtype) for dtype in dtypes - {torch.float32}):
        raise StudentError(
            "a student is held in float32, also where bf16=True computes in bfloat16",
            where=where,
            got=", ".join(other),
            do="Give model.float()",
        )
    check_labels(model.config, spec, where)
