"""Tiny random teachers of many families, and the truth about each: plain transformers, one unpadded text at a time."""

import copy
import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import torch
import transformers

import teachonce
from schemas import Cache
from tests.pipelines import models
from tests.pipelines.helpers import decoded, write_jsonl
from tests.pipelines.models import TEXT

CAUSAL, CLASSES, MASKED = "causal-lm", "sequence-classification", "masked-lm"
AUTO = {
    CAUSAL: transformers.AutoModelForCausalLM,
    CLASSES: transformers.AutoModelForSequenceClassification,
    MASKED: transformers.AutoModelForMaskedLM,
}
TEXTS = ["A.", "x y z", TEXT[0], "Nothing <pad> is </s> lost", TEXT[2] * 3, TEXT[1], "a b"]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
}
MAMBA = {"state_size": 8, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 16}


def tokenizer(*, special=True, **changes):
    """The tests' tokenizer; with `special` one that ends each text as BART and T5 expect."""
    made = copy.deepcopy(models.byte_tokenizer())
    if special:
        processor = models.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        made.backend_tokenizer.post_processor = processor
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def family(folder, task, kind, *, words=None, labels=3, without=(), **changes):
    """A random model of a family, in a folder, with a tokenizer; `changes` are of its config."""
    words = words or tokenizer(special=task == CLASSES)
    named = {"num_labels": labels} if task == CLASSES else {}
    shape = {name: value for name, value in SHAPE.items() if name not in without}
    config = transformers.AutoConfig.for_model(kind, **({"vocab_size": 300} | shape | named | changes))
    torch.manual_seed(0)
    model = AUTO[task].from_config(config).eval()
    louder(model)
    return models.save(model, words, folder)


def masked_words():
    """The tests' tokenizer with a mask, and special tokens around each text."""
    made = tokenizer(special=False)
    made.backend_tokenizer.post_processor = models.byte_tokenizer(bert=True).backend_tokenizer.post_processor
    made.add_special_tokens({"mask_token": "[MASK]"})
    return made


def masked_teacher(folder, kind="bert", **changes):
    """A random masked language model of a family."""
    shape = {"vocab_size": 301, "bos_token_id": 2, "eos_token_id": 3} | changes
    return family(folder, MASKED, kind, words=masked_words(), without=("num_key_value_heads",), **shape)


def louder(model):
    """Weights that make every token count: a fault of a few positions must show in the scores."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                scale = 0.5 if "embed" in name else 0.9 / weight.shape[-1] ** 0.5
                weight.copy_(scale * torch.randn_like(weight))


def teachonce_main(*arguments):
    """Status and what was said, of a verb as people call it."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = teachonce.main([str(argument) for argument in arguments])
    return status, said.getvalue()


def precomputed(folder, teacher, task, *more, texts=TEXTS):
    """A cache of all scores by the real command; status and what was said."""
    corpus = write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in texts])
    keep = ("--keep", "all") if "--keep" not in more else ()
    return teachonce_main(
        *("precompute", "--corpus", corpus, "--teacher", teacher, "--task", task),
        *("--cache", folder / "cache", "--no_progress", *keep, *more),
    )


def batching(cache):
    return Cache.open(cache).record.provenance["batching"]


@torch.inference_mode()
def check_truth(cache, teacher, task):
    """Every score and feature of a cache against plain forwards, each by a fresh copy of the model."""
    model, count = AUTO[task].from_pretrained(teacher, dtype=torch.float32).eval(), 0
    opened = Cache.open(cache)
    for rows in opened.read_all():
        for index in range(len(rows)):
            row = decoded(rows.take(np.array([index])))
            check_row(row, copy.deepcopy(model), opened.spec)
            count += 1
    return count


def check_row(row, model, spec):
    options = {"output_hidden_states": True} if spec.features else {}
    output = model(torch.from_numpy(row["input_ids"].astype(np.int64))[None], **options)
    scores = output.logits.reshape(-1, spec.vocab_size).double().log_softmax(1).numpy()
    offsets = row["kept_offsets"]
    for place, truth in enumerate(scores[row["positions"]] if spec.task == CAUSAL else scores):
        kept = slice(offsets[place], offsets[place + 1])
        likely = truth[row["kept_ids"][kept]] > np.log(1e-6)
        apart = np.abs(row["logprobs"][kept] - truth[row["kept_ids"][kept]])[likely]
        assert apart.max() <= 1 / 32 + 1e-3
    for feature in spec.features:
        states = output.hidden_states[feature.layer][0].numpy()
        exact = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[feature.pooling]
        assert row[feature.name].shape == exact.shape
        assert np.abs(row[feature.name] - exact).max() <= np.abs(exact).max() / 127 + 1e-3
