"""The flags of a run: those of `precompute`, `plan` and `verify --teacher`; help and refusals without torch and Beam.

`teachonce` asks here first, and imports what runs the verb only when the line has passed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from pipelines.cli.corpus_flags import add_corpus_flags
from pipelines.cli.task_flags import add_generation_flags, add_task_flags
from pipelines.config import SAMPLE_TOKENS, Device, DeviceMap, Dtype
from schemas.cli.arguments import Flags, Groups, Parser, natural, not_negative, positive, split_beam
from schemas.features import FeatureDtype
from schemas.network import refuse_unreachable, refuse_unreachable_files
from schemas.spec import Scalar, Supervise
from schemas.task import Score
from schemas.tasks import TASKS

_PRECOMPUTE_HELP = """\
Runs a Hugging Face teacher once over a corpus, and commits what it says to a cache.

A second run over the same corpus computes nothing; a corpus that has grown costs what was added. With nothing new,
nothing is committed. A run that fails commits nothing. Everything behind ` -- ` goes to Beam.
"""

_PRECOMPUTE_EXAMPLES = """\
examples:
  Text, a causal LM, on this machine:
    teachonce precompute --corpus 'corpus/*.jsonl.zst' --teacher ./teacher --task causal-lm --cache ./cache
  Labelled pairs, a classifier, two features for the students, on Flink:
    teachonce precompute --corpus pairs.parquet --text_field premise --text_pair_field hypothesis \\
      --label_field label --teacher ./nli --task sequence-classification --features mean:-1 cls:-1 \\
      --cache s3://bucket/cache -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19 --parallelism=4

exit status: 0 done, or nothing new; 1 failed; 2 a wrong flag, path or model; 3 too many documents rejected;
4 out of time (--max_hours): what is finished is committed, and the same run started again goes on
"""

_FIRST = (
    *("--corpus", "--teacher", "--task", "--cache", "--text_field", "--label_field", "--messages_field"),
    *("--keep", "--features", "--max_length"),
)
"""Of some sixty flags those that most runs say."""

_VERIFY_HELP = """\
Checks every byte, count and id of a cache; with --teacher, also scores a sample again and compares.

The mean and the largest KL divergence between cache and fresh teacher are printed, in nats, as far as the cache knows.
"""

_VERIFY_EXAMPLES = """\
examples:
  teachonce verify ./cache
  teachonce verify ./cache --teacher ./teacher --sample 200
"""

_PLAN_HELP = """\
Says what `teachonce precompute` with the same flags would do, what it would cost, and whether it would be refused.

The corpus is read and joined with the cache as the run does it, so the counts are exact. A sample of the new examples
is scored by the real teacher, on a worker with its share of the machine: time (by so many --workers), shards and bytes
are reckoned from it. Nothing is written to the cache. On an engine elsewhere, workers tell what they found through
Beam's --temp_location.
"""

_PLAN_EXAMPLES = """\
examples:
  What tonight's corpus would add, and what would leave:
    teachonce plan --corpus 'corpus/*.jsonl.zst' --teacher ./teacher --task causal-lm --cache ./cache --prune
  From how many students of three epochs on a cache pays, for a script; a larger sample, on Flink:
    teachonce plan --corpus 's3://bucket/*.parquet' --teacher ./teacher --task causal-lm --cache s3://bucket/cache \\
      --sample_tokens 100000 --epochs 3 --json -- --runner=FlinkRunner --flink_master=host:8081 --flink_version=1.19 \\
      --temp_location=s3://bucket/tmp | jq .expected.students
  What a corpus costs on a GPU that did 40,000 tokens a second at 2.50 euro an hour; asked without one:
    teachonce plan --corpus 'corpus/*.jsonl.zst' --teacher ./teacher --task causal-lm --cache ./cache \\
      --teacher_rate 40000 --price_per_hour 2.50 --storage_price 0.02

