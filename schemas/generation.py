"""How a teacher writes: what decides the text that it continues a prompt with, as part of a cache's spec.

`greedy` takes the likeliest token; `beams:B` keeps the B likeliest texts and takes the best; `sample` draws each token,
of its distribution at a `temperature`, cut to the `top_k` likeliest and to the least that hold `top_p` of the mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from schemas.limits import refuse_unless

Method = Literal["greedy", "beams", "sample"]
MAX_BEAMS = 1024
MAX_ENDS = 1024
FEATURE = "text:generated"
"""What a reader must know of a cache whose texts the teacher wrote."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The settings of a cache whose texts the teacher wrote."""

    method: Method
    max_new_tokens: int
    """Of a text at most, its end token included."""
    num_beams: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a text: the teacher's own."""

    def __post_init__(self) -> None:
        refuse_unless(self.method in get_args(Method), "method", self.method)
        refuse_unless(1 <= self.max_new_tokens < 2**31, "max_new_tokens (1 at least)", self.max_new_tokens)
        several = self.method == "beams"
        fits = 2 <= self.num_beams <= MAX_BEAMS if several else self.num_beams == 1
        refuse_unless(fits, f"num_beams (2 to {MAX_BEAMS} of beams)", self.num_beams)
        refuse_unless(0 < self.temperature < math.inf, "temperature (above 0)", self.temperature)
        refuse_unless(0 < self.top_p <= 1, "top_p (above 0, at most 1)", self.top_p)
        refuse_unless(0 <= self.top_k < 2**31, "top_k (0: all)", self.top_k)
        drawn = (self.temperature, self.top_p, self.top_k)
        idle = self.method == "sample" or drawn == (1.0, 1.0, 0)
        refuse_unless(idle, "temperature, top_p, top_k (of sample alone)", drawn)
        ends = len(self.end_ids) <= MAX_ENDS and all(0 <= one < 2**31 for one in self.end_ids)
        refuse_unless(ends, "end_ids", self.end_ids)

    @property
    def is_drawn(self) -> bool:
        """Whether the text is a matter of the seed."""
        return self.method == "sample"

    def __str__(self) -> str:
        """As `parse_generation` reads it."""
        if self.method == "beams":
            return f"beams:{self.num_beams}"
        told = {"temperature": (self.temperature, 1.0), "top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0)}
        words = [f"{name}={value!r}" for name, (value, default) in told.items() if value != default]
        return f"{self.method}:{','.join(words)}" if words else self.method


def parse_generation(text: str, max_new_tokens: int) -> Generation:
    """`greedy`, `beams:B` or `sample[:temperature=T,top_p=P,top_k=K]`.

    Raises:
        ValueError: it is none of these.
    """
    method, _, rest = text.partition(":")
    told: dict[str, Any] = {}
    try:
        if method == "beams":
            told["num_beams"] = int(rest)
        elif rest or method not in get_args(Method) or text.endswith(":"):
            if method != "sample":
                raise ValueError(method)
            for word in rest.split(","):
                name, _, value = word.partition("=")
                if name in told:
                    raise ValueError(name)
                told[name] = {"temperature": float, "top_p": float, "top_k": int}[name](value)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"a way to write is greedy, beams:B or sample[:temperature=T,top_p=P,top_k=K], but got {text!r}"
        ) from error
    return Generation(method=method, max_new_tokens=max_new_tokens, **told)  # type: ignore[arg-type]
