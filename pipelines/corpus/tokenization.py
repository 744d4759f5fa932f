"""From a document to the teacher's examples: its tokens, cut into windows with positions as the task says.

Of instruction data the answers are supervised, by characters: a token that overlaps an answer belongs to it, also one
that begins in the prompt's last blank. A conversation is one text, or one a turn (`template_process.py`); the windows
of all its texts are counted through.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.corpus.chat_templates import Chat
from pipelines.corpus.documents import Document
from pipelines.corpus.examples import Example
from pipelines.corpus.spans import around_second, joined, overlapping
from pipelines.rejects import NOTHING_SUPERVISED, RejectedError
from pipelines.tasks.image_classification import Views
from pipelines.tasks.seq2seq_lm import both_halves, source_half
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.tasks.teacher_task import Inputs
from pipelines.tasks.windows import Tokens, Window, edges_of_texts
from schemas.identity import canonical_json, digest, example_id
from schemas.images import BadImageError
from schemas.rows.ragged import Array
from schemas.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Tokeniser:
    """A teacher's tokenizer with everything that decides how a document becomes examples."""

    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    spec: Spec
    kind: str
    """`text`, `messages`, `prompt`, `passages`, `target` or `image`."""
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
        if spec.generation is not None:
            parts += [str(spec.generation), spec.sample_seed]
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
        """The tokens of each of a document's texts (a pair is cut to `max_length`, longest first, or has windows)."""
        if self.spec.kind.has_source:
            return [self._of_halves(document)]
        if self.spec.generation is not None:
            return [self._unanswered(document)]
        if self.kind == "messages":
            parts = self.chat.of(document.text, document.given, supervise=self._by_answer)
            return [self._encoded(part.text, part.spans, add_special_tokens=False) for part in parts]
        if self.kind == "prompt":
            return [self._prompt(document.text, document.pair or "")]
        if self.kind == "passages":
            return [self._pairs(document)]
        if isinstance(self.inputs, Views):
            return [self._of_image(self.inputs, document)]
        return self._split([document])

    def _of_image(self, views: Views, document: Document) -> Tokens:
        try:
            objects = document.label if isinstance(document.label, tuple) else None
            return views.tokens(document.image or b"", objects)
        except BadImageError as error:
            raise RejectedError(str(error), document.hash, expected=error.expected, got=error.got) from error

    def _unanswered(self, document: Document) -> Tokens:
        """A prompt, or a conversation up to where the assistant is to speak."""
        if self.kind == "prompt":
            return self._encoded(document.text, None)
        messages = json.loads(document.text)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise RejectedError(NOTHING_SUPERVISED, expected="a message that asks for an answer")
        (part,) = self.chat.of(json.dumps(messages), document.given, supervise=False, prompt=True)
        tokens = self._encoded(part.text, None, add_special_tokens=False)
        # what a template ends in is all its own
        return tokens._replace(special=np.zeros_like(tokens.special))

    def _plain_texts(self, documents: Sequence[Document]) -> list[Tokens] | list[None]:
        """The tokens of documents that are one text each, or a pair; None of others, which are made one by one."""
        if self.kind != "text" or self.spec.kind.has_source:
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
            if not self._cuts_second_text:
                options |= {"truncation": "longest_first", "max_length": self.spec.max_length}
        prefix = self._prefix
        return self.tokenizer([prefix + document.text for document in documents], pairs, **options)

    def _split(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each text: of arrays over all texts, a part each."""
        encoded = self._encode(documents)
        ends = np.cumsum([len(ids) for ids in encoded["input_ids"]])
        total = int(ends[-1])
        ids = joined(encoded["input_ids"], total, np.int32)
        special = joined(encoded["special_tokens_mask"], total, np.bool_)
        supervised, types = np.ones(total, np.bool_), np.zeros(total, np.int32)
        if "token_type_ids" in encoded:
            types = joined(encoded["token_type_ids"], total, np.int32)
        found, start = [], 0
        around = edges_of_texts(special, ends)
        if self._cuts_second_text:
            around = [around_second(encoded.sequence_ids(index)) for index in range(len(documents))]
        reads_words = TEACHER_TASKS[self.spec.task].reads_words(self.spec)
        for index, (end, edges) in enumerate(zip(ends.tolist(), around, strict=True)):
            part, start = slice(start, end), end
            words = self._words(encoded, index) if reads_words else None
            found.append(Tokens(ids[part], types[part], special[part], supervised[part], words, edges))
        if not self._reads_characters:
            return found
        offsets = (np.array(each, np.int64).reshape(-1, 2) for each in encoded["offset_mapping"])
        return [
            each._replace(
                characters=own,
                document_words=document.words,
                label=document.label,
                text=document.pair or "" if self._cuts_second_text else document.text,
            )
            for each, own, document in zip(found, offsets, documents, strict=True)
        ]

    def _pairs(self, document: Document) -> Tokens:
        """The tokens of all of a query's pairs, one after the other; the first of each is supervised."""
        pairs = [document._replace(pair=passage) for passage in json.loads(document.pair or "[]")]
        texts = self._split(pairs)
        ids, types, special, supervised = (
            np.concatenate([getattr(text, name) for text in texts])
            for name in ("ids", "types", "special", "supervised")
        )
        supervised[:] = False
        supervised[np.cumsum([0, *(len(text.ids) for text in texts[:-1])])] = True
        return Tokens(ids, types, special, supervised)

    def is_cut(self, document: Document, example: Example) -> bool:
        """Whether a document lost tokens to `max_length`: pairs have one window, the longer text is cut; and so has
        what has features alone, and a source."""
        if self.kind == "passages":
            full = example.text_lengths >= self.spec.max_length
            passages = itertools.compress(json.loads(document.pair or "[]"), full)
            return any(self._exceeds(document.text, passage) for passage in passages)
        cuts = document.pair is not None or not self.spec.kind.has_positions
        fits = example.num_tokens < self.spec.max_length
        if self.spec.kind.has_source:
            return not fits and len(self._of_halves(document).ids) > example.num_tokens
        if self.kind != "text" or not cuts or fits or self._cuts_second_text:
            return False
        return self._exceeds(self._prefix + document.text, document.pair)

    def _exceeds(self, text: str, pair: str | None) -> bool:
        return len(self.tokenizer(text, pair, verbose=False)["input_ids"]) > self.spec.max_length

    @property
    def _prefix(self) -> str:
        return TEACHER_TASKS[self.spec.task].prefix(dict(self.spec.task_settings))

    @property
    def _reads_characters(self) -> bool:
        return TEACHER_TASKS[self.spec.task].reads_characters

    @property
    def _cuts_second_text(self) -> bool:
        return TEACHER_TASKS[self.spec.task].cuts_second_text

    @property
    def _by_answer(self) -> bool:
        """Whether only answers are supervised: a text to classify has no tokens to predict."""
        return self.spec.supervise == "assistant" and self.spec.kind.predicts_tokens

    def _prompt(self, prompt: str, completion: str) -> Tokens:
        text, end = prompt + completion, self.tokenizer.eos_token or ""
        text += "" if completion.endswith(end) else end
        return self._encoded(text, [(len(prompt), len(text))] if self._by_answer else None)

    def _of_halves(self, document: Document) -> Tokens:
        """A source with its target, or, where the teacher writes that, with what it begins with."""
        how = self.spec.generation
        if how is None:
            found = both_halves(self.tokenizer, document.text, document.pair or "")
        else:
            found = source_half(self.tokenizer, document.text, how.end_ids)
        return self._tokens(found.encoded)._replace(source=found.source)

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
            label=None if spec.kind.stores_gold else tokens.label if spec.kind.has_boxes else document.label,
            document_id=document.key if spec.has_document_id else None,
            text=document.text if spec.has_text else None,
            text_pair=document.pair if spec.has_text_pair else None,
            file=document.file,
            offset=document.offset,
            gold_ids=None if asked.gold_ids is None else asked.gold_ids.tobytes(),
            columns=window.columns,
            image=document.image,
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
