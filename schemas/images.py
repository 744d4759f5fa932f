"""Images: from the bytes that a corpus has to the pixels that a model is given, in one place for teacher and student.

Both halves call this with an image processor that they opened themselves, so that a student is given the
pixels that its teacher was given, bit for bit, under equal versions of these libraries. What an image is made of:

* what its header says is looked at before anything is decoded: one frame (of an MPO file the first, which is a plain
  JPEG), no more pixels than the cache allows, and no side 64 times the other, which a resized one would be, too;
* it is turned as its EXIF orientation says; palettes, CMYK and grey become RGB, and an alpha channel is dropped. 16
  bits a channel become 8 by their upper half; other depths, and floats, are refused;
* a *view* cuts, turns and colours the decoded image before the processor sees it. What it does is a function of the
  example's id, which holds seed and number: nothing of it is stored, and all of it can be told again. View 0 is the
  image itself.

Cost: decoding and processing an image again in each epoch. Nothing that these do is kept.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from schemas.errors import UsageError
from schemas.identity import canonical_json, digest

UNREADABLE, TRUNCATED = "unreadable_image", "truncated_image"
TOO_MANY_PIXELS, TOO_NARROW = "too_many_pixels", "too_narrow_image"
SEVERAL_FRAMES, BAD_MODE = "several_frames", "unsupported_pixels"

MAX_PIXELS, MOST_PIXELS = 89_478_485, 178_956_970
"""Pixels of an image where nothing else is said, and at most: where Pillow warns, and where it refuses."""
PACKAGES = ("PIL", "torchvision")
TIMM = "timm_wrapper"
"""What transformers calls a model of timm's."""
MAX_SIDES = 64
"""How many times as long as the other a side may be: a processor that resizes the shorter makes the longer longer."""
AUGMENTATIONS = ("crop", "flip", "colour")
LEAST_AREA, LEAST_RATIO = 0.25, 3 / 4
"""Of a cut: its share of the image, and how much narrower than the image it may be."""
LEAST_FACTOR, MOST_FACTOR = 0.6, 1.4
"""Of brightness, contrast and saturation."""
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""Formats that are decoded by a library; what Pillow would run a program for (EPS) is none."""
_FIRST_FRAME = "MPO"
"""What Pillow calls a JPEG file with others behind it."""
_WIDE, _DEEP = ("I;16", "I;16L", "I;16B", "I;16N"), "I"
_PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_PATCH = 16
"""Pixels of a side that count as one token, as of most vision transformers: the measure of batches."""
_GREY = np.array([299, 587, 114], np.int32)
Pixels = UInt8[np.ndarray, "_ _ 3"]


def image_tokens(height: int, width: int) -> int:
    """What an image of so many pixels counts as in a batch."""
    return max(1, -(-height * width // _PATCH**2))


class BadImageError(Exception):
    """No image that a model can be given: the reason, what was expected, and what was found."""

    def __init__(self, reason: str, *, expected: str, got: str) -> None:
        super().__init__(reason)
        self.expected, self.got = expected, got


def parse_augment(text: str) -> tuple[str, ...]:
    """The augmentations that a text names, in their own order.

    Raises:
        ValueError: one is unknown, or named twice.
    """
    given = [name.strip() for name in text.split(",")] if text.strip() else []
    if unknown := [name for name in given if name not in AUGMENTATIONS]:
        raise ValueError(f"augment has {', '.join(AUGMENTATIONS)}, but got {unknown[0]!r}")
    if len(set(given)) < len(given):
        raise ValueError(f"augment names each once, but got {text!r}")
    return tuple(name for name in AUGMENTATIONS if name in given)


class View(NamedTuple):
    """What is done to an image. Numbers in [0, 1) that an image's size makes pixels of; None: not done."""

    crop: tuple[float, float, float, float] | None = None
    """Of area, ratio, left edge and upper edge."""
    flip: bool = False
    """Left and right change places."""
    colour: tuple[float, float, float] | None = None
    """Factors of brightness, contrast and saturation."""

    @classmethod
    def of(cls, example_id: bytes, view_index: int, names: Collection[str]) -> View:
        """The view of this number; a function of its example's id, in which the run's seed stands."""
        if view_index == 0:
            return cls()
        state = hashlib.blake2b(example_id, digest_size=64, person=b"view").digest()
        draws = (np.frombuffer(state, "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
        area, ratio, left, top, side, *factors = draws.tolist()
        colour = tuple(LEAST_FACTOR + (MOST_FACTOR - LEAST_FACTOR) * draw for draw in factors)
        return cls(
            crop=(area, ratio, left, top) if "crop" in names else None,
            flip="flip" in names and side < 0.5,
            colour=colour if "colour" in names else None,
        )

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Upper and left edge, height and width of the cut (arXiv:1409.4842, with another share of the area)."""
        if self.crop is None:
            return 0, 0, height, width
        area, ratio, left, top = self.crop
        share = LEAST_AREA + (1 - LEAST_AREA) * area
        narrow = math.exp(math.log(LEAST_RATIO) * (1 - 2 * ratio))
        rows = min(height, max(1, round(height * math.sqrt(share / narrow))))
        columns = min(width, max(1, round(width * math.sqrt(share * narrow))))
        return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns

    def apply(self, pixels: Pixels) -> Pixels:
        """The pixels of this view of an image."""
        top, left, rows, columns = self.box(*pixels.shape[:2])
        found = pixels[top : top + rows, left : left + columns]
        if self.flip:
            found = found[:, ::-1]
        return np.ascontiguousarray(found if self.colour is None else coloured(found, *self.colour))


def coloured(pixels: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    """Pixels times a factor, then away from their mean grey, then each away from its own grey.

    Sums are of whole numbers, and all else is one operation a pixel, so that no machine rounds otherwise.
    """
    found = pixels.astype(np.float32) * np.float32(brightness)
    mean = np.float32(
        int((pixels.astype(np.int32) @ _GREY).sum(dtype=np.int64)) / (1000 * max(1, pixels[..., 0].size))
    )
    mean *= np.float32(brightness)
    found = found * np.float32(contrast) + mean * (np.float32(1) - np.float32(contrast))
    red, green, blue = (found[..., channel] for channel in range(3))
    grey = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
    found = found * np.float32(saturation) + grey[..., None] * (np.float32(1) - np.float32(saturation))
    whole: Pixels = np.rint(np.clip(found, 0, 255)).astype(np.uint8)
    return whole


def refuse_no_packages() -> None:
    """Images are decoded by Pillow, and processed by torchvision: by another library their pixels would be others.

    Raises:
        UsageError: one is not installed.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(
            "images need packages that are not installed",
            got=f"no {' and no '.join(missing)}",
            do="pip install 'teachonce[images]'",
        )


def refuse_no_timm(config: Mapping[str, Any], where: str) -> None:
    """A model of timm's runs in that package's code.

    Raises:
        UsageError: it is not installed.
    """
    if config.get("model_type") == TIMM and importlib.util.find_spec("timm") is None:
        raise UsageError(
            "a model of timm's needs a package that is not installed",
            where=where,
            got="no timm",
            do="pip install 'teachonce[images]'",
        )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A Pillow and an image processor, bound to a cache's settings. Two are equal that give the same pixels."""

    key: str
    """Tells processors and settings apart."""
    max_pixels: int
    names: tuple[str, ...]
    processor: Any = field(compare=False)
    """A `BaseImageProcessor` of transformers."""
    pil: Any = field(compare=False)
    """The module `PIL.Image`."""
    ops: Any = field(compare=False)
    """The module `PIL.ImageOps`."""
    shape: tuple[int, int, int] = (0, 0, 0)
    """Channels, height and width of what the processor gives."""

    @classmethod
    def of(cls, processor: Any, task_settings: Mapping[str, Any]) -> Pictures:
        """By a processor of transformers and what a cache's spec says of its task; not tried yet.

        Raises:
            UsageError: a package is missing.
        """
        refuse_no_packages()
        return cls(
            key=digest(canonical_json([processor.to_json_string(), dict(task_settings)]), "pictures").hex(),
            max_pixels=int(task_settings["max_image_pixels"]),
            names=parse_augment(str(task_settings["augment"])),
            processor=processor,
            pil=importlib.import_module("PIL.Image"),
            ops=importlib.import_module("PIL.ImageOps"),
        )

    @property
    def tokens(self) -> int:
        """What an image counts as in a batch: squares of 16 pixels."""
        return image_tokens(*self.shape[1:])

    def probed(self) -> Pictures:
        """The same, knowing the shape that every image has.

        Raises:
            ValueError: the processor does not give each image one array of one shape.
        """
        sizes = ((48, 64), (64, 48), (50, 50), (300, 200))
        shapes = {self._processed(self.pil.new("RGB", size, (9, 99, 199))).shape for size in sizes}
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            raise ValueError(f"arrays of shape {' and '.join(map(str, sorted(shapes)))}")
        return Pictures(**{**vars(self), "shape": tuple(next(iter(shapes)))})

    def pixels(self, data: bytes, example_id: bytes, view_index: int) -> Float32[np.ndarray, "_ _ _"]:
        """What a model is given of one view of an image.

        Raises:
            BadImageError: it is none that can be used.
        """
        image = self.decoded(data)
        view = View.of(example_id, view_index, self.names)
        if view != View():
            image = self.pil.fromarray(view.apply(np.asarray(image)))
        return self._processed(image)

    def _processed(self, image: Any) -> Float32[np.ndarray, "_ _ _"]:
        found = self.processor(images=image, return_tensors="pt")[self.processor.model_input_names[0]]
        pixels: np.ndarray[Any, np.dtype[np.float32]] = np.asarray(found)[0].astype(np.float32)
        return pixels

    def decoded(self, data: bytes) -> Any:
        """An RGB image of Pillow's, as the head of this file says.

        Raises:
            BadImageError: it is none.
        """
        image = self._opened(data)
        try:
            image.load()
            return self._rgb(self.ops.exif_transpose(image))
        except BadImageError:
            raise
        except Exception as error:  # whatever Pillow trips over is the file's: no corpus ends a run
            cut = "truncated" in str(error) or isinstance(error, EOFError)
            raise BadImageError(
                TRUNCATED if cut else UNREADABLE,
                expected=f"a whole {image.format} file",
                got=f"{len(data):,} bytes that end too early" if cut else "bytes that cannot be decoded",
            ) from error

    def _opened(self, data: bytes) -> Any:
        """An image of which the header alone was read, and found to be harmless."""
        bombs = self.pil.DecompressionBombError, self.pil.DecompressionBombWarning
        try:
            image = self.pil.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            frames = 1 if image.format == _FIRST_FRAME else getattr(image, "n_frames", 1)
        except bombs as error:
            raise _too_many(self.max_pixels, "more than Pillow opens") from error
        except Exception as error:
            raise BadImageError(UNREADABLE, expected=", ".join(_FORMATS), got="no image of these") from error
        if width * height > self.max_pixels:
            raise _too_many(self.max_pixels, f"{width:,} x {height:,}")
        if max(width, height) > MAX_SIDES * min(width, height):
            got = f"{width:,} x {height:,} pixels"
            raise BadImageError(TOO_NARROW, expected=f"no side {MAX_SIDES} times the other", got=got)
        if frames != 1:
            raise BadImageError(SEVERAL_FRAMES, expected="an image of one frame", got=f"{frames} frames")
        return image

    def _rgb(self, image: Any) -> Any:
        if image.mode in _PLAIN:
            return image.convert("RGB")
        if image.mode in _WIDE or image.mode == _DEEP:
            grey = np.asarray(image).astype(np.int64)
            if grey.min() >= 0 and grey.max() < 2**16:
                return self.pil.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
        raise BadImageError(BAD_MODE, expected="8 or 16 bits a channel", got=f"pixels of mode {image.mode}")


def _too_many(most: int, got: str) -> BadImageError:
    return BadImageError(TOO_MANY_PIXELS, expected=f"at most {most:,} pixels", got=got)
