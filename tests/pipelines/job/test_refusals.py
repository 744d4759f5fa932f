"""Flags that would be ignored, and failures of memory that only a message tells."""

import pytest
import torch

from pipelines.config import CorpusConfig
from pipelines.corpus.documents import Source, parse
from pipelines.corpus.lines import Record
from pipelines.fingerprint.fingerprint import make_header, resolve
from pipelines.teacher.calls import is_out_of_memory
from schemas.errors import UsageError
from tests.pipelines.helpers import config


@pytest.mark.parametrize("field", ["label_field", "text_pair_field"])
def test_fields_without_meaning_for_a_causal_lm_are_refused(field, teacher, tmp_path):
    asked = config(tmp_path / "corpus.jsonl", teacher, tmp_path / "cache", **{field: "other"})
    with pytest.raises(UsageError, match=f"--{field} has no meaning for causal-lm"):
        make_header(asked, resolve(asked.teacher))


def test_the_cpu_allocator_says_out_of_memory_in_words_only():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_byte_order_mark_is_no_part_of_the_first_record():
    record = Record(0, b'\xef\xbb\xbf{"text": "hello"}')
    assert parse(record, Source("f", 0), CorpusConfig(files=("f",)), None, "jsonl").text == "hello"
