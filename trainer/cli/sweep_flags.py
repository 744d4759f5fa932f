"""The parser of `sweep`: its help and refusals of wrong flags, without Optuna, torch and transformers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from schemas.cli.arguments import Parser, natural, positive
from trainer.sweep.choices import DEFAULT_PRUNE_AT, DEFAULT_TRIALS, KEEPS, PRUNERS, SAMPLERS

_EXAMPLES = textwrap.dedent("""\
    examples:
      twenty trials by Optuna's TPE, four at a time from one decode; the same command goes on after a kill:
        teachonce sweep ./cache --space space.yaml --trials 20 --parallel 4 --study ./study
      where space.yaml holds flags of `teachonce train`; a list is a choice:
        student: [small.json, {student: shrink:layers=6, teacher: ./teacher}]
        losses: {kl: 1.0, ce: {uniform: [0, 1]}}
        temperature: [1, 2]
        learning_rate: {log: [1e-4, 3e-3]}
        num_train_epochs: 3

      every combination of the lists, none given up:
        teachonce sweep ./cache --space lists.yaml --sampler grid --pruner none --study ./grid

      what it would draw, without training anything:
        teachonce sweep ./cache --space space.yaml --study ./study --dry_run
    """)


def sweep(argv: Sequence[str]) -> None:
    """Prints the help of `teachonce sweep` and leaves, or refuses a line that cannot be."""
    sweep_parser().parse_args(argv)


def sweep_parser() -> Parser:
    """The flags of `sweep`."""
    parser = Parser(
        prog="teachonce sweep",
        description="Searches for a student over a cache that is there already: trials drawn by Optuna from a space of "
        "`train`'s flags.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("cache", help="the cache: a folder, s3://, gs:// or az://")
    add(
        "--space",
        required=True,
        metavar="FILE",
        help="YAML of train's flags: values, lists, {log: [LOW, HIGH]}",
    )
    add(
        "--study",
        required=True,
        metavar="FOLDER",
        help="where trials stand; a study that is there is gone on with",
    )
    add("--trials", type=positive, help=f"trials in all [{DEFAULT_TRIALS}; of a grid all]")
    add("--sampler", choices=SAMPLERS, default="tpe", help="how trials are drawn [tpe]")
    add("--pruner", choices=PRUNERS, default="median", help="which trials are given up on their way [median]")
    shares = " ".join(f"{share:g}" for share in DEFAULT_PRUNE_AT)
    add(
        "--prune_at",
        nargs="+",
        type=float,
        default=DEFAULT_PRUNE_AT,
        metavar="SHARE",
        help=f"shares of its steps after which a trial is measured [{shares}]",
    )
    add("--parallel", type=positive, default=1, metavar="P", help="trials at once, from one decode [1]")
    add(
        "--seed", type=natural, default=0, help="of what is drawn; train's own seed is a key of the space [0]"
    )
    add("--objective", metavar="METRIC", help="a metric of evaluate [the task's own]")
    direction = parser.add_mutually_exclusive_group()
    for flag, value, word in (("--minimise", False, "lower"), ("--maximise", True, "higher")):
        direction.add_argument(
            flag, dest="is_maximised", action="store_const", const=value, help=f"{word} is better"
        )
    add(
        "--keep",
        choices=KEEPS,
        default="front",
        help="students that stay: best and Pareto front, or all [front]",
    )
    add("--dry_run", action="store_true", help="show the space and the number of trials; nothing is written")
    add("--json", action="store_true", help="print everything as JSON")
    return parser
