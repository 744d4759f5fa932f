"""What a student of another tokenizer reads at once."""

from transformers import PretrainedConfig

from tests.trainer.reading.tokenizers import byte_level
from trainer.students.other_tokenizers import UNLIMITED, limit_of


def test_a_student_that_names_no_limit_has_one_that_a_tokenizer_takes() -> None:
    tokenizer = byte_level(300)
    assert tokenizer.model_max_length > UNLIMITED
    assert limit_of(PretrainedConfig(), tokenizer) == UNLIMITED
    assert tokenizer("a", "b", truncation="longest_first", max_length=UNLIMITED)["input_ids"]
