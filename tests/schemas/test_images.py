"""Images become pixels in one way: what is refused by a header, which modes become what, and what a view does."""

import io
import struct
import zlib

import numpy as np
import pytest
import transformers
from PIL import Image, ImageOps

from schemas import images
from schemas.images import BadImageError, Pictures, View, coloured, image_tokens, parse_augment
from tests.images import SIDE, encoded, picture

ID = bytes(range(16))
EVERY = ("crop", "flip", "colour")


def pictures(names=(), max_pixels=images.MAX_PIXELS, processor=None):
    processor = processor or transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    made = Pictures(key="k", max_pixels=max_pixels, names=names, processor=processor, pil=Image, ops=ImageOps)
    return made.probed()


@pytest.fixture(scope="module")
def plain():
    return pictures()


def rgb(plain, image, kind="PNG", **options):
    return np.asarray(plain.decoded(encoded(image, kind, **options)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_of_png_are_what_pillow_makes_of_them(plain, mode):
    image = picture(3).convert(mode)
    assert np.array_equal(rgb(plain, image), np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb(plain):
    data = encoded(picture(4).convert("CMYK"), "JPEG")
    assert np.array_equal(
        np.asarray(plain.decoded(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_an_alpha_channel_is_dropped_and_not_laid_on_anything(plain):
    image = picture(5).convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(rgb(plain, image), np.asarray(picture(5)))


def test_sixteen_bits_become_eight_by_their_upper_half(plain):
    grey = np.arange(0, 65536, 65536 // 600, dtype=np.uint16)[:600].reshape(20, 30)
    found = rgb(plain, Image.fromarray(grey))
    assert np.array_equal(found, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, 2))
    assert found.max() > 250, "Pillow's own conversion would have cut all above 255"


def test_depths_that_no_photograph_has_are_refused(plain):
    for image in (
        Image.fromarray(np.ones((9, 9), np.float32)),
        Image.fromarray(np.full((9, 9), 70000, np.int32)),
    ):
        with pytest.raises(BadImageError) as told:
            plain.decoded(encoded(image, "TIFF"))
        assert str(told.value) == images.BAD_MODE


def test_an_image_is_turned_as_its_exif_says(plain):
    image, exif = picture(6, (30, 20)), Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "PNG", exif=exif)
    found = np.asarray(plain.decoded(data))
    assert np.array_equal(found, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_several_frames_are_refused_and_a_jpeg_with_others_behind_it_is_its_first(plain):
    first, second = picture(7), picture(8)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        with pytest.raises(BadImageError) as told:
            plain.decoded(data)
        assert str(told.value) == images.SEVERAL_FRAMES, kind
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(
        np.asarray(plain.decoded(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def huge_png(width, height):
    """A few bytes that claim any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 10_000), (12_000, 12_000), (60_000, 60_000), (11, 10)])
def test_a_size_is_refused_before_anything_is_decoded(size, monkeypatch):
    made = pictures(max_pixels=109 if size == (11, 10) else images.MAX_PIXELS)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImageError) as told:
        made.decoded(huge_png(*size))
    assert str(told.value) == images.TOO_MANY_PIXELS


def test_a_narrow_image_that_resizing_would_make_huge_is_refused(plain):
    with pytest.raises(BadImageError) as told:
        plain.decoded(encoded(picture(1, (650, 10))))
    assert str(told.value) == images.TOO_NARROW
    plain.decoded(encoded(picture(1, (640, 10))))


def test_bytes_that_are_no_image_and_files_that_were_cut(plain):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for data in (b"", b"text", eps, svg, b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(BadImageError) as told:
            plain.decoded(data)
        assert str(told.value) == images.UNREADABLE, data[:9]
    for kind in ("PNG", "JPEG"):
        whole = encoded(picture(9, (60, 60)), kind)
        with pytest.raises(BadImageError) as told:
            plain.decoded(whole[: len(whole) * 2 // 3])
        assert str(told.value) == images.TRUNCATED, kind


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_to_a_file_is_anything_but_a_reject(plain):
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        whole = np.frombuffer(encoded(picture(2, (40, 40)), kind), np.uint8)
        for _ in range(60):
            hurt = whole.copy()
            hurt[rng.integers(0, min(len(hurt), 200), 3)] = rng.integers(0, 256, 3)
            try:
                assert plain.decoded(hurt.tobytes()).mode == "RGB"
            except BadImageError as error:
                outcomes.add(str(error))
    assert images.UNREADABLE in outcomes


def test_a_processor_of_several_shapes_is_refused():
    class Uneven:
        model_input_names = ("pixel_values",)

        def __call__(self, images, return_tensors):
            return {"pixel_values": np.zeros((1, 3, images.height, images.width), np.float32)}

    with pytest.raises(ValueError, match="shape"):
        pictures(processor=Uneven())


def test_the_first_view_is_what_the_processor_gives_of_the_image_itself():
    made = pictures(EVERY)
    image = picture(11, (33, 21))
    right = made.processor(images=image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(made.pixels(encoded(image), ID, 0), right)
    assert made.pixels(encoded(image), ID, 0).dtype == np.float32


def test_a_view_is_a_function_of_its_example_and_number_alone():
    first, again = View.of(ID, 1, EVERY), View.of(ID, 1, EVERY)
    assert first == again != View.of(bytes(16), 1, EVERY)
    assert View.of(ID, 0, EVERY) == View()
    assert View.of(ID, 5, ()) == View()
    # frozen: caches hold what these draws were
    assert first.crop == (0.8740991601908578, 0.019318130669050748, 0.2904739401625037, 0.9735414257340521)
    assert (first.flip, first.colour) == (True, (0.72279797150519, 0.7178312130459079, 1.1146892204848067))
    parts = {names: View.of(ID, 3, names) for names in (("crop",), ("flip",), ("colour",))}
    assert [view.crop is not None for view in parts.values()] == [True, False, False]
    assert [view.colour is not None for view in parts.values()] == [False, False, True]
    assert parts[("crop",)].crop == View.of(ID, 3, EVERY).crop, "one augmentation takes no draw of another"


def test_cuts_lie_in_their_image_and_are_as_large_and_as_narrow_as_told():
    views = [View.of(index.to_bytes(16, "big"), 1, EVERY) for index in range(3000)]
    shares, ratios = [], []
    for view in views:
        top, left, rows, columns = view.box(400, 600)
        assert 0 <= top <= 400 - rows
        assert 0 <= left <= 600 - columns
        shares.append(rows * columns / (400 * 600))
        ratios.append(columns / 600 / (rows / 400))
        one = view.box(1, 1)
        assert one == (0, 0, 1, 1)
    assert min(shares) >= 0.24
    assert max(shares) <= 1
    assert np.mean(shares) == pytest.approx((0.25 + 1) / 2, abs=0.03)
    assert min(ratios) >= 0.74
    assert max(ratios) <= 1.36
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.03)
    factors = np.array([view.colour for view in views])
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert factors.mean(0) == pytest.approx([1, 1, 1], abs=0.02)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.06


def test_a_view_cuts_and_turns_the_image():
    pixels = np.asarray(picture(12, (50, 40)))
    view = View(crop=(0.3, 0.6, 0.2, 0.9), flip=True)
    top, left, rows, columns = view.box(40, 50)
    assert np.array_equal(view.apply(pixels), pixels[top : top + rows, left : left + columns][:, ::-1])
    assert rows * columns < 40 * 50


def test_colours_are_a_textbook_form_of_them():
    """Brightness, contrast and saturation as torchvision's: blends with black, the mean grey and the own grey."""
    pixels = np.asarray(picture(13, (20, 20)))
    grey = np.array([0.299, 0.587, 0.114])
    for brightness, contrast, saturation in ((0.7, 1.3, 0.8), (1.4, 0.6, 1.4), (1.0, 1.0, 1.0)):
        right = pixels.astype(np.float64) * brightness
        right = contrast * right + (1 - contrast) * (right @ grey).mean()
        right = saturation * right + (1 - saturation) * (right @ grey)[..., None]
        found = coloured(pixels, brightness, contrast, saturation).astype(int)
        assert np.abs(found - np.clip(np.rint(right), 0, 255)).max() <= 1
    assert np.array_equal(coloured(pixels, 1.0, 1.0, 1.0), pixels)


def test_what_augment_may_say():
    assert parse_augment(" colour, crop") == ("crop", "colour")
    assert parse_augment("") == ()
    for text in ("mixup", "crop,crop", "crop,,flip"):
        with pytest.raises(ValueError, match="augment"):
            parse_augment(text)


def test_what_an_image_counts_as():
    assert image_tokens(224, 224) == 196
    assert image_tokens(24, 24) == 3
    assert image_tokens(8, 8) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_tag_that_pillow_trips_over_is_a_reject(plain, kind):
    """Whatever it raises: here AttributeError, of a text that is typed as a number where the image is turned."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHIf", 0x0131, 11, 1, 1.5)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    data = encoded(picture(4), kind, exif=exif)
    with pytest.raises(BadImageError, match="unreadable_image"):
        plain.decoded(data)
