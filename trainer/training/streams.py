"""What a run replays: its caches, opened and found alike, and the two sides of them as batches of this rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from schemas.cache import Cache
from schemas.errors import StudentError, UsageError
from schemas.features import Feature
from schemas.spec import differences
from trainer.batches.collate import Collation
from trainer.checkpoints.records import Record
from trainer.losses.objective import Objective
from trainer.stream.held import Held
from trainer.stream.order import LANES, Order
from trainer.stream.replay import Replay, Share
from trainer.stream.shared import SharedSide
from trainer.stream.side import Side
from trainer.stream.where import Where
from trainer.students.student import Student
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.joining import Joined, join_caches
from trainer.training.local_cache import local_copies
from trainer.training.lone_images import check_lone_images
from trainer.training.preflight import total_steps


class Opened(NamedTuple):
    """The caches of a run. Their specs and tokenizers are the first one's."""

    caches: tuple[Cache, ...]
    weights: tuple[float, ...] | None
    lanes: int
    joined: Joined | None = None
    """How their rows are one teacher's; None: each row is one cache's."""
    held: Held | None = None
    """Their row groups that stay in memory."""

    @property
    def first(self) -> Cache:
        """The first, as students see it: joined caches have the joined spec. Nothing is read from it."""
        return self.caches[0] if self.joined is None else self.joined.view

    @property
    def written(self) -> tuple[bool, ...]:
        """Of each, whether its teacher wrote the texts; of joined ones, which have the same texts, of the first."""
        caches = self.caches if self.joined is None else self.caches[:1]
        return tuple(cache.spec.generation is not None for cache in caches)


def open_caches(config: TrainConfig, world_size: int, before: Record | None) -> Opened:
    """The caches at the versions that the checkpoint's run had; else at those asked for, or the newest.

    Raises:
        CacheError: one cannot be opened.
        UsageError: two of them cannot be one stream, what filters it means nothing, or ranks cannot share its lanes.
    """
    lanes = _lanes(config, world_size, before)
    paths = config.sources
    versions: Sequence[int | None] = [config.cache_version] * len(paths)
    takes_old = before is not None and config.cache_version is None and not config.allow_new_data
    if takes_old and before is not None and len(before.caches) == len(paths):
        versions = [int(cache["version"]) for cache in before.caches]
    copies = local_copies(config.local_cache, config.local_cache_gb)
    opened = zip(paths, versions, strict=True)
    caches = tuple(Cache.open(path, version, copies=copies) for path, version in opened)
    first, *others = caches
    held = Held(int(config.memory_cache_gb * 1e9)) if config.memory_cache_gb else None
    if config.join is not None:
        shares = [0.0 if weight is None else weight for weight in paths.values()]
        joined = join_caches(caches, shares, config.join_pick, config.objective)
        return Opened(caches, None, lanes, joined, held)
    for other in others:
        _check_alike(first, other, ("generation",) if config.objective.tells_origin else ())
    if (where := Where.parse(config.where)) is not None:
        where.check(first.spec)
    weights = tuple(weight for weight in paths.values() if weight is not None)
    return Opened(caches, weights or None, lanes, held=held)


def _check_alike(first: Cache, other: Cache, may_differ: Sequence[str]) -> None:
    lines = differences(first.header, other.header, ("spec",), may_differ)
    if first.header.tokenizer != other.header.tokenizer:
        lines.append("their teachers' tokenizers")
    if lines:
        raise UsageError(
            "two caches cannot be one stream: they differ",
            where=f"{first.storage.root}, {other.storage.root}",
            got=lines[0].replace(": cache ", " ").replace(", run ", " and "),
            do="Name caches of one task, policy and tokenizer",
        )


