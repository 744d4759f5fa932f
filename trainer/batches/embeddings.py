"""Ids that a student has no embedding for: on a GPU an index beyond is no error to read."""

from __future__ import annotations

import numpy as np

from schemas.errors import StudentError
from schemas.rows.rows import Rows


def refuse_beyond(rows: Rows, name: str, number: int | None) -> None:
    """Asserts that a column's ids are below the number that a student has embeddings for; None: whatever it has.

    Raises:
        StudentError: naming the first example that has another.
    """
    column = rows.ragged(name)
    if number is None or not column.values.size or column.values.max() < number:
        return
    place = int((column.values >= number).argmax())
    row = int(np.searchsorted(column.offsets, place, side="right")) - 1
    raise StudentError(
        f"the student has no embedding for the cache's {name}",
        where=f"example {rows.array('example_id')[row].tobytes().hex()}",
        expected=f"at most {number - 1}",
        got=int(column.values[place]),
        do="Give the student's config a larger "
        + ("vocab_size" if name == "input_ids" else "type_vocab_size"),
    )