exit status: 0 planned, also where the run would be refused for its rejects or for what it would prune; 1 failed, or
another teacher or spec than the cache's; 2 a wrong flag, path or model
"""


def precompute(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the line says, and the words behind `--`, which are Beam's.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    return _with_teacher(_run_parser("precompute", _PRECOMPUTE_HELP, _PRECOMPUTE_EXAMPLES), own), beam


def plan(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """As `precompute`.

    Raises:
        UsageError: a wrong flag or value.
    """
    own, beam = split_beam(list(argv))
    parser = _run_parser("plan", _PLAN_HELP, _PLAN_EXAMPLES)
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--sample_tokens", type=positive, default=SAMPLE_TOKENS, metavar="N", help="tokens to score (8,192)"
    )
    epochs = "epochs that each student would train (1)"
    group.add_argument("--epochs", type=positive, default=1, metavar="E", help=epochs)
    _add_price_flags(parser.add_argument_group("what it costs, in euro"))
    return _with_teacher(parser, own), beam


def _add_price_flags(group: Flags) -> None:
    rate = "tokens a second of one accelerator, as a run there told (default: the sample's, here)"
    group.add_argument("--teacher_rate", type=not_negative, metavar="N", help=rate)
    for name, what in (
        ("--price_per_hour", "of one accelerator and the machine around it"),
        ("--storage_price", "of a month of 10^9 bytes"),
        ("--write_price", "of a thousand writes to an object store (PUT)"),
        ("--read_price", "of a thousand reads (GET)"),
    ):
        group.add_argument(name, type=not_negative, metavar="EUR", help=what)


def verify(argv: Sequence[str]) -> argparse.Namespace:
    """What the line says.

    Raises:
        UsageError: a wrong flag or value.
    """
    return _with_teacher(_verify_parser(), list(argv))


def _with_teacher(parser: Parser, words: list[str]) -> argparse.Namespace:
    """What the words say; a teacher or files of the hub that cannot be had are told now."""
    found: argparse.Namespace = parser.parse_args(words)
    refuse_unreachable("--teacher", found.teacher)
    refuse_unreachable_files("--corpus", getattr(found, "corpus", ()))
    return found


def _run_parser(verb: str, description: str, examples: str) -> Parser:
    """The flags of a run, which is also planned by them."""
    parser = Parser(prog=f"teachonce {verb}", description=description, epilog=examples)
    groups = Groups(parser, _FIRST)
    add_corpus_flags(groups["corpus"])
    _add_teacher_flags(groups["teacher"])
    task = groups["task"]
    add_task_flags(task)
    add_generation_flags(task)
    _add_cache_flags(groups["cache"])
    _add_run_flags(groups["run"])
    _add_nightly_flags(groups["every night"])
    return parser


def _add_teacher_flags(group: Flags) -> None:
    group.add_argument("--teacher", required=True, metavar="DIR", help="model folder, or hub name[@revision]")
    group.add_argument("--task", required=True, choices=tuple(TASKS))
    group.add_argument("--dtype", choices=get_args(Dtype), help="default: float32")
    group.add_argument(
        "--device", choices=get_args(Device), help="auto (default) takes a GPU where there is one"
    )
    spread = "one teacher over all accelerators of the machine; needs teachonce[large]"
    group.add_argument("--device_map", choices=get_args(DeviceMap), help=spread)
    compiled = "let torch compile the teacher: minutes once a process"
    group.add_argument("--compile", action="store_true", help=compiled)
    group.add_argument("--attn_implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    group.add_argument("--trust_remote_code", action="store_true", help="run the model's own Python code")
    group.add_argument("--allow_pickle", action="store_true", help="open .bin weights, which can run code")


def _add_cache_flags(group: Flags) -> None:
    group.add_argument(
        "--cache", required=True, metavar="DIR", help="folder, s3://, gs:// or az://; made if it is not there"
    )
    keep = "all, top_k:K, top_p:P,k=K, threshold:TAU[,k=K] or sampled:N (default: threshold:1/32 of a "
    group.add_argument(
        "--keep", metavar="POLICY", help=keep + "language model, all of classes); see docs/quality.md"
    )
    own = "store drawn entries' own log-probabilities; on by itself with a temperature other than 1"
    group.add_argument("--own_logits", action="store_true", help=own)
    group.add_argument("--sample_seed", type=int, metavar="N", help="decides what is drawn (default: 0)")
    scalars = "stored beside the entries: entropy gold logsumexp word_start (default: entropy gold)"
    group.add_argument("--scalars", nargs="*", choices=get_args(Scalar), metavar="S", help=scalars)
    features = "pooled hidden states: mean:L, cls:L or last:L; L counts blocks, -1 is the last"
    group.add_argument("--features", nargs="+", metavar="F", help=features)
    group.add_argument("--feature_dtype", choices=get_args(FeatureDtype), help="default: int8 with a scale")
    temperatures = "temperatures that students will use; 1 first, none below 0.1"
    group.add_argument("--temperatures", nargs="+", type=float, metavar="T", help=temperatures)
    group.add_argument("--score", choices=get_args(Score), help="default: what the teacher's config says")
    group.add_argument("--max_length", type=positive, metavar="N", help="tokens of a window (up to 1,024)")
    group.add_argument("--stride", type=natural, metavar="N", help="tokens shared with the window before (0)")
    supervise = "which tokens are positions of instruction data (default: assistant)"
    group.add_argument("--supervise", choices=get_args(Supervise), help=supervise)
    text = "store the text too: shown by inspect, exported by export; training does not read it"
    group.add_argument("--keep_text", action="store_true", help=text)


def _add_run_flags(group: Flags) -> None:
    group.add_argument(
        "--batch_tokens", type=positive, metavar="N", help="padded tokens a batch (4,096; GPU: by trial)"
    )
    group.add_argument(
        "--unit_tokens", type=positive, metavar="N", help="tokens of a shard (default: 1,048,576)"
    )
    group.add_argument(
        "--row_group_tokens", type=positive, metavar="N", help="tokens of a row group (default: 32,768)"
    )
    hint = "machines of the teacher's step, on Dataflow: 'type:nvidia-l4;count:1;...'"
    group.add_argument("--accelerator", metavar="TYPE", help=hint)
    group.add_argument("--min_ram", metavar="SIZE", help="memory of those machines, for instance 64GB")
    fraction = "share of documents that may be rejected (default: 0.001)"
    group.add_argument("--max_reject_fraction", type=float, metavar="F", help=fraction)
    workers = "processes of this machine, each with its own teacher: worker i on cuda:i (default: 1)"
    group.add_argument("--workers", type=positive, metavar="N", help=workers)
    report = "write the run's summary as one JSON object; also why a run failed, or that it still runs"
    group.add_argument("--report", metavar="FILE", help=report)
    group.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    group.add_argument(
        "--no_progress", dest="show_progress", action="store_false", default=None, help="no progress lines"
    )


def _add_nightly_flags(group: Flags) -> None:
    prune = "rows leave whose document is not in the corpus"
    group.add_argument("--prune", action="store_true", default=None, help=prune)
    fraction = "share of the cache's rows that --prune may remove; above it the run fails (default: 0.05)"
    group.add_argument("--max_prune_fraction", type=float, metavar="F", help=fraction)
    replace = "old rows leave of documents that have the same --id_field value and other content"
    group.add_argument("--replace", action="store_true", default=None, help=replace)
    retry = "try again what the teacher could not score before"
    group.add_argument("--retry_rejects", action="store_true", default=None, help=retry)
    hours = "begin no unit after so long; commit what is finished (exit status 4)"
    group.add_argument("--max_hours", type=float, metavar="H", help=hours)
    drift = (
        "largest mean KL, in nats, to the cache when device or libraries are others; of sigmoid and identity scores, "
        "mean over texts of the largest difference of a logit (default: 0.005)"
    )
    group.add_argument("--max_drift_kl", type=float, metavar="NATS", help=drift)


def _verify_parser() -> Parser:
    parser = Parser(prog="teachonce verify", description=_VERIFY_HELP, epilog=_VERIFY_EXAMPLES)
    parser.add_argument("cache", metavar="CACHE", help="folder, s3://, gs:// or az://")
    parser.add_argument(
        "--teacher", required=True, metavar="DIR", help="model folder, or hub name[@revision]"
    )
    parser.add_argument("--version", type=natural, metavar="N", help="default: the newest")
    parser.add_argument(
        "--sample", type=positive, default=64, metavar="N", help="examples to score again (64)"
    )
    bound = (
        "largest mean KL in nats; of sigmoid and identity scores, mean over texts of the largest difference of a logit "
        "(default: 0.005, ten times what the codec costs)"
    )
    parser.add_argument("--max_mean_kl", type=not_negative, default=0.005, metavar="NATS", help=bound)
    parser.add_argument("--device", choices=get_args(Device), default="auto")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own Python code")
    parser.add_argument("--allow_pickle", action="store_true", help="open .bin weights, which can run code")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser
