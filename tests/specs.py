"""A spec of every kind that a cache can have."""

from schemas import Feature, Spec
from schemas.generation import Generation
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP
from schemas.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    IMAGE_FEATURE_EXTRACTION,
    MASKED_LM,
    OBJECT_DETECTION,
    QUESTION_ANSWERING,
    SEQ2SEQ_LM,
)

SCALARS = ("entropy", "gold", "logsumexp")


def causal_spec(**changes) -> Spec:
    fields = {
        "task": "causal-lm",
        "score": "softmax",
        "vocab_size": 50,
        "keep": TopP(p=0.9, k=8),
        "max_length": 32,
        "temperatures": (1.0, 2.0),
        "scalars": SCALARS,
        "features": (
            Feature(pooling="mean", layer=2, width=5),
            Feature(pooling="last", layer=0, width=3, dtype="float32"),
        ),
    }
    return Spec(**{**fields, **changes})


def class_spec(**changes) -> Spec:
    fields = {
        "task": "sequence-classification",
        "score": "softmax",
        "vocab_size": 3,
        "keep": KeepAll(),
        "scalars": SCALARS,
        "max_length": 32,
        "label_names": ("no", "maybe", "yes"),
        "has_token_type_ids": True,
        "has_document_id": True,
        "has_text": True,
        "has_text_pair": True,
    }
    return Spec(**{**fields, **changes})


def masked_spec(**changes) -> Spec:
    """Two views of each window, as a masked language model's teacher saw them."""
    settings = MASKED_LM.settled({"views": 2, "whole_word_mask": True})
    return causal_spec(**{"task": MASKED_LM.name, "task_settings": settings} | changes)


def words_spec(**changes) -> Spec:
    """Of words, of which some texts have no labels."""
    names = ("O", "B-A", "I-A", "B-B", "I-B")
    fields = {
        "task": "token-classification",
        "vocab_size": len(names),
        "label_names": names,
        "has_text_pair": False,
    }
    return class_spec(**fields | changes)


def embeddings_spec(**changes) -> Spec:
    """Nothing but features."""
    settings = FEATURE_EXTRACTION.settled({"prompt": "query: ", "normalize": True})
    fields = {
        "task": "feature-extraction",
        "score": "none",
        "vocab_size": 0,
        "label_names": (),
        "scalars": (),
    }
    fields |= {"features": causal_spec().features, "task_settings": settings, "has_text_pair": False}
    return class_spec(**fields | changes)


def answers_spec(**changes) -> Spec:
    """Of questions, of which some windows have no labels."""
    fields = {
        "task": QUESTION_ANSWERING.name,
        "vocab_size": changes.get("max_length", 32),
        "label_names": (),
        "task_settings": QUESTION_ANSWERING.settled({}),
    }
    return class_spec(**fields | changes)


def image_spec(**changes) -> Spec:
    """Of images in two views, of which some have no labels."""
    settings = IMAGE_CLASSIFICATION.settled({"views": 2, "augment": "crop,flip"})
    fields = {
        "task": IMAGE_CLASSIFICATION.name,
        "max_length": 2,
        "task_settings": settings,
        "has_token_type_ids": False,
        "has_text": False,
        "has_text_pair": False,
    }
    return class_spec(**fields | changes)


def image_embeddings_spec(**changes) -> Spec:
    """Of images in two views, nothing but features."""
    settings = IMAGE_FEATURE_EXTRACTION.settled({"views": 2, "augment": "crop,flip", "truncate_dim": 3})
    fields = {
        "task": IMAGE_FEATURE_EXTRACTION.name,
        "max_length": 2,
        "task_settings": settings,
        "has_token_type_ids": False,
        "has_text": False,
    }
    return embeddings_spec(**fields | changes)


def boxes_spec(**changes) -> Spec:
    """Of images with five queries each, some with objects and some of which nothing is known."""
    fields = {
        "task": OBJECT_DETECTION.name,
        "max_length": 2,
        "task_settings": OBJECT_DETECTION.settled({"queries": 5}),
        "has_token_type_ids": False,
        "has_text": False,
        "has_text_pair": False,
        "label_names": ("cat", "dog", "no-object"),
        "has_labels": True,
    }
    return class_spec(**fields | changes)


def source_spec(**changes) -> Spec:
    """Of sources and targets."""
    settings = SEQ2SEQ_LM.settled({})
    return causal_spec(**{"task": SEQ2SEQ_LM.name, "task_settings": settings, "features": ()} | changes)


SPECS = {
    "top_p": causal_spec(),
    "top_k": causal_spec(keep=TopK(k=4), temperatures=(1.0,), scalars=(), features=()),
    "threshold": causal_spec(keep=Threshold(tau=1 / 8), temperatures=(1.0,), scalars=("entropy", "gold")),
    "temperatures": causal_spec(
        keep=Threshold(tau=1 / 16, k=3), temperatures=(1.0, 2.0, 0.5), own_logits=True
    ),
    "sampled": causal_spec(keep=Sampled(n=13), temperatures=(1.0,), scalars=("gold",), features=()),
    "all": causal_spec(keep=KeepAll(), vocab_size=7),
    "texts": causal_spec(has_text=True, has_document_id=True),
    "classes": class_spec(),
    "sigmoid": class_spec(score="sigmoid"),
    "masked": masked_spec(keep=Threshold(tau=1 / 8), temperatures=(1.0,), scalars=("gold",)),
    "words": words_spec(),
    "written": causal_spec(
        keep=Threshold(tau=1 / 8),
        temperatures=(1.0,),
        scalars=("gold",),
        features=(),
        generation=Generation(
            method="sample", max_new_tokens=5, temperature=0.5, top_p=0.875, top_k=9, end_ids=(1, 4)
        ),
    ),
    "pairs": class_spec(task="pair-score", score="identity", vocab_size=1, label_names=(), scalars=()),
    "embeddings": embeddings_spec(),
    "answers": answers_spec(),
    "sources": source_spec(keep=Threshold(tau=1 / 8), temperatures=(1.0,), has_text=True, has_text_pair=True),
    "images": image_spec(),
    "image_embeddings": image_embeddings_spec(),
    "boxes": boxes_spec(),
    "boxes_sigmoid": boxes_spec(score="sigmoid", label_names=("cat", "dog", "car"), scalars=()),
    "regression": class_spec(score="identity", vocab_size=1, label_names=()),
}
