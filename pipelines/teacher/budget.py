"""How many padded tokens a batch may have: fixed, or found by trial, and halved for good when memory does not suffice.

On an accelerator nobody knows beforehand what fits and what is fastest. So real batches are the trial, longest examples
first: the budget doubles as long as that makes the teacher faster, and is kept for the life of the process. Nothing is
computed for the trial alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

START_TOKENS = {"cpu": 4096, "cuda": 65_536}
LARGEST_TOKENS = 2**22
GAIN = 1.05
"""A doubling must make the teacher so much faster, or the smaller budget is taken back: it needs less memory."""

_BATCHES_EACH = 2
"""A budget is judged by the better of so many batches: the first of a size pays for its kernels and its memory."""
_FULL, _ALIKE = 0.75, 0.8
"""A batch counts when so much of the budget is full, and the examples are about as long as in the trial before."""


@dataclass(kw_only=True)
class Budget:
    """The budget of one process. Not frozen: it learns."""

    tokens: int
    trying: bool = False
    """Whether the budget may still grow."""
    _widths: list[int] = field(default_factory=list)
    _speeds: list[float] = field(default_factory=list)
    _before: tuple[int, float, int] | None = None
    """Tokens, speed and width of the budget that was judged last."""

    @classmethod
    def of(cls, given: int | None, device: str) -> Budget:
        """A given budget is kept; else a CPU has a fixed one, and an accelerator finds its own."""
        return cls(tokens=given or START_TOKENS[device], trying=given is None and device != "cpu")

    def failed(self, padded_tokens: int) -> None:
        """A batch did not fit: from now on none is larger than its half."""
        self.tokens = max(1, min(self.tokens, padded_tokens) // 2)
        self.trying = False

    def took(self, *, width: int, padded_tokens: int, seconds: float) -> None:
        """A batch fitted. While trying, full batches of like width decide whether the budget doubles."""
        if not self.trying or padded_tokens < _FULL * self.tokens:
            return
        if self._before is not None and width < _ALIKE * self._before[2]:
            self._speeds.clear()  # shorter examples are faster by themselves: the next unit's long ones judge
            self._widths.clear()
            return
        self._speeds.append(padded_tokens / max(seconds, 1e-9))
        self._widths.append(width)
        if len(self._speeds) == _BATCHES_EACH:
            self._judge(max(self._speeds), min(self._widths))
            self._speeds.clear()
            self._widths.clear()

    def _judge(self, speed: float, width: int) -> None:
        if self._before is not None and speed < GAIN * self._before[1]:
            self.tokens, self.trying = self._before[0], False
            return
        self._before = (self.tokens, speed, width)
        self.tokens *= 2
        if self.tokens >= LARGEST_TOKENS:
            self.tokens, self.trying = LARGEST_TOKENS, False
