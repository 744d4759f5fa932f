"""Tiny random models with real tokenizers: real `from_pretrained` folders, a second to make."""

import copy
import functools
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from schemas.embedding_folders import EmbeddingFolder, write_embedding_folder

TEXT = [
    "The teacher runs once and the students train many times.",
    "A cache holds what the teacher said, in a dozen bytes a token.",
    "Rows stand in id order in a shard; a shard is sealed by its name.",
    "Nothing is lost and nothing passes silently: a reject is counted and written down.",
]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def byte_tokenizer(vocab_size: int = 300, *, bert: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bert`, one that adds [CLS] and [SEP] and gives token types."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    names = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names,
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )


def causal_teacher(folder: Path, *, kind: str = "llama", seed: int = 0, **changes: object) -> Path:
    """Saves a random causal LM and its tokenizer; `kind` is llama, gemma2, granite or gpt2."""
    tokenizer = byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "initializer_range": 0.4,
        "tie_word_embeddings": True,
    }
    if kind == "gemma2":
        shape |= {"head_dim": 16, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
    if kind == "granite":
        shape |= {"logits_scaling": 4.0, "embedding_multiplier": 2.0}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **(shape | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    return save(model, tokenizer, folder)


def classifier(folder: Path, *, num_labels: int = 3, seed: int = 0, **changes: object) -> Path:
    """Saves a random BERT for sequence classification and its tokenizer."""
    tokenizer = byte_tokenizer(bert=True)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.4,
        num_labels=num_labels,
        id2label={i: f"label{i}" for i in range(num_labels)},
        label2id={f"label{i}": i for i in range(num_labels)},
        **changes,
    )
    return save(transformers.BertForSequenceClassification(config), tokenizer, folder)


def token_classifier(folder: Path, names: tuple[str, ...], kind: str = "bert") -> Path:
    """Saves a random token classifier and its tokenizer, which splits words into letters and common pairs."""
    words = byte_tokenizer(bert=kind != "roberta")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(words),
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.4,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        **shape,
    )
    return save(transformers.AutoModelForTokenClassification.from_config(config), words, folder)


@functools.cache
def roberta_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer that stands two marks between the texts of a pair, and gives no token types."""
    tokenizer = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>",
        pair="[CLS] $A </s> </s> $B </s>",
        special_tokens=[("[CLS]", 2), ("</s>", 1)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        cls_token="[CLS]",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=510,
    )


def answerer(folder: Path, kind: str = "bert") -> Path:
    """Saves a random model that answers questions, and its tokenizer."""
    words = roberta_tokenizer() if kind == "roberta" else byte_tokenizer(bert=True)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(words),
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.4,
        **shape,
    )
    return save(transformers.AutoModelForQuestionAnswering.from_config(config), words, folder)


SEQ2SEQ = {
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.5},
    "bart": {"d_model": 32, "init_std": 0.4},
    "marian": {"d_model": 32, "init_std": 0.4},
    "m2m_100": {"d_model": 32, "init_std": 0.4},
    "mbart": {"d_model": 32, "init_std": 0.4},
}
_HALVES = {
    f"{half}_{name}": size
    for half in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
}


def seq2seq_teacher(folder: Path, kind: str = "t5", seed: int = 0, tokenizer=None, **changes: object) -> Path:
    """Saves a random encoder-decoder and its tokenizer, which ends a text; BART's begins it too."""
    words = tokenizer or ending_tokenizer(begins=kind == "bart")
    shape = {
        "vocab_size": len(words),
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "forced_eos_token_id": None,
        "decoder_start_token_id": 1 if kind == "bart" else 0,
        **({} if kind == "t5" else _HALVES),
        **SEQ2SEQ[kind],
    }
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **(shape | changes))
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return save(model, words, folder)


@functools.cache
def ending_tokenizer(*, begins: bool = False) -> transformers.PreTrainedTokenizerFast:
    """`byte_tokenizer` that puts the end token behind a text, and another before it where it `begins`."""
    tokenizer = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>" if begins else "$A </s>", special_tokens=[("[CLS]", 2), ("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def save(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path, kind: str = "bert", *, seed: int = 0, **changes: object) -> Path:
    """Saves a random model without a head, and its tokenizer; `kind` is bert, roberta, mpnet or llama."""
    words = byte_tokenizer(bert=kind != "llama")
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 512, "pad_token_id": 0, "initializer_range": 0.4}
    shape |= {"vocab_size": len(words), "type_vocab_size": 2 if kind == "bert" else 1}
    shape |= {"num_key_value_heads": 2} if kind == "llama" else {}
    if kind in ("roberta", "mpnet"):
        words = copy.deepcopy(words)
        words.model_input_names = ["input_ids", "attention_mask"]
        words.init_kwargs["model_input_names"] = words.model_input_names
    config = transformers.AutoConfig.for_model(kind, **(shape | changes))
    return save(transformers.AutoModel.from_config(config), words, folder)


def embedder(folder: Path, kind: str = "bert", *, width: int = 32, **changes: object) -> Path:
    """The same as a folder of sentence-transformers: mean pooled, of length 1, texts of at most 24 tokens."""
    fields = {"pooling": "mean", "normalize": True, "max_length": 24} | changes
    write_embedding_folder(encoder(folder, kind), EmbeddingFolder(**fields), width=width, dense_width=None)
    return folder
