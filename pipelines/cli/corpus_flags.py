"""The flags that name a corpus, for every verb that reads one."""

from __future__ import annotations

from typing import get_args

from pipelines.config import CorpusFormat
from schemas.cli.arguments import Flags, positive


def add_corpus_flags(group: Flags) -> None:
    """Which files, and which of their fields are what."""
    files = "paths or quoted globs; also s3://, gs://, hf://datasets/OWNER/NAME/FILES"
    group.add_argument("--corpus", nargs="+", required=True, metavar="FILES", help=files)
    formats = (
        "jsonl, text (one document a line), csv or tsv (a header names the fields), parquet, tar, each also .gz "
        "or .zst; image; auto: by the name"
    )
    group.add_argument("--format", choices=get_args(CorpusFormat), help=formats)
    group.add_argument(
        "--text_field", metavar="NAME", help="field with the text, or question (default: text)"
    )
    group.add_argument("--text_pair_field", metavar="NAME", help="second text, for pair tasks; the context")
    target = "what is to be said to the text, which is the source, for seq2seq-lm"
    group.add_argument("--target_field", metavar="NAME", help=target)
    words = "a list of words instead of a text, for token-classification"
    group.add_argument("--words_field", metavar="NAME", help=words)
    passages = "a list of texts that are scored beside the text, for pair-score"
    group.add_argument("--passages_field", metavar="NAME", help=passages)
    image = "encoded images, for tasks of images (default there: image)"
    group.add_argument("--image_field", metavar="NAME", help=image)
    messages = (
        "list of messages: the chat template applies, to whole messages and what else it reads of a record"
    )
    group.add_argument("--messages_field", metavar="NAME", help=messages)
    group.add_argument("--tools_field", metavar="NAME", help="what the chat template reads as tools (tools)")
    group.add_argument(
        "--prompt_field", metavar="NAME", help="prompt; with --completion_field, or --generate"
    )
    group.add_argument("--completion_field", metavar="NAME", help="completion of the prompt")
    label = (
        "gold label, by the teacher's names or by number; of several, a list of those, or multi-hot. Of words a "
        "list of names, or of {start, end, label}; of passages numbers; of questions answers as SQuAD has them"
    )
    group.add_argument("--label_field", metavar="NAME", help=label)
    ids = "the user's own id: keeps equal texts apart. Without it equal content is one document"
    group.add_argument("--id_field", metavar="NAME", help=ids)
    group.add_argument(
        "--max_document_chars", type=positive, metavar="N", help="longer ones are rejected (10,000,000)"
    )
    longest = "longer lines, and larger rows of tables, are rejected and never held whole (67,108,864)"
    group.add_argument("--max_line_bytes", type=positive, metavar="N", help=longest)
