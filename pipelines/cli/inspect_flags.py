"""The flags of `inspect --corpus`: its help and its refusals of wrong flags, without torch and Beam."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from pipelines.cli.corpus_flags import add_corpus_flags
from pipelines.cli.task_flags import add_generation_flags, add_task_flags
from schemas.cli.arguments import Parser, natural, positive
from schemas.network import refuse_unreachable, refuse_unreachable_files
from schemas.spec import Supervise
from schemas.task import Score
from schemas.tasks import DEFAULT, TASKS

_HELP = """\
Shows what of a corpus would be supervised: its first records as the teacher's tokenizer and chat template make them.

The teacher's weights are not opened. What is supervised is coloured; where there are no colours (a file, a pipe, or
NO_COLOR is set), it stands in [[double brackets]]. Records that would be rejected are told with their reason.
"""

_EXAMPLES = """\
examples:
  teachonce inspect --corpus chats.jsonl --teacher ./teacher --messages_field messages --rows 3
  teachonce inspect --corpus 'qa/*.parquet' --teacher ./teacher --prompt_field question --completion_field answer
"""


def inspect(argv: Sequence[str]) -> argparse.Namespace:
    """What the line says.

    Raises:
        UsageError: a wrong flag or value.
    """
    found: argparse.Namespace = _parser().parse_args(list(argv))
    refuse_unreachable("--teacher", found.teacher)
    refuse_unreachable_files("--corpus", found.corpus)
    return found


def _parser() -> Parser:
    parser = Parser(prog="teachonce inspect", description=_HELP, epilog=_EXAMPLES)
    add_corpus_flags(parser)
    parser.add_argument(
        "--teacher", required=True, metavar="DIR", help="model folder, or hub name[@revision]"
    )
    parser.add_argument("--task", choices=tuple(TASKS), default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own Python code")
    parser.add_argument("--score", choices=get_args(Score), help="default: what the teacher's config says")
    parser.add_argument("--max_length", type=positive, metavar="N", help="tokens of a window (up to 1,024)")
    parser.add_argument(
        "--stride", type=natural, metavar="N", help="tokens shared with the window before (0)"
    )
    supervise = "which tokens are positions of instruction data (default: assistant)"
    parser.add_argument("--supervise", choices=get_args(Supervise), help=supervise)
    add_task_flags(parser)
    add_generation_flags(parser)
    parser.add_argument("--rows", type=positive, default=3, metavar="N", help="records to show (3)")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    parser.set_defaults(cache="none", report=None, keep=None)
    return parser
