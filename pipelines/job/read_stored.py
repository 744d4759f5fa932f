"""What a cache has, read in the pipeline: windows of live shards, of orphans, and of what could not be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines.job.existing_rows import in_buckets, live_windows, orphan_windows, unscored_windows
from pipelines.tolerances import Run
from schemas.shards.seal import Shard
from schemas.storage.storage import StoredFile


class ReadStored(beam.PTransform):  # type: ignore[misc]
    """(bucket, windows) of all that needs no teacher."""

    def __init__(
        self,
        run: Run,
        live: Sequence[Shard],
        orphans: Sequence[StoredFile],
        unscored: Sequence[str],
        *,
        buckets: int,
        spread: beam.PTransform,
    ) -> None:
        """`spread` hands what is listed out to the workers."""
        super().__init__()
        self._spread = spread
        self._run, self._live, self._orphans = run, live, orphans
        self._unscored, self._buckets = unscored, buckets

    def expand(self, pipeline: Any) -> beam.PCollection:
        run = self._run
        where = {"root": run.root, "header": run.header, "buckets": self._buckets}
        stored = [
            pipeline
            | "list shards" >> beam.Create([tuple(shard) for shard in self._live])
            | "spread shards" >> self._spread
            | "read live ids" >> beam.FlatMap(in_buckets, live_windows, **where, may_leave=run.may_leave)
        ]
        if self._orphans:
            stored.append(
                pipeline
                | "list orphans" >> beam.Create([tuple(file) for file in self._orphans])
                | "spread orphans" >> self._spread
                | "check orphans" >> beam.FlatMap(in_buckets, orphan_windows, **where)
            )
        if self._unscored:
            stored.append(
                pipeline
                | "list unscored" >> beam.Create(list(self._unscored))
                | "read unscored" >> beam.FlatMap(in_buckets, unscored_windows, **where)
            )
        return stored | "gather stored" >> beam.Flatten()
