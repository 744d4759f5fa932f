"""Makes `teacher/`, the demo's teacher: a Llama of 2.8 million weights with its own tokenizer.

Why: the demo must run without a network, and its teacher must not have seen what the demo holds out. So it
is trained here, on all pages of the PostgreSQL 15 documentation but the held-out ones: six times the text
of the demo's corpus. What it guarantees: no held-out document of the corpus, and no passage of 200
characters of one, stands in the training text (checked before anything is trained); fixed seeds.
What it costs: see the last line of `make_teacher.log`; about 13 minutes on two shared cores, no network.

    python examples/make_teacher.py DIR 2>&1 | tee examples/make_teacher.log

DIR is where the Debian package was unpacked: see `make_corpus.py`. The tokenizer is the same wherever this
runs; the weights are meant to be the same on the same kind of processor with as many threads, else only
nearly so. Batch size and learning rates were set after five runs of an eighth of the length by their loss on
the held-out documents: so these never trained a weight, but the logged perplexity is a little flattering.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from make_corpus import PASSAGE_CHARS, held_out, passages, read_corpus, read_pages
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

HERE = Path(__file__).parent
END = "<|endoftext|>"
PAD = "<|pad|>"
VOCABULARY = 4_096
WINDOW_TOKENS = 256
MAX_TOKENS = 512
BATCH = 8
EVALUATION_WINDOW_TOKENS = 128


def training_texts(root: Path, corpus: Sequence[str]) -> list[str]:
    """All pages that are not held out. Raises SystemExit if one shares a passage with a held-out document."""
    texts = [text for text in read_pages(root).values() if not held_out(text)]
    apart = {
        passage
        for document in corpus
        if held_out(document)
        for passage in passages(document, PASSAGE_CHARS, step=1)
    }
    for text in texts:
        for passage in passages(text, PASSAGE_CHARS, step=1):
            if passage in apart:
                raise SystemExit(f"the training text holds a passage of a held-out document: {passage!r}")
    return texts


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the teacher's training text alone."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, model_max_length=MAX_TOKENS
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained teacher: six layers, so that a student may keep every second or third."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts' ids in one row, each text ended by the end token: int64 `[tokens]`."""
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in [*row, tokenizer.eos_token_id]])


def batches(stream: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches `[BATCH, WINDOW_TOKENS]`: each epoch cuts the stream anew, from a random offset."""
    queue = torch.empty(0, WINDOW_TOKENS, dtype=torch.int64)
    for _ in range(steps):
        if len(queue) < BATCH:
            offset = int(torch.randint(WINDOW_TOKENS, (), generator=generator))
            windows = stream[offset:].unfold(0, WINDOW_TOKENS, WINDOW_TOKENS)
            queue = windows[torch.randperm(len(windows), generator=generator)]
        yield queue[:BATCH]
        queue = queue[BATCH:]


def optimizers(model: LlamaForCausalLM, steps: int) -> list[torch.optim.lr_scheduler.LambdaLR]:
    """Muon for the layers' matrices, AdamW for the rest; both warm up, then fall linearly to a twentieth."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-2, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warm_up = 50

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, max(0.05, (steps - step) / (steps - warm_up)))

    return [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in chosen]


def loss_nats(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each next token of `ids` `[B, S]`, in nats; taken in float32."""
    logits = model(input_ids=ids).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def train(model: LlamaForCausalLM, stream: Tensor, steps: int, seed: int) -> None:
    """Trains in place, under bfloat16 autocast; prints the loss and the time now and then."""
    schedules = optimizers(model, steps)
    began = time.monotonic()
    seen: list[float] = []
    for step, ids in enumerate(batches(stream, steps, torch.Generator().manual_seed(seed)), start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_nats(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for schedule in schedules:
            schedule.optimizer.step()
            schedule.optimizer.zero_grad()
            schedule.step()
        seen.append(loss.item())
        if step % 200 == 0 or step == steps:
            recent = sum(seen[-200:]) / len(seen[-200:])
            print(f"step {step:5,}  loss {recent:.3f} nats  {time.monotonic() - began:5.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Sequence[str]
) -> tuple[float, int]:
    """Cross-entropy in nats a predicted token, and their number, over windows of the held-out documents."""
    total_nats, predicted = 0.0, 0
    for document in filter(held_out, corpus):
        ids = torch.tensor(tokenizer(document, verbose=False)["input_ids"])
        for window in torch.split(ids, EVALUATION_WINDOW_TOKENS):
            count = len(window) - 1
            if count > 0:
                total_nats += loss_nats(model, window[None]).item() * count
                predicted += count
    return total_nats / predicted, predicted


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Writes a plain transformers folder in bfloat16; returns the teacher as the demo opens it: float32."""
    torch.nn.Module.to(model, torch.bfloat16)  # in place
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    opened = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(opened, LlamaForCausalLM)  # for the type checker
    return opened


def make_teacher(args: argparse.Namespace) -> None:
    """Everything: check the split, train, save, evaluate what was saved."""
    began = time.monotonic()
    corpus = read_corpus(args.corpus)
    texts = training_texts(args.root, corpus)
    print(
        f"training text: {len(texts):,} pages, {sum(map(len, texts)):,} characters; nothing held out is in it"
    )
    tokenizer = make_tokenizer(texts)
    stream, corpus_tokens = token_stream(tokenizer, texts), len(token_stream(tokenizer, corpus))
    print(f"tokens: {len(stream):,} in the training text, {corpus_tokens:,} in the corpus")
    torch.manual_seed(args.seed)
    model = make_model(tokenizer)
    print(f"weights: {model.num_parameters():,}; steps: {args.steps:,} of {BATCH * WINDOW_TOKENS:,} tokens")
    train(model, stream, args.steps, args.seed)
    teacher = save(model, tokenizer, args.output)
    loss, predicted = held_out_loss(teacher, tokenizer, corpus)
    print(f"held out: {loss:.4f} nats, perplexity {math.exp(loss):.2f}, over {predicted:,} tokens")
    print(f"seconds: {time.monotonic() - began:.0f}, on {args.threads} threads, torch {torch.__version__}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the demo's teacher on the PostgreSQL documentation.")
    parser.add_argument("root", type=Path, help="folder into which postgresql-doc-15 was unpacked")
    parser.add_argument(
        "--corpus", type=Path, default=HERE / "corpus.jsonl.zst", help="made by make_corpus.py"
    )
    parser.add_argument("--output", type=Path, default=HERE / "teacher", help="folder to write")
    parser.add_argument("--steps", type=int, default=2_000, help="optimizer steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not args.corpus.is_file():
        parser.error(f"no corpus: {args.corpus} is not a file. Make it with make_corpus.py.")
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    make_teacher(args)


if __name__ == "__main__":
    main()
