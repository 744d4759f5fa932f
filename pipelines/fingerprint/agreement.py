"""What a run and a cache agree on before anything is computed: one teacher, one spec, or a refusal by field."""

from __future__ import annotations

from dataclasses import replace

from pipelines.config import PrecomputeConfig
from pipelines.fingerprint.fingerprint import ResolvedTeacher, make_header
from pipelines.fingerprint.same_teacher import reconciled
from schemas.errors import MismatchError, NoCacheError
from schemas.fingerprint import Fingerprint
from schemas.policies import former_default, refuse_whole
from schemas.spec import Header, differences
from schemas.storage.storage import Storage
from schemas.versions.header import read_header


def agreed(
    storage: Storage, config: PrecomputeConfig, teacher: ResolvedTeacher, asked: Header
) -> tuple[Header, Fingerprint]:
    """The cache's own header where there is one, and what the teacher is found to be.

    Names and other words for people are the first run's; a default that was another when the cache was made is too.
    """
    try:
        existing = read_header(storage)
    except NoCacheError:
        refuse_whole(asked.spec.keep, asked.spec.vocab_size)
        return asked, asked.fingerprint
    former = former_default(asked.spec.vocab_size)
    if config.keep is None and asked.spec.keep != former == existing.spec.keep:
        asked = make_header(replace(config, keep=existing.spec.keep), teacher)
    shown, told = reconciled(storage, existing, asked.fingerprint, teacher)
    if lines := [*differences(existing, replace(asked, fingerprint=shown)), *told]:
        raise MismatchError(
            "this run would mix another teacher or spec into the cache",
            where=storage.root,
            got="; ".join(lines),
            do="Use the flags that the cache was made with, or another --cache",
        )
    return existing, asked.fingerprint
