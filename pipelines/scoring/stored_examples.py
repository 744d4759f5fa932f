"""What a cache's rows were asked as: examples, to be asked again."""

from __future__ import annotations

import numpy as np

from pipelines.corpus.examples import Example
from schemas.rows.columns import IMAGE
from schemas.rows.rows import Rows


def stored_examples(rows: Rows) -> list[Example]:
    """Examples as the teacher takes them, from rows."""
    spec, stored = rows.spec, rows.ragged("position_index")
    gold = rows.ragged("labels") if spec.kind.stores_gold else None
    found = []
    for index in range(len(rows)):
        types = rows.ragged("token_type_ids").row(index) if spec.has_token_type_ids else None
        found.append(
            Example(
                id=rows.array("example_id")[index].tobytes(),
                document_hash=rows.array("document_hash")[index].tobytes(),
                window_index=0,
                window_count=1,
                input_ids=np.ascontiguousarray(rows.input_ids.row(index)).tobytes(),
                token_type_ids=None if types is None else types.astype(np.int32).tobytes(),
                position_index=stored.row(index).tobytes() if stored.validity[index] else None,
                label=None,
                document_id=None,
                text=None,
                text_pair=None,
                file="",
                offset=0,
                gold_ids=None if gold is None or not gold.validity[index] else gold.row(index).tobytes(),
                columns=tuple(int(rows.array(column.name)[index]) for column in spec.kind.columns),
                image=rows.array(IMAGE)[index] if spec.kind.reads_images else None,
            )
        )
    return found
