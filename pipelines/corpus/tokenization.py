"""From a document to the teacher's examples: its tokens, cut into windows with positions as the task says.

Of instruction data the answers are supervised, by characters: a token that overlaps an answer belongs to it, also one
that begins in the prompt's last blank. A conversation is one text, or one a turn (`template_process.py`); the windows
of all its texts are counted through.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from pipelines.corpus.chat_templates import Chat
from pipelines.corpus.documents import Document
from pipelines.corpus.labels import Label
from pipelines.rejects import NOTHING_SUPERVISED, RejectedError
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.tasks.teacher_task import Inputs
from pipelines.tasks.windows import Tokens, Window, edges_of_texts
from schemas.identity import canonical_json, digest, example_id
from schemas.rows.ragged import Array
from schemas.spec import Spec


class Example(NamedTuple):
    """One tokenised input of the teacher, in plain types: arrays are the bytes of int32."""

    id: bytes
    document_hash: bytes
    window_index: int
    window_count: int
    input_ids: bytes
    token_type_ids: bytes | None
    position_index: bytes | None
    """None: every token but the last."""
    label: Label
    document_id: str | None
    text: str | None
    text_pair: str | None
    file: str
    offset: int
    gold_ids: bytes | None = None
    """What is right at each position, where the task stores that."""
    columns: tuple[int, ...] = ()
    """Values of the task's own columns."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids) // 4

    @property
    def num_positions(self) -> int:
        return self.num_tokens - 1 if self.position_index is None else len(self.position_index) // 4


