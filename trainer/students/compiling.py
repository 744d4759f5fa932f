"""`--torch_compile`: a student's blocks are compiled one by one, for batches of any shape.

Transformers would compile the whole of what is trained, for the shape of the first batch; batches here change shape
with every step. A block (a layer of the transformer) is one graph with the number of rows and tokens left open, and
all blocks of a student share what was compiled. The head and its losses stay as they are, in chunks.

Torch counts graphs by the function that is compiled, which is one for all blocks of all students of a process, and goes
on without compiling beyond eight. So each student has a count of its own, as if it were alone.

Compiling changes how sums are rounded, and no name of a weight: what is saved is the plain student.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from schemas.errors import StudentError, UsageError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_DEFAULT_BACKEND = "inductor"
_MOST_GRAPHS = 64
"""Of a block in one student: some for each of training, evaluation and what a graph breaks into."""


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """How blocks are compiled."""

    backend: str = _DEFAULT_BACKEND
    mode: str | None = None

    @classmethod
    def parse(cls, *, asked: bool, backend: str | None, mode: str | None) -> Compiling | None:
        """From the flags; a backend or a mode asks for it too. None where nothing does.

        Raises:
            UsageError: there is no such backend or mode, or torch is too old.
        """
        if not (asked or backend or mode):
            return None
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise UsageError(
                "--torch_compile needs a newer torch",
                expected="2.13",
                got=torch.__version__,
                do="Install it, or leave --torch_compile out",
            )
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
        options |= {"isolate_recompiles": True, "recompile_limit": _MOST_GRAPHS}
        called: Any = nn.Module._call_impl
        run = torch.compile(called, backend=self.backend, dynamic=True, **options)
        for block in found:
            # As `Module.compile` does it, which would compile each block apart.
            block._compiled_call_impl = partial(run, block)
        return len(found)


def blocks(student: nn.Module) -> list[nn.Module]:
    """The modules that transformers keeps in one piece: a model's layers."""
    names = {
        name for module in student.modules() for name in getattr(module, "_no_split_modules", None) or ()
    }
    return [module for module in student.modules() if type(module).__name__ in names]
