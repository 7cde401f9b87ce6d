"""The one image reader: a file, a Pillow image or an array becomes an upright 8-bit RGB picture, or one clear error.

Every mask, overlay and model input goes through `read_image`, so that all of them see the same pixels. What a decoder
cannot vouch for (missing rows, an unknown range, one frame out of several) is refused and never guessed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from probe.errors import FileError, InputError, ProbeError
from probe.image_files import check_size, decoding, max_pixels, opened_image

__all__ = ["image_size", "max_pixels", "read_image", "recorded_image"]

# A multi-picture JPEG is one photograph with previews, depth or gain maps behind it: its first picture is the picture.
ONE_PICTURE = {"JPEG", "MPO"}
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | Image.Image | np.ndarray,
    *,
    frame: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """An upright copy in mode RGB, without metadata; the source is left as it was.

        image = read_image("photo.jpg")
        second = read_image("scan.tiff", frame=1)

    Arrays are (height, width), or (height, width, channel) with 1, 3 or 4 channels: uint8, uint16, or floats in [0, 1].
    16-bit greyscale is scaled from 0..65535 to 0..255, fewer bits by the range that the file declares, 32-bit integers
    from 0..2**31-1 where their values need more than 16 bits, floats from 0..1. Transparent pixels are blended with
    `background` (red, green, blue). The EXIF orientation is applied; colour profiles are not. `frame` counts from 0
    and must be given for animations and multi-page files; of a multi-picture JPEG the primary picture is read.

    Raises
    ------
    FileError
        The file is missing, no ordinary file, no image, broken, incomplete, or larger than `max_pixels`.
    InputError
        Several frames and none chosen, no such frame, an unusable array, image, range or background.
    """
    _check_options(frame, background)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _read(source, frame, background, name="the image", error=InputError, counted=True)
    path = _path(source)
    with opened_image(path) as (image, counted):
        return _read(image, frame, background, name=repr(str(path)), error=FileError, counted=counted)


def recorded_image(source: str | os.PathLike[str] | Image.Image | np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The picture that a record was made of, as `read_image` reads it.

    Raises
    ------
    InputError
        If it is not of (height, width) `size`, or as `read_image` does.
    """
    picture = read_image(source)
    if (picture.height, picture.width) != size:
        raise InputError(
            f"The image is {picture.height} x {picture.width} but the record was made of one of {size[0]} x {size[1]} "
            "(height x width); give the image that was recorded."
        )
    return picture