def _lanes(config: TrainConfig, world_size: int, before: Record | None) -> int:
    """As many as are asked for, as the checkpoint's run had, or as the ranks can share."""
    lanes = config.lanes
    if lanes is None:
        lanes = before.lanes if before is not None else -(-LANES // world_size) * world_size
    if lanes % world_size:
        raise UsageError(
            "--lanes must be a multiple of the number of ranks",
            expected=f"a multiple of {world_size}",
            got=lanes,
            do="Start the run with such --lanes: a run that is resumed keeps its own",
        )
    return lanes


def global_batch(arguments: StudentArguments) -> int:
    """Rows of an optimizer step, over all ranks."""
    a_rank = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return int(a_rank * arguments.world_size)


def stream_seed(arguments: StudentArguments) -> int:
    """What decides the order of rows."""
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def needed_features(cache: Cache, objective: Objective) -> tuple[Feature, ...]:
    """The cache's features, if the losses use them."""
    return cache.spec.features if objective.uses_features else ()


class SharedSides:
    """What several students of the same caches read together: one decode of each order."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, int], SharedSide] = {}

    def side(self, sides: Sequence[Side], order: Order, *, is_eval: bool) -> SharedSide:
        """Of the students' orders those of one side and one size of a step are the same."""
        key = is_eval, order.batch_size
        if key not in self._found:
            self._found[key] = SharedSide(sides, order, epochs=1 if is_eval else None)
        return self._found[key]


def make_replays(
    config: TrainConfig,
    arguments: StudentArguments,
    opened: Opened,
    student: Student,
    shared: SharedSides | None = None,
) -> tuple[Replay, Replay | None]:
    """What is trained on, and what it is evaluated on where that is asked for; `shared` with other students, or alone.

    Raises:
        UsageError: a side has no row.
        StudentError: the student has no embedding for an id, or the losses need labels that are not there.
    """
    features = needed_features(opened.first, config.objective)
    join = None if opened.joined is None else opened.joined.join
    collation = student.collation(
        temperature=config.objective.temperature,
        features=features,
        stored=config.objective.stored(opened.first.spec) | (frozenset() if join is None else join.needs),
        join=join,
    )
    training = _replay(config, arguments, opened, collation, shared, is_eval=False)
    if not all(training.order.rows):
        empty = opened.caches[training.order.rows.index(0)]
        where, got = empty.storage.root, f"{empty.totals.examples} rows"
        raise UsageError("no row is left to train on", where=where, got=got)
    for cache, side in enumerate(training.sides):
        _check_first(side, training, cache, needs_labels=config.objective.uses_labels)
    check_lone_images(student, training, total_steps(arguments, training.order))
    if arguments.eval_strategy == "no":
        return training, None
    evaluation = _replay(config, arguments, opened, collation, shared, is_eval=True)
    if evaluation.order.num_rows == 0:
        raise UsageError("no document is held out to evaluate on", do="Raise --eval_fraction")
    return training, evaluation


def _replay(
    config: TrainConfig,
    arguments: StudentArguments,
    opened: Opened,
    collation: Collation,
    shared: SharedSides | None,
    *,
    is_eval: bool,
) -> Replay:
    size = arguments.per_device_eval_batch_size if is_eval else arguments.per_device_train_batch_size
    where, fraction = Where.parse(config.where), config.eval_fraction
    beside = None if opened.joined is None else opened.joined.beside
    sides = [
        Side(
            cache=cache,
            eval_fraction=fraction,
            is_eval=is_eval,
            where=where,
            beside=beside,
            held=opened.held,
        )
        for cache in (opened.caches if beside is None else opened.caches[:1])
    ]
    order = Order(
        counts=tuple(side.counts() for side in sides),
        weights=None if is_eval else opened.weights,
        batch_size=size * arguments.world_size if is_eval else global_batch(arguments),
        row_groups=config.shuffle_row_groups,
        lanes=opened.lanes,
        seed=stream_seed(arguments),
        shuffled=not is_eval,
    )
    if not is_eval:
        collation = replace(collation, warmth=config.objective.warmth(total_steps(arguments, order)))
    share = Share(batch_size=size, rank=arguments.process_index, world_size=arguments.world_size)
    pinned = arguments.device.type == "cuda" and arguments.dataloader_pin_memory
    if shared is None:
        return Replay(sides, order, collation, share, pinned=pinned)
    source = shared.side(sides, order, is_eval=is_eval).source(collation, share, pinned=pinned)
    return Replay(sides, order, collation, share, source=source)


def _check_first(side: Side, training: Replay, cache: int, *, needs_labels: bool) -> None:
    """What the first row group tells: ids beyond the student, and that `ce` without labels would be silently zero."""
    rows = side.read(training.order.some_group(cache))
    training.collation.check(rows)
    labels = "object_classes" if rows.spec.kind.has_boxes else "labels"
    if needs_labels and not rows.ragged(labels).validity.any() and rows.spec.kind.reads_labels:
        raise StudentError(
            "the ce loss needs labels, and the cache's first rows have none",
            where=side.cache.storage.root,
            do="Precompute with --label_field, or leave ce out",
        )
