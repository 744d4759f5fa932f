"""What a loss is: one value with its name, formula and paper, what it computes, and which class of caches serves it.

A loss joins by its entry in a family's `LOSSES`; nothing else knows it by name. The entry says

* what it is computed from: a softmax teacher's scores (`softmax`), a sigmoid's or a regression's (`sigmoid`,
  `identity`), or pooled features (`pooled`); where it says nothing it has no meaning, and is refused;
* its `kind`, which follows from the formula and decides what an entry's cache must keep; `stores`, beside the entries;
* its parameters, written behind the weight: `--losses jsd=1.0,beta=0.5`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from schemas.errors import StudentError
from schemas.spec import Spec
from schemas.task import Score
from trainer.losses.aligned_targets import AlignedScores
from trainer.losses.matching import Boxes
from trainer.losses.scores import DenseScores, Scores

Value = float | str
Settings = Mapping[str, Value]
"""A loss's parameters by name."""
Per = Literal["positions", "labelled", "examples"]
"""What a loss is the mean over; `Batch.counts` is in this order."""
PER: tuple[Per, ...] = ("positions", "labelled", "examples")
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number within bounds, or one of some words."""

    default: Value
    low: float = -math.inf
    high: float = math.inf
    beyond: bool = False
    """Whether the bounds themselves are left out."""
    choices: tuple[str, ...] = ()
    whole: bool = False
    several: bool = False
    """Whether it is whole numbers that ascend, joined by +, or none."""

    @classmethod
    def share(cls, default: float) -> Parameter:
        """Between 0 and 1, which are left out."""
        return cls.between(default, 1.0)

    @classmethod
    def between(cls, default: float, high: float) -> Parameter:
        """Above 0 and below a bound."""
        return cls(default=default, low=0.0, high=high, beyond=True)

    @classmethod
    def at_least_0(cls, default: float) -> Parameter:
        return cls(default=default, low=0.0)

    def read(self, name: str, text: str) -> Value:
        """The value that is written so.

        Raises:
            ValueError: it is none.
        """
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"{name} must be {' or '.join(self.choices)}, but got {text!r}")
            return text
        if self.several:
            return text if text == NONE else "+".join(map(str, self._numbers(name, text)))
        try:
            found = float(text)
        except ValueError as error:
            raise ValueError(f"{name} must be a number, but got {text!r}") from error
        inside = self.low < found < self.high if self.beyond else self.low <= found <= self.high
        if not (math.isfinite(found) and inside and (not self.whole or found == int(found))):
            raise ValueError(f"{name} must be {self.range}, but got {found:g}")
        return found

    def _numbers(self, name: str, text: str) -> list[int]:
        try:
            found = [int(part) for part in text.split("+")]
        except ValueError as error:
            raise ValueError(f"{name} must be {self.range}, but got {text!r}") from error
        if outside := [number for number in found if not self.low <= number <= self.high]:
            raise ValueError(f"{name} must be {self.range}, but got {outside[0]}")
        if sorted(set(found)) != found:
            raise ValueError(f"{name} must be {self.range}, each once, but got {text!r}")
        return found

    @property
    def range(self) -> str:
        """For people, for instance `between 0 and 1`."""
        if self.several:
            return f"{NONE}, or ascending numbers from {self.low:g} to {self.high:g} joined by +"
        if self.choices:
            return " or ".join(self.choices)
        number = "a whole number" if self.whole else ""
        if math.isfinite(self.low) and math.isfinite(self.high):
            between = "between {:g} and {:g}" if self.beyond else "from {:g} to {:g}"
            words = between.format(self.low, self.high)
        elif math.isfinite(self.low):
            words = f"above {self.low:g}" if self.beyond else f"at least {self.low:g}"
        else:
            words = "finite"
        return f"{number} {words}".strip()


class Asked(NamedTuple):
    """A loss and the cache that is to serve it."""

    loss: Loss
    settings: Settings
    temperature: float
    spec: Spec
    warms: bool = False
    """Whether the temperature changes by step, and so takes values that no cache declares."""
    written: Collection[bool] = ()
    """Of each cache of the stream, whether its teacher wrote the texts."""

    def error(self, said: str, *, expected: str | None = None, got: Any = None, do: str) -> StudentError:
        """What is wrong with it: `said` follows the loss's name."""
        return StudentError(f"{self.loss.name} {said}", expected=expected, got=got, do=do)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class of losses: what of a cache serves it. It follows from the formula."""

    name: str
    served_by: str
    """For people: which policies, and with what."""
    refusal: Callable[[Asked], StudentError | None]
    worth: Callable[[Asked, int], str]
    """What it is worth on a cache that serves it, for a student with so many ids: exact, unbiased or biased."""
    own: bool = False
    """Whether drawn entries' own log-probabilities are needed."""
    normalises: bool = False
    """Whether it divides by the entries' own sum, so that any temperature can be asked."""
    by_origin: bool = False
    """Whether it asks who wrote a text."""
    from_entries: bool = True
    """Whether what the cache keeps of a position has a part in it."""


class Bank(NamedTuple):
    """M rows of a cache, whose states are no example's of a batch unless their keys are."""

    keys: Int64[Tensor, " M"]
    """64 bits of each example's id."""
    states: tuple[Float[Tensor, "M D"], ...]
    """The teacher's, one for each of the cache's features."""

    def to(self, device: torch.device) -> Bank:
        """The same on a device."""
        return Bank(self.keys.to(device), tuple(states.to(device) for states in self.states))


