"""Tokenizers of several makes, trained on a few sentences."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the cat sat on the mat, and the other cat sat on the cat",
    "another tokenizer tokenizes the same sentence into other tokens",
    "naïve café — déjà vu; straße, Ångström",
    "emoji 🤗🤗 and 漢字 in one line 12345 67890",
    "  spaces   and\ttabs\nand lines",
]
END, BEGIN = "</s>", "<s>"


def byte_level(size: int, *, bos: bool = False, eos: bool = False, space: bool = False) -> Any:
    """A byte-level BPE of so many tokens at most; with 258 it has the bytes alone."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(SENTENCES * 3, trainer)
    return _finished(raw, bos=bos, eos=eos)


def sentence_piece(size: int, *, bos: bool = False, eos: bool = False) -> Any:
    """As Llama's: spaces are bars, and what has no token is written in bytes."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    special = [BEGIN, END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, limit_alphabet=40, show_progress=False
    )
    raw.train_from_iterator(SENTENCES * 3, trainer)
    state = raw.to_str().replace('"special":true', '"special":false')
    return _finished(Tokenizer.from_str(state), bos=bos, eos=eos, unk="<unk>")


def word_piece(*, lowercase: bool = True) -> Any:
    """As BERT's, which forgets case and accents, and between which texts stand [CLS] and [SEP]."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(
        SENTENCES * 3, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    ids = [(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _finished(raw: Tokenizer, *, bos: bool, eos: bool, **named: str) -> Any:
    if bos or eos:
        single = " ".join([BEGIN] * bos + ["$A"] + [END] * eos)
        special = [(name, raw.token_to_id(name)) for name in (BEGIN, END)]
        raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BEGIN, eos_token=END, pad_token=END, **named
    )
