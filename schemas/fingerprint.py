"""Who a teacher is: everything that decides what it says, as hashes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from schemas.identity import canonical_json, digest


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that decides what the teacher says, as hashes (hex) and names."""

    weights: str
    config: str
    tokenizer: str
    chat_template: str
    dtype: str
    remote_code: str = ""

    @property
    def hash(self) -> str:
        return digest(canonical_json(dataclasses.asdict(self)), "fingerprint").hex()