@dataclass(frozen=True, kw_only=True)
class Tokeniser:
    """A teacher's tokenizer with everything that decides how a document becomes examples."""

    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    spec: Spec
    kind: str
    """`text`, `messages`, `prompt` or `target`."""
    how: bytes
    """Hash of all that decides tokenisation; part of every example's id."""
    chat: Chat
    inputs: Inputs

    @classmethod
    def of(cls, tokenizer: Any, spec: Spec, kind: str, tokenizer_hash: str) -> Tokeniser:
        """Binds a tokenizer to a spec."""
        parts = [tokenizer_hash, spec.task, spec.max_length, spec.stride, spec.supervise, kind]
        if spec.task_settings:
            parts += [spec.task_settings, spec.sample_seed]
        how = digest(canonical_json(parts), "tokenised-how")
        inputs = TEACHER_TASKS[spec.task].inputs(tokenizer, spec)
        return cls(tokenizer=tokenizer, spec=spec, kind=kind, how=how, chat=Chat(tokenizer), inputs=inputs)

    def batch(
        self, documents: Sequence[tuple[Document, Sequence[int]]]
    ) -> Iterator[list[Example] | RejectedError]:
        """What `examples` gives for each document with its known windows, or why it is rejected; in one call of the
        tokenizer, which for short texts costs more than what it does."""
        tokens = self._plain_texts([document for document, _ in documents])
        for (document, known), own in zip(documents, tokens, strict=True):
            try:
                yield list(self.examples(document, known, own))
            except RejectedError as error:
                yield error

    def examples(
        self, document: Document, known: Sequence[int] = (), tokens: Tokens | None = None
    ) -> Iterator[Example]:
        """The examples of a document, less the windows in `known`; `tokens` are its text's, where they were made.

        Raises:
            RejectedError: nothing of the document can be supervised, or its chat template fails.
        """
        texts = self.texts(document) if tokens is None else [tokens]
        found = [(text, window) for text in texts for window in self.inputs.windows(text)]
        if not found:
            expected = "a message of the role assistant that says something"
            if self.kind != "messages":
                expected = TEACHER_TASKS[self.spec.task].least
            raise RejectedError(NOTHING_SUPERVISED, expected=expected)
        for index, (text, window) in enumerate(found):
            if index not in known:
                yield self._example(document, text, index, len(found), window)

    def texts(self, document: Document) -> list[Tokens]:
        """The tokens of each of a document's texts (a pair is cut to `max_length`, longest first)."""
        if self.kind == "messages":
            parts = self.chat.of(document.text, document.given, supervise=self._by_answer)
            return [self._encoded(part.text, part.spans, add_special_tokens=False) for part in parts]
        if self.kind == "prompt":
            return [self._prompt(document.text, document.pair or "")]
        if self.kind == "target":
            return [self._with_target(document.text, document.pair or "")]
        return self._split([document])

    def _plain_texts(self, documents: Sequence[Document]) -> list[Tokens] | list[None]:
        """The tokens of documents that are one text each, or a pair; None of others, which are made one by one."""
        if self.kind != "text":
            return [None] * len(documents)
        return self._split(documents)

    def _encode(self, documents: Sequence[Document]) -> Any:
        """The tokenizer on texts or pairs."""
        options: dict[str, Any] = {"return_special_tokens_mask": True, "verbose": False}
        options["return_attention_mask"] = False  # no text is padded
        options["return_offsets_mapping"] = self._reads_characters
        pairs = None
        if documents[0].pair is not None:
            pairs = [document.pair for document in documents]
            options |= {"truncation": "longest_first", "max_length": self.spec.max_length}
        return self.tokenizer([document.text for document in documents], pairs, **options)

    def _split(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each text: of arrays over all texts, a part each."""
        encoded = self._encode(documents)
        ends = np.cumsum([len(ids) for ids in encoded["input_ids"]])
        total = int(ends[-1])
        ids = _joined(encoded["input_ids"], total, np.int32)
        special = _joined(encoded["special_tokens_mask"], total, np.bool_)
        supervised, types = np.ones(total, np.bool_), np.zeros(total, np.int32)
        if "token_type_ids" in encoded:
            types = _joined(encoded["token_type_ids"], total, np.int32)
        found, start = [], 0
        for index, (end, edges) in enumerate(zip(ends.tolist(), edges_of_texts(special, ends), strict=True)):
            part, start = slice(start, end), end
            words = self._words(encoded, index)
            found.append(Tokens(ids[part], types[part], special[part], supervised[part], words, edges))
        if not self._reads_characters:
            return found
        offsets = (np.array(each, np.int64).reshape(-1, 2) for each in encoded["offset_mapping"])
        return [
            each._replace(
                characters=own, document_words=document.words, label=document.label, text=document.text
            )
            for each, own, document in zip(found, offsets, documents, strict=True)
        ]

    def is_cut(self, document: Document, example: Example) -> bool:
        """Whether a pair lost tokens to `max_length`: pairs have one window, and the longer is cut, or a source."""
        if document.pair is None or example.num_tokens < self.spec.max_length:
            return False
        if self.kind == "target":
            return len(self._with_target(document.text, document.pair).ids) > example.num_tokens
        if self.kind != "text":
            return False
        whole = self.tokenizer(document.text, document.pair, verbose=False)["input_ids"]
        return len(whole) > self.spec.max_length

    @property
    def _reads_characters(self) -> bool:
        return TEACHER_TASKS[self.spec.task].reads_characters

    @property
    def _by_answer(self) -> bool:
        """Whether only answers are supervised: a text to classify has no tokens to predict."""
        return self.spec.supervise == "assistant" and self.spec.kind.predicts_tokens

    def _prompt(self, prompt: str, completion: str) -> Tokens:
        text, end = prompt + completion, self.tokenizer.eos_token or ""
        text += "" if completion.endswith(end) else end
        return self._encoded(text, [(len(prompt), len(text))] if self._by_answer else None)

    def _with_target(self, source: str, target: str) -> Tokens:
        """Both, each as the tokenizer gives it to the half that reads it (M2M and Marian have languages); a target ends
        with the end token also where the tokenizer puts none."""
        options = {"return_special_tokens_mask": True, "verbose": False}
        read = self.tokenizer(source, **options)
        said = self.tokenizer(text_target=target, **options)
        ids, special = list(said["input_ids"]), list(said["special_tokens_mask"])
        end = self.tokenizer.eos_token_id
        if end is not None and not any(kind and i == end for i, kind in zip(ids, special, strict=True)):
            ids, special = [*ids, end], [*special, 1]
        encoded = {
            "input_ids": [*read["input_ids"], *ids],
            "special_tokens_mask": [*read["special_tokens_mask"], *special],
        }
        return self._tokens(encoded)._replace(source=len(read["input_ids"]))

    def _encoded(self, text: str, spans: list[tuple[int, int]] | None, **options: bool) -> Tokens:
        """A text's tokens; of which only those are supervised that overlap one of the character spans."""
        options |= {"return_offsets_mapping": spans is not None}
        encoded = self.tokenizer(text, return_special_tokens_mask=True, verbose=False, **options)
        tokens = self._tokens(encoded)
        if spans is None:
            return tokens
        inside = overlapping(np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2), spans)
        return tokens._replace(supervised=inside & ~tokens.special)

    def _example(self, document: Document, tokens: Tokens, index: int, count: int, window: Window) -> Example:
        spec = self.spec
        key = example_id(document.hash, window_index=index, tokenised_how=self.how)
        asked = self.inputs.asked(tokens, window, key)
        return Example(
            id=key,
            document_hash=document.hash,
            window_index=index,
            window_count=count,
            input_ids=asked.input_ids.tobytes(),
            token_type_ids=tokens.types[window.tokens].tobytes() if spec.has_token_type_ids else None,
            position_index=None if asked.positions is None else asked.positions.tobytes(),
            label=None if spec.kind.stores_gold else document.label,
            document_id=document.key if spec.has_document_id else None,
            text=document.text if spec.has_text else None,
            text_pair=document.pair if spec.has_text_pair else None,
            file=document.file,
            offset=document.offset,
            gold_ids=None if asked.gold_ids is None else asked.gold_ids.tobytes(),
            columns=window.columns,
        )

    def _tokens(self, encoded: Any) -> Tokens:
        ids = np.asarray(encoded["input_ids"], np.int32)
        types = np.asarray(encoded.get("token_type_ids", np.zeros(len(ids))), np.int32)
        special = np.asarray(encoded["special_tokens_mask"], np.bool_)
        return Tokens(ids, types, special, np.ones(len(ids), np.bool_), self._words(encoded, 0))

    def _words(self, encoded: Any, index: int) -> Array | None:
        """Of which word each of a text's tokens is, where the task asks for words."""
        if not TEACHER_TASKS[self.spec.task].reads_words(self.spec):
            return None
        return np.array([-1 if word is None else word for word in encoded.word_ids(index)], np.int32)


def _joined(lists: Sequence[Sequence[int]], count: int, dtype: Any) -> Array:
    return np.fromiter(itertools.chain.from_iterable(lists), dtype, count)


def overlapping(
    offsets: Int64[np.ndarray, "S 2"], spans: Sequence[tuple[int, int]]
) -> Bool[np.ndarray, " S"]:
    """Which tokens overlap one of the spans, by the characters that each token is from.

    A token of no characters stands for the blanks since the token before, where a tokenizer trims them from its
    offsets; where there are none, it belongs to the character that follows.
    """
    begins, ends = offsets.T
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    empty = begins == ends
    begins = np.where(empty & (reached < begins), reached, begins)
    ends = np.where(begins == ends, ends + 1, ends)
    inside = np.zeros(len(ends), np.bool_)
    for start, end in spans:
        if start < end:
            inside |= (ends > start) & (begins < end)
    return inside