def image_size(source: str | os.PathLike[str] | Image.Image | np.ndarray) -> tuple[int, int]:
    """The (height, width) that `read_image` gives, in most formats from the header alone, EXIF orientation applied.

    Raises
    ------
    FileError
        As in `read_image`, as far as the header shows it.
    InputError
        An unusable array or type.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _upright_size(source, "the image", InputError)
    path = _path(source)
    with opened_image(path) as (image, _):
        return _upright_size(image, repr(str(path)), FileError)


def _check_options(frame: Any, background: Any) -> None:
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise InputError(f"frame={frame!r} is not a frame: give None or a whole number from 0")
    numbers = background if isinstance(background, (tuple, list)) else ()
    if len(numbers) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in numbers):
        raise InputError(f"background={background!r} is not a colour: give (red, green, blue), each from 0 to 255")


def _path(source: Any) -> Path:
    if not isinstance(source, (str, os.PathLike)) or isinstance(os.fspath(source), bytes):
        found = f"{type(source).__module__}.{type(source).__qualname__}"
        raise InputError(
            f"an image of type {found} cannot be read: give a path, a PIL image or an array (height, width, channel)"
        )
    return Path(source)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8; other numbers mean nothing and count as 1."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF pages itself, and gives their sizes as turned
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in TRANSPOSE else 1


def _upright_size(image: Image.Image, name: str, error: type[ProbeError]) -> tuple[int, int]:
    with decoding(name, error):
        orientation = _orientation(image)
    check_size(image, name, error)
    width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)


def _read(
    image: Image.Image,
    frame: int | None,
    background: tuple[int, int, int],
    *,
    name: str,
    error: type[ProbeError],
    counted: bool,
) -> Image.Image:
    check_size(image, name, error)
    with decoding(name, error):
        several = bool(getattr(image, "is_animated", False)) and image.format not in ONE_PICTURE
        count = image.n_frames if several and counted else None  # type: ignore[attr-defined]
        before = image.tell()
    if frame is None and several:
        raise InputError(
            f"{name} holds {count or 'several'} frames, and one image is read: choose one, for instance frame=0"
        )
    if frame and not several:
        raise InputError(f"{name} holds one picture, and frame={frame} was asked for: give frame=0 or leave it out")
    if frame is not None and count and frame >= count:
        raise InputError(f"{name} holds {count} frames, and frame={frame} was asked for: give 0 to {count - 1}")
    try:
        with decoding(name, error):
            if frame is not None and several:
                image.seek(frame)
            image.load()
            orientation = _orientation(image)
        check_size(image, name, error)  # again: icons hold pictures of other sizes than they declare
        return _upright_rgb(image, orientation, background, name, error)
    finally:
        if several and image.tell() != before:
            with decoding(name, error):
                image.seek(before)  # a caller's own image stays at the frame where it was


def _upright_rgb(
    image: Image.Image, orientation: int, background: tuple[int, int, int], name: str, error: type[ProbeError]
) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # Pillow keeps the upper 8 bits of such pixels, in which neighbouring colours can no longer be told apart.
        raise error(f"{name} makes one 16-bit colour transparent, which is not supported: save it with 8 bits")
    levels = _grey_levels(image, name)
    with decoding(name, error):
        rgb = _flatten(image if levels is None else levels, background)
        if orientation != 1:
            rgb = rgb.transpose(TRANSPOSE[orientation])
        elif rgb is image:
            rgb = image.copy()
    # An orientation left in the metadata would be applied a second time by whoever reads it next.
    rgb.info = {}
    return rgb


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in RGB, blended with the background where it is transparent; an opaque RGB image itself."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image, (0, 0), image)
    return canvas


def _grey_levels(image: Image.Image, name: str) -> Image.Image | None:
    """The 8-bit greyscale of a wider greyscale image (LA where it names a transparent level); None for other modes.

    Pillow's own conversion to RGB clips these modes at 255, which leaves a handful of their levels.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        # TIFF keeps 12-bit samples as they are; the range is then the one that the file declares.
        grey = _scaled(values, 2**bits - 1 if 8 < bits < 16 else 65535)
    elif image.mode == "I":
        values = np.asarray(image)
        grey = _scaled(values, _integer_top(values, image.format, name))
    elif image.mode == "F":
        values = np.asarray(image)
        grey = _unit_levels(values, name)
    else:
        return None
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _integer_top(values: np.ndarray, format: str | None, name: str) -> int:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise InputError(f"{name} holds whole numbers from {low} to {high}: a picture needs a range that starts at 0")
    if 0 < high <= 255 and format != "PPM":
        raise InputError(
            f"{name} holds 32-bit whole numbers up to {high}, so it may be an 8-bit picture or a dark 16-bit one:"
            " save it as 8 or 16 bits"
        )
    # Pillow gives 16-bit PGM files in this 32-bit mode; what needs more than 16 bits has the range of the mode.
    return 65535 if high <= 65535 else 2**31 - 1


def _unit_levels(values: np.ndarray, name: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused
        raise InputError(f"{name} holds floats from {low:.6g} to {high:.6g}: scale them to 0..1, or give uint8")
    return _scaled(values, 1)


def _scaled(values: np.ndarray, top: int) -> np.ndarray:
    """The values 0..top as uint8 0..255, rounded; float32 in place, since these pictures can be large."""
    levels = values.astype(np.float32)
    levels *= 255 / top
    levels += 0.5
    return levels.astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = "(" + ", ".join(map(str, array.shape)) + ")"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        cure = ": move the channels to the end, array.transpose(1, 2, 0)" if channels_first else ""
        raise InputError(
            f"an array of shape {shape} is not an image; (height, width) or (height, width, 1, 3 or 4) is{cure}"
        )
    if 0 in array.shape:
        raise InputError(f"an array of shape {shape} has no pixels")
    if array.dtype == np.uint16:
        array = _scaled(array, 65535)
    elif array.dtype.kind == "f":
        array = _unit_levels(array, "the array")
    elif array.dtype != np.uint8:
        raise InputError(f"an array of {array.dtype} has no known range: give uint8 from 0 to 255, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array))
