"""The teachers of `every_task.py`: small models, each trained by a plain loop on real text that its students never see.

No such teachers can be had from package registries, all-MiniLM-L6-v2 (of sentence embeddings) excepted: entities,
answers, rerankers and hidden words are taught to that one, pronunciations to a T5 from scratch. MiniLM's table of
embeddings and the lower half of its layers stay as they are: they learn little in so short a time, and would take half
of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional

Rows = Sequence[dict[str, Any]]
Loss = Callable[[Any, Any, Rows], Tensor]

BATCH, RATE, FROZEN = 8, 3e-4, 3
MAX_TOKENS = {"token-classification": 64, "question-answering": 96, "pair-score": 48, "masked-lm": 48}


def fine_tune(
    model: Any, tokenizer: Any, rows: Rows, loss: Loss, *, steps: int, rate: float = RATE, size: int = BATCH
) -> None:
    """AdamW by a rate that rises over a tenth of the steps, two at least, and falls over the rest."""
    trained = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=max(0.1, 2 / steps)
    )
    model.train()
    for batch in batches(rows, steps, size):
        loss(model, tokenizer, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def batches(rows: Rows, steps: int, size: int) -> Iterator[Rows]:
    chance, order = random.Random(0), list[dict[str, Any]]()
    for _ in range(steps):
        if len(order) < size:
            order = list(rows)
            chance.shuffle(order)
        yield [order.pop() for _ in range(min(size, len(order)))]


def entities(model: Any, tokenizer: Any, rows: Rows) -> Tensor:
    """Cross entropy at the first token of each word."""
    words = [row["tokens"] for row in rows]
    options = {"truncation": True, "max_length": MAX_TOKENS["token-classification"], "padding": True}
    inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt", **options)
    labels = torch.full(inputs["input_ids"].shape, -100)
    for place, row in enumerate(rows):
        of_words = inputs.word_ids(place)
        for token, word in enumerate(of_words):
            if word is not None and word != of_words[token - 1]:
                labels[place, token] = model.config.label2id[row["tags"][word]]
    loss: Tensor = model(**inputs, labels=labels).loss
    return loss


def answers(model: Any, tokenizer: Any, rows: Rows) -> Tensor:
    """Cross entropy of an answer's first and last token among those of the context and the first token."""
    texts = [row["question"] for row in rows], [row["context"] for row in rows]
    options = {"truncation": "only_second", "max_length": MAX_TOKENS["question-answering"], "padding": True}
    inputs = tokenizer(*texts, return_tensors="pt", **options)
    ends = list[tuple[int, int]]()
    for place, row in enumerate(rows):
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        found = [inputs.char_to_token(place, char, 1) for char in (start, start + len(text) - 1)]
        ends.append((0, 0) if None in found else (found[0], found[1]))
    right = torch.tensor(ends)
    loss: Tensor = model(**inputs, start_positions=right[:, 0], end_positions=right[:, 1]).loss
    return loss


def lists(model: Any, tokenizer: Any, rows: Rows) -> Tensor:
    """Which passage of a query's list is the right one. Lists have one length."""
    pairs = [(row["text"], passage) for row in rows for passage in row["docs"]]
    options = {"truncation": True, "max_length": MAX_TOKENS["pair-score"], "padding": True}
    inputs = tokenizer(*map(list, zip(*pairs, strict=True)), return_tensors="pt", **options)
    scores = model(**inputs).logits.view(len(rows), -1)
    return functional.cross_entropy(scores, torch.tensor([row["label"].index(1) for row in rows]))


def hidden_words(model: Any, tokenizer: Any, rows: Rows) -> Tensor:
    """Cross entropy at the hidden tokens; the head sees no others."""
    options = {"truncation": True, "max_length": MAX_TOKENS["masked-lm"]}
    texts = [tokenizer(row["text"], **options) for row in rows]
    batch = transformers.DataCollatorForLanguageModeling(tokenizer)(texts)
    labels = batch.pop("labels")
    hidden = labels != -100
    states = model.base_model(**batch).last_hidden_state[hidden]
    return functional.cross_entropy(model.cls(states), labels[hidden])


def sequences(model: Any, tokenizer: Any, rows: Rows) -> Tensor:
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    targets = tokenizer(text_target=[row["target"] for row in rows], padding=True, return_tensors="pt")[
        "input_ids"
    ]
    loss: Tensor = model(**inputs, labels=targets.masked_fill(targets == tokenizer.pad_token_id, -100)).loss
    return loss


def minilm(
    auto: Any, loss: Loss, *, size: int = BATCH, **changes: Any
) -> Callable[[Path, Path, Rows, int], None]:
    """Makes a teacher of MiniLM with a new head: `(data, folder, rows, steps)`."""

    def make(data: Path, folder: Path, rows: Rows, steps: int) -> None:
        torch.manual_seed(0)
        model = auto.from_pretrained(data / "minilm", dtype=torch.float32, **changes)
        model.base_model.embeddings.requires_grad_(False)
        model.base_model.encoder.layer[:FROZEN].requires_grad_(False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(data / "minilm")
        fine_tune(model, tokenizer, rows, loss, steps=steps, size=size)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return make


T5 = {"model_type": "t5", "d_kv": 32, "num_heads": 4, "dropout_rate": 0.1, "feed_forward_proj": "gated-gelu"}
LARGE_T5 = {**T5, "d_model": 128, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3}
SMALL_T5 = {**T5, "d_model": 64, "d_ff": 128, "num_layers": 1, "num_decoder_layers": 1}


def speller(data: Path, folder: Path, rows: Rows, steps: int) -> None:
    """A T5 of 1.4 million weights, and a tokenizer whose tokens are letters and sounds."""
    words = sorted({part for row in rows for field in ("text", "target") for part in row[field].split()})
    vocab = {name: place for place, name in enumerate(["<pad>", "</s>", "<unk>", *words])}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    torch.manual_seed(0)
    values = {key: value for key, value in LARGE_T5.items() if key != "model_type"}
    config = transformers.T5Config(**values, vocab_size=len(vocab), decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config)
    fine_tune(model, tokenizer, rows, sequences, steps=steps, rate=3e-3, size=8 * BATCH)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
