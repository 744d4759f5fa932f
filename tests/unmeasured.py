"""Coverage makes a test half as slow again, and of the longest files it is not taken.

They go where other tests have been, over and over: the share of lines that CI asks for comes from the others alone.
pytest-cov's own `no_cover` loses the lines and not the time: under xdist it finds a second tracer, that stays.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).parent

UNMEASURED = {
    _HERE / name
    for name in (
        "architectures/test_architectures.py",
        "pipelines/job/test_again.py",
        "pipelines/job/test_faults.py",
        "pipelines/job/test_leaving.py",
        "pipelines/job/test_memory.py",
        "pipelines/job/test_newer_formats.py",
        "pipelines/job/test_nights.py",
        "pipelines/job/test_orphans.py",
        "pipelines/scoring/test_rescore.py",
        "pipelines/teacher/test_independence.py",
        "pipelines/teacher/test_large.py",
        "pipelines/teacher/test_values.py",
        "pipelines/upkeep/test_compaction.py",
        "pipelines/upkeep/test_forgetting.py",
        "pipelines/upkeep/test_thin.py",
        "pipelines/upkeep/test_thin_forgets.py",
        "pipelines/upkeep/test_thin_student.py",
        "pipelines/upkeep/test_upkeep.py",
        "schemas/rows/test_pages.py",
        "schemas/shards/test_hostile.py",
        "schemas/versions/test_corruption.py",
        "trainer/batches/test_drawn_batches.py",
        "trainer/checkpoints/test_keeping.py",
        "trainer/stream/test_replay.py",
        "trainer/training/test_training.py",
    )
}
assert all(path.exists() for path in UNMEASURED)


@contextmanager
def untraced() -> Iterator[None]:
    """Nothing is traced meanwhile, in threads neither."""
    own, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(of_threads)
        sys.settrace(own)
