"""What a task is to the pipelines: the seam. Each member is a file beside this one; `tasks.py` lists them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int, Int32

from pipelines.tasks.windows import Tokens, Window
from schemas.errors import UsageError
from schemas.model_heads import body_of, has_transform, headless
from schemas.spec import Spec
from schemas.task import Score, SettingValue

Settings = Mapping[str, SettingValue]
"""A task's settings, every one of them."""


class Asked(NamedTuple):
    """What a teacher is asked about a window."""

    input_ids: Int32[np.ndarray, " W"]
    positions: Int32[np.ndarray, " N"] | None
    """The tokens that positions stand on; None where the task implies them."""
    gold_ids: Int32[np.ndarray, " N"] | None = None
    """What is right at each, where the task stores that."""


@runtime_checkable
class Inputs(Protocol):
    """From a document's tokens to what the teacher is asked. Bound to a tokenizer and a spec."""

    def windows(self, tokens: Tokens) -> Sequence[Window]:
        """The windows of a document that have positions, in order."""

    def asked(self, tokens: Tokens, window: Window, example_id: bytes) -> Asked:
        """One window's input; what is drawn for it is a function of the example's id."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a teacher's folder says of a run, where its user says nothing."""

    features: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    max_length: int | None = None


def open_tokenizer(folder: str, **options: Any) -> Any:
    """What makes the inputs of a teacher of texts."""
    return transformers.AutoTokenizer.from_pretrained(folder, **options)


@dataclass(frozen=True, kw_only=True)
class TeacherTask:
    """How a task's documents become examples, and how its teachers are opened and asked."""

    auto: Any
    """The Auto class that opens its teachers."""
    opens: Callable[..., Any] = open_tokenizer
    """Opens what makes its inputs, from a folder and the usual options; raises UsageError where a package lacks."""
    inputs: Callable[[Any, Spec], Inputs]
    """From tokenizer and spec."""
    body: Callable[[Any], Any]
    """What of a model is run on a batch: all before the head where there is one, else all."""
    at_positions: Callable[
        [Any, Int[torch.Tensor, " N"], Int[torch.Tensor, " N"]], Float[torch.Tensor, "N _"]
    ]
    """From the body's output, rows and tokens of positions: what the head is given, else logits, and behind them a box
    where positions have one."""
    scores: Callable[[Any], torch.Tensor] = lambda output: output.logits
    """From a plain forward's output: `[B, S, V]` of tokens, else of whole texts `[B, V]`, or `[B, P, S]` of P positions
    over a text's own tokens."""
    check: Callable[[Any, Any, Settings], None] = lambda config, tokenizer, settings: None
    """Raises UsageError where a model's config, a tokenizer or a setting cannot serve the task."""
    reads_words: Callable[[Spec], bool] = lambda spec: False
    """Whether `Tokens.words` is needed."""
    reads_characters: bool = False
    """Whether `Tokens.characters`, `document_words`, `label` and `text` are needed."""
    cuts_second_text: bool = False
    """Whether of a pair the second text is cut into windows, the first before each; else the longer is cut short."""
    least: str = "two tokens or more"
    """What a document must have for a position, in words."""
    prefix: Callable[[Settings], str] = lambda settings: ""
    """What stands before each text."""
    finished: Callable[[Float[torch.Tensor, "B D"], Spec], Float[torch.Tensor, "B _"]] = lambda pooled, spec: (
        pooled
    )
    """From pooled states to what the cache keeps of them."""
    feature_width: Callable[[int, Settings], int] = lambda width, settings: width
    """How wide that is, from the states' width; raises UsageError where the settings ask for more."""
    defaults: Callable[[str, Settings], Defaults] = lambda folder, given: Defaults()
    """From the teacher's folder and the settings that were given; raises UsageError where it cannot be served."""
    score: Callable[[Any], Score] | None = None
    """What a teacher's scores are, from its config; None: as its `problem_type` says."""
    unused: tuple[str, ...] = ()
    """Words in the names of weights that have no part in any answer, so that a checkpoint may lack them."""


def model_name(config: Any) -> str:
    """The class that a config's checkpoint names, for people."""
    return str((getattr(config, "architectures", None) or [type(config).__name__])[0])


def refuse_encoder_decoder(config: Any, wanted: str) -> None:
    """Refuses a model of two halves where a language model of one is wanted.

    Raises:
        UsageError: naming its class.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{model_name(config)} is an encoder-decoder, and no {wanted}",
            do="Say --task seq2seq-lm, with sources and targets; or use another --teacher",
        )


def refuse_no_offsets(tokenizer: Any, otherwise: str = "") -> None:
    """Only a tokenizer that tells which characters each token is from can tell which tokens are a word, or an answer.

    Raises:
        UsageError: naming its class; `otherwise` is what else can be done.
    """
    with contextlib.suppress(NotImplementedError, ValueError, TypeError):
        if "offset_mapping" in tokenizer("a", return_offsets_mapping=True):
            return
    raise UsageError(
        "the teacher's tokenizer does not tell where its tokens stand in the text",
        got=type(tokenizer).__name__,
        do=f"Save a fast tokenizer (tokenizer.json) beside the teacher{otherwise}",
    )


def tells_words(tokenizer: Any) -> bool:
    """Whether a tokenizer finds the four words of a text to be four."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    words = tokenizer("one two three four", verbose=False).word_ids()
    return len({word for word in words if word is not None}) == 4


def gathered(
    states: Float[torch.Tensor, "B S D"], rows: Int[torch.Tensor, " N"], tokens: Int[torch.Tensor, " N"]
) -> Float[torch.Tensor, "N D"]:
    """The states of some tokens, on the states' device."""
    return states[rows.to(states.device), tokens.to(states.device)]


def head_inputs(
    output: Any, rows: Int[torch.Tensor, " N"], tokens: Int[torch.Tensor, " N"]
) -> Float[torch.Tensor, "N D"]:
    """What a language model's output layer is given at some tokens, from the output of `language_body`."""
    states = getattr(output, "last_hidden_state", None)
    return gathered(output.logits if states is None else states, rows, tokens)


def language_body(model: Any) -> Any:
    """A language model without its output layer: its body alone where that is all, else all of its own code."""
    if not has_transform(model):
        return body_of(model)
    return headless(model, hands_on=torch.nn.Identity(), zero=torch.zeros(()))
