"""`--torch_compile`: a student's blocks are compiled one by one, for batches of any shape.

Transformers would compile the whole of what is trained, for the shape of the first batch; batches here change shape
with every step. A block (a layer of the transformer) is one graph with the number of rows and tokens left open, and
all blocks of a kind share what was compiled. The head and its losses stay as they are, in chunks.

Compiling changes how sums are rounded, and no name of a weight: what is saved is the plain student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schemas.errors import StudentError, UsageError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_DEFAULT_BACKEND = "inductor"


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """How blocks are compiled."""

    backend: str = _DEFAULT_BACKEND
    mode: str | None = None

    @classmethod
    def parse(cls, *, asked: bool, backend: str | None, mode: str | None) -> Compiling | None:
        """From the flags; a backend or a mode asks for it too. None where nothing does.

        Raises:
            UsageError: there is no such backend or mode.
        """
        if not (asked or backend or mode):
            return None
        found = cls(backend=backend or _DEFAULT_BACKEND, mode=mode)
        known = torch.compiler.list_backends(exclude_tags=())
        if found.backend not in known:
            expected = ", ".join(known)
            raise UsageError("--torch_compile_backend names none", expected=expected, got=backend)
        if mode is not None and mode not in MODES:
            raise UsageError("--torch_compile_mode names none", expected=", ".join(MODES), got=mode)
        if mode is not None and found.backend != _DEFAULT_BACKEND:
            raise UsageError("--torch_compile_mode has no effect but with the backend inductor", got=backend)
        return found

    def apply(self, student: nn.Module) -> int:
        """Compiles a student's blocks where they are; how many.

        Raises:
            StudentError: the model class does not say what its blocks are.
        """
        found = blocks(student)
        if not found:
            raise StudentError(
                "the student's class does not say which of its modules are blocks, so none can be compiled",
                got=type(student).__name__,
                do="Leave --torch_compile out",
            )
        options: dict[str, Any] = {} if self.mode is None else {"mode": self.mode}
        for block in found:
            block.compile(backend=self.backend, dynamic=True, **options)
        return len(found)


def blocks(student: nn.Module) -> list[nn.Module]:
    """The modules that transformers keeps in one piece: a model's layers."""
    names = {
        name for module in student.modules() for name in getattr(module, "_no_split_modules", None) or ()
    }
    return [module for module in student.modules() if type(module).__name__ in names]
