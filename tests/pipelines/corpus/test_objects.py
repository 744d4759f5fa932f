"""Objects of an image: what is read, and what is rejected with its reason."""

import math

import pytest

from pipelines.corpus.labels import LabelMap
from pipelines.corpus.objects import read_objects
from pipelines.rejects import RejectedError
from pipelines.tasks.object_detection import placed

LABELS = LabelMap.of(("cat", "dog"), 2, "softmax")._replace(by_object=True)
ONE = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "value",
    [
        {"bbox": [ONE, [5, 6, 7, 8]], "category": ["dog", "cat"], "area": [12.0, 56.0]},
        {"bbox": [ONE, [5, 6, 7, 8]], "category_id": [1, 0]},
        [{"bbox": ONE, "category": "dog"}, {"bbox": [5, 6, 7, 8], "category_id": 0}],
    ],
)
def test_objects_of_every_form(value):
    assert read_objects(value, LABELS, "objects").label == (1.0, *ONE, 0.0, 5.0, 6.0, 7.0, 8.0)


@pytest.mark.parametrize("value", [{"bbox": [], "category": []}, []])
def test_an_image_without_objects_has_none(value):
    assert read_objects(value, LABELS, "objects") == ((), "no object")


BAD = {
    "no objects": ("a cat", "bad_objects"),
    "no categories": ({"bbox": [ONE]}, "bad_objects"),
    "another number of them": ({"bbox": [ONE], "category": ["cat", "dog"]}, "bad_objects"),
    "too many": ({"bbox": [ONE] * 2049, "category": ["cat"] * 2049}, "bad_objects"),
    "three numbers": ({"bbox": [ONE[:3]], "category": ["cat"]}, "bad_objects"),
    "no number": ({"bbox": [["1", 2, 3, 4]], "category": ["cat"]}, "bad_objects"),
    "truth": ({"bbox": [[True, 2, 3, 4]], "category": ["cat"]}, "bad_objects"),
    "not finite": ({"bbox": [[math.inf, 2, 3, 4]], "category": ["cat"]}, "bad_objects"),
    "no width": ({"bbox": [[1, 2, 0, 4]], "category": ["cat"]}, "empty_box"),
    "negative height": ({"bbox": [[1, 2, 3, -4]], "category": ["cat"]}, "empty_box"),
    "no such class": ({"bbox": [ONE], "category": ["cow"]}, "unknown_label"),
    "no such number": ({"bbox": [ONE], "category": [2]}, "unknown_label"),
    "no class": ({"bbox": [ONE], "category": [None]}, "unknown_label"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_object_is_rejected(name):
    value, reason = BAD[name]
    with pytest.raises(RejectedError) as caught:
        read_objects(value, LABELS, "objects")
    assert (str(caught.value), caught.value.field) == (reason, "objects")
    assert caught.value.expected
    assert caught.value.got


def test_boxes_are_shares_of_their_image():
    found = placed((1.0, 10.0, 20.0, 30.0, 40.0), 100, 200)
    assert found == pytest.approx((1.0, 0.25, 0.2, 0.3, 0.2))
    rounded = placed((0.0, -0.6, 0.0, 100.9, 200.4), 100, 200)
    assert rounded == pytest.approx((0.0, 0.5, 0.5, 1.0, 1.0)), "a pixel beyond is cut"


@pytest.mark.parametrize(
    "box", [(-2, 0, 5, 5), (0, -2, 5, 5), (90, 0, 12, 5), (0, 190, 5, 12), (100.5, 0, 0.2, 5)]
)
def test_a_box_beyond_its_image_is_rejected(box):
    with pytest.raises(RejectedError, match="box_outside_image") as caught:
        placed((0.0, 1.0, 1.0, 2.0, 2.0, 0.0, *map(float, box)), 100, 200)
    assert "of object 2" in caught.value.told()
