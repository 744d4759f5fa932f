"""The tasks, one frozen value each. Nothing else in this package knows a task by its name."""

from __future__ import annotations

from schemas.images import MAX_PIXELS, MOST_PIXELS
from schemas.task import Setting, Task, TaskColumn

CAUSAL_LM = Task(
    name="causal-lm",
    places="before_next_token",
    labels="next_token",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=False,
    is_written=True,
    is_declared=False,
)
SEQUENCE_CLASSIFICATION = Task(
    name="sequence-classification",
    places="whole_text",
    labels="document",
    scores=("softmax", "sigmoid", "identity"),
    has_vocabulary=False,
    takes_pairs=True,
    is_declared=False,
)
MAX_VIEWS = 1024
VIEWS = Setting(
    "views",
    1,
    1,
    MAX_VIEWS,
    "views of each window, each with masks of its own; or of each image, the first as it is, others as --augment says",
)
VIEW_INDEX = TaskColumn("view_index", 0, MAX_VIEWS - 1)
MASKED_LM = Task(
    name="masked-lm",
    places="token",
    labels="position",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=True,
    columns=(VIEW_INDEX,),
    settings=(
        VIEWS,
        Setting("mlm_probability", 0.15, 0.001, 1.0, "share of a window's tokens that are positions"),
        Setting("mask_replace_prob", 0.8, 0.0, 1.0, "share of these that the teacher sees as the mask token"),
        Setting(
            "random_replace_prob",
            0.1,
            0.0,
            1.0,
            "share that it sees as a random token; the rest stay as they are",
        ),
        Setting("whole_word_mask", False, 0, 1, "mask all tokens of a word, or none"),
    ),
)
OUTSIDE = "O"
"""The class of words that are part of no entity."""
TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    places="token",
    labels="word",
    scores=("softmax",),
    has_vocabulary=False,
    takes_pairs=False,
)
PAIR_SCORE = Task(
    name="pair-score",
    places="text",
    labels="text",
    scores=("identity",),
    has_vocabulary=False,
    takes_pairs=False,
)
MAX_PROMPT_CHARS, MAX_DIM = 10_000, 2**24
_EMBEDDING = (
    Setting("normalize", False, 0, 1, "features have length 1", by_teacher=True),
    Setting("truncate_dim", 0, 0, MAX_DIM, "only so many of a feature's first numbers; 0: all"),
)
FEATURE_EXTRACTION = Task(
    name="feature-extraction",
    places="none",
    labels="none",
    scores=("none",),
    has_vocabulary=False,
    takes_pairs=False,
    settings=(
        Setting("prompt", "", 0, MAX_PROMPT_CHARS, "text put before each text", by_teacher=True),
        *_EMBEDDING,
    ),
)
ANSWERS, ANSWER_START, ANSWER_END, MAX_ANSWERS = "keep_answers", "answer_start", "answer_end", 64
QUESTION_ANSWERING = Task(
    name="question-answering",
    places="whole_text",
    labels="answer",
    scores=("softmax",),
    has_vocabulary=False,
    takes_pairs=True,
    needs_pairs=True,
    text_positions=2,
    columns=(
        TaskColumn("context_start", 0, 2**31 - 1),
        TaskColumn("context_end", 0, 2**31 - 1),
        TaskColumn("has_answer", 0, 1),
    ),
    class_columns=("context_start", "context_end"),
    settings=(
        Setting(
            "always_answerable",
            False,
            0,
            1,
            "every question has an answer in its context: the first token ([CLS]) stands for none, and is no choice",
        ),
        Setting(
            ANSWERS,
            0,
            0,
            MAX_ANSWERS,
            "keep the characters of up to so many answers a question, with --keep_text: evaluate takes the best of "
            "them; 0: the first one's tokens",
            is_later=True,
        ),
    ),
    numbered_by=ANSWERS,
    numbered_columns=(TaskColumn(ANSWER_START, -1, 2**31 - 1), TaskColumn(ANSWER_END, -1, 2**31 - 1)),
)
SOURCE_TOKENS = "source_tokens"
SEQ2SEQ_LM = Task(
    name="seq2seq-lm",
    places="before_next_token",
    labels="next_token",
    scores=("softmax",),
    has_vocabulary=True,
    takes_pairs=False,
    has_source=True,
    is_written=True,
    columns=(TaskColumn(SOURCE_TOKENS, 1, 2**31 - 2),),
    settings=(
        Setting(
            "truncate_source",
            False,
            0,
            1,
            "cut sources longer than --max_length at their end, instead of rejecting the record",
        ),
    ),
)
_IMAGES = (
    VIEWS,
    Setting("augment", "", 0, 100, "what views but the first do, of crop,flip,colour"),
    Setting("max_image_pixels", MAX_PIXELS, 1, MOST_PIXELS, "larger images are rejected, by their headers"),
)
IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    places="whole_text",
    labels="document",
    scores=("softmax", "sigmoid", "identity"),
    has_vocabulary=False,
    takes_pairs=False,
    reads_images=True,
    columns=(VIEW_INDEX,),
    settings=_IMAGES,
)
IMAGE_FEATURE_EXTRACTION = Task(
    name="image-feature-extraction",
    places="none",
    labels="none",
    scores=("none",),
    has_vocabulary=False,
    takes_pairs=False,
    reads_images=True,
    columns=(VIEW_INDEX,),
    settings=(*_IMAGES, *_EMBEDDING),
)
QUERIES, MAX_QUERIES = "queries", 2**14
NO_OBJECT = "no-object"
"""The last class of a detector with softmax scores."""
OBJECT_DETECTION = Task(
    name="object-detection",
    places="whole_text",
    labels="objects",
    scores=("softmax", "sigmoid"),
    has_vocabulary=False,
    takes_pairs=False,
    reads_images=True,
    counted_by=QUERIES,
    has_boxes=True,
    columns=(VIEW_INDEX,),
    settings=(
        *_IMAGES,
        Setting(
            QUERIES, 1, 1, MAX_QUERIES, "positions of an image: what the detector asks for", by_teacher=True
        ),
    ),
)
_ALL = (
    *(CAUSAL_LM, SEQUENCE_CLASSIFICATION, MASKED_LM, TOKEN_CLASSIFICATION, PAIR_SCORE),
    *(FEATURE_EXTRACTION, QUESTION_ANSWERING, SEQ2SEQ_LM, IMAGE_CLASSIFICATION, IMAGE_FEATURE_EXTRACTION),
    OBJECT_DETECTION,
)
TASKS = {task.name: task for task in _ALL}
CLASS_COLUMNS = tuple({name for task in _ALL for name in task.class_columns or ()})
"""Columns that say which tokens are a row's classes, of any task."""
DEFAULT = CAUSAL_LM.name
"""Where a verb does not insist on being told."""