class Pooled(NamedTuple):
    """Pooled hidden states of B examples, one pair for each of the cache's features."""

    projected: list[Float[Tensor, "B D"]]
    """The student's, in the teacher's widths by learned maps."""
    ours: list[Float[Tensor, "B H"]]
    """The student's own."""
    theirs: list[Float[Tensor, "B D"]]
    """The teacher's."""
    keys: Int64[Tensor, " B"] | None = None
    """64 bits of each example's id; None where no loss has a bank."""
    bank: Bank | None = None
    module: nn.Module | None = None
    """What the loss has learned beside the student, where it has something."""
    outputs: Float[Tensor, "B V"] | None = None
    """What the teacher says of each example, the mean over its positions; None where no loss asks."""

    def embedding(self, width: int) -> Pooled:
        """The first feature alone, which is a student's embedding, and of it the first numbers."""
        projected, ours, theirs = ([part[0][:, :width]] for part in (self.projected, self.ours, self.theirs))
        bank = self.bank and Bank(self.bank.keys, (self.bank.states[0][:, :width],))
        return self._replace(projected=projected, ours=ours, theirs=theirs, bank=bank)


SoftmaxTerm = Callable[[Scores, Settings], Float[Tensor, " N"]]
DenseTerm = Callable[[DenseScores, Settings], Float[Tensor, " N"]]
AlignedTerm = Callable[[AlignedScores, Settings], Float[Tensor, " _"]]
BoxTerm = Callable[[Boxes, Settings], Float[Tensor, " B"]]
PooledTerm = Callable[[Pooled, Settings], Float[Tensor, " B"]]
CUTS = Parameter(default=NONE, low=1.0, high=65536.0, several=True)


def cuts_of(settings: Settings) -> list[int]:
    """The widths at which an embedding is cut."""
    text = str(settings.get("cuts", NONE))
    return [] if text == NONE else [int(part) for part in text.split("+")]


def with_cuts(term: PooledTerm) -> PooledTerm:
    """The mean of a loss on whole states and on the embedding's first numbers, so many as each of the parameter `cuts`
    says: such an embedding may be cut there (arXiv:2205.13147)."""

    def over_cuts(pooled: Pooled, settings: Settings) -> Float[Tensor, " B"]:
        found = [term(pooled, settings)]
        found += [term(pooled.embedding(width), settings) for width in cuts_of(settings)]
        return torch.stack(found).mean(0)

    return over_cuts


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An entry."""

    name: str
    formula: str
    paper: str
    """arXiv:..., or a book's or venue's name; empty for what everybody knows."""
    kind: Kind
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    softmax: SoftmaxTerm | None = None
    sigmoid: DenseTerm | None = None
    identity: DenseTerm | None = None
    aligned: AlignedTerm | None = None
    """Of a student of another tokenizer: of each chunk, or of each of its own tokens."""
    pooled: PooledTerm | None = None
    boxes: BoxTerm | None = None
    """Of a detector's student, whose queries are matched with what they are to be."""
    module: Callable[[list[int], list[int], int], nn.Module] | None = None
    """What is learned beside the student, from the student's and the teacher's widths and the teacher's V; it is saved
    with the projections."""
    joins_outputs: bool = False
    """Whether it asks what the teacher says of an example, beside features."""
    bank: str = ""
    """The parameter that says how many rows of the cache it compares with beside the batch's; empty for none."""
    per: Per = "positions"
    stores: tuple[str, ...] = ()
    """Scalars that a cache which does not keep all must store: `gold`, `entropy`."""
    uses: Callable[[Settings], tuple[str, ...]] | None = None
    """Scalars that it uses where a cache stores them, and does without where not."""
    softens: bool = False
    """Whether the losses' temperature has a part in it."""
    passes: int = 0
    """Sums over all ids, beside the softmax that terms of one temperature share; at most, over policies."""
    least_features: int = 1
    without_entropy: str = ""
    """What its value is where the teacher's entropy has a part in it and cannot be known."""
    asks: Literal["", "likelihood", "projection"] = ""
    """What it needs to be known of chunks, beside where they are."""
    on_draws: str = ""
    """What is to be said of it where entries are drawn, beside what its class says."""

    def term(self, score: Score) -> SoftmaxTerm | DenseTerm | None:
        """What it computes from a teacher with such scores; None where it has no meaning."""
        found: Mapping[Score, SoftmaxTerm | DenseTerm | None] = {
            "softmax": self.softmax,
            "sigmoid": self.sigmoid,
            "identity": self.identity,
        }
        return found.get(score)

    def reads(self, settings: Settings, keeps_all: bool) -> set[str]:
        """Scalars that it takes where they are stored; of whole distributions the gold id's is among the entries."""
        needed = {name for name in self.stores if not (keeps_all and name == "gold")}
        return needed | set(() if self.uses is None else self.uses(settings))

    @property
    def has_temperature(self) -> bool:
        """Whether the losses' temperature changes it."""
        return self.softens or self.joins_outputs

    @property
    def defaults(self) -> dict[str, Value]:
        return {name: parameter.default for name, parameter in self.parameters.items()}
