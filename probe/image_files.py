"""Image files opened with care: ordinary files only, known formats only, a bounded size, and one line per failure."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile

from probe.errors import FileError, ProbeError, did_you_mean

__all__ = ["FORMATS", "MEMORY", "check_size", "decoding", "max_pixels", "opened_image"]

# Formats whose decoders run inside the process. EPS, for one, would start an interpreter on the file's own program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# The most bytes that reading one picture may take, decoder included, so that a small process stays below 512 MB.
MEMORY = 448 * 2**20
# Measured peak bytes per pixel: Pillow keeps RGB in four bytes, turning and blending hold copies, and some decoders hold
# the whole picture several times. No format: an image in memory.
BYTES_PER_PIXEL = {None: 10, "JPEG": 10, "MPO": 10, "WEBP": 20, "AVIF": 16, "JPEG2000": 24}
BYTES_PER_PIXEL_OTHERS = 13
# Counting frames walks through the whole file (65 microseconds a TIFF page), so in larger files they stay uncounted.
COUNTED_BYTES = 16 * 2**20
SIGNATURES = (
    (b"\x89PNG", "it starts like a PNG file, but its header is broken"),
    (b"\xff\xd8\xff", "it starts like a JPEG file, but its header is broken"),
    (b"GIF8", "it starts like a GIF file, but its header is broken"),
    (b"II*\0", "it starts like a TIFF file, but its header is broken"),
    (b"MM\0*", "it starts like a TIFF file, but its header is broken"),
    (b"BM", "it starts like a BMP file, but its header is broken"),
    (b"RIFF", "it starts like a WebP file, but its header is broken or it is another kind of RIFF file"),
    (b"%PDF", "it is a PDF document (save the page as PNG)"),
    (b"%!PS", "it is a PostScript program, which is not run"),
    (b"8BPS", "it is a layered PSD document (save the merged picture as PNG)"),
    (b"PK\x03\x04", "it is a zip archive"),
    (b"\x1f\x8b", "it is gzip-compressed"),
    (b"<", "it is a text file, perhaps SVG or a web page"),
)


def max_pixels(format: str | None = None) -> int:
    """The largest height x width that is read, such as 36,135,542 for "PNG"; None: in memory."""
    return MEMORY // BYTES_PER_PIXEL.get(format, BYTES_PER_PIXEL_OTHERS)


@contextmanager
def opened_image(path: Path) -> Iterator[tuple[Image.Image, bool]]:
    """The file as a Pillow image whose size is allowed, and whether it is small enough to count its frames."""
    name = repr(str(path))
    with _file(path) as file:
        Image.init()
        with decoding(name, FileError, file):
            # An older Pillow, or one built without a codec, knows fewer formats and fails on unknown names.
            image = Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
        with image:
            check_size(image, name, FileError)
            yield image, os.fstat(file.fileno()).st_size <= COUNTED_BYTES


@contextmanager
def _file(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading, certain to be an ordinary file with something in it."""
    name = repr(str(path))
    try:
        # Looked at before it is opened: opening a FIFO waits for a writer, and opening a device may do anything.
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise FileError(f"{name} is a folder, not an image file: give the path of one image")
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"{name} is a pipe, socket or device, not an image file: save the image to a file first")
        if found.st_size == 0:
            raise FileError(f"{name} is an empty file (0 bytes): fetch or save the image again")
        # Non-blocking, in case a FIFO takes the file's place between the look and the opening.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except FileNotFoundError as error:
        raise FileError(f"{name} does not exist.{_neighbours(path)}") from error
    except ProbeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{name} cannot be opened: {_line(reason)}") from error
    with file:
        yield file


def _neighbours(path: Path) -> str:
    if str(path).startswith(("http:", "https:")):
        return " Addresses are not fetched: download the image and give its path"
    try:
        with os.scandir(path.parent) as entries:
            return did_you_mean(path.name, [entry.name for entry in islice(entries, 1000)])
    except OSError:  # the folder itself is missing or closed to us, which is then what has to be said
        return f" Its folder {str(path.parent)!r} cannot be listed either"


_pillow_lock = threading.Lock()
_pillow_settings = ExitStack()
_pillow_readers = 0


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow without invented rows and with size warnings as errors, while at least one thread is inside.

    `ImageFile.LOAD_TRUNCATED_IMAGES` is one global switch, which many training scripts set; with it a missing half of a
    photograph comes back grey. It is off only while pictures are decoded, and is put back by the last reader to leave.
    """
    global _pillow_readers
    with _pillow_lock:
        if _pillow_readers == 0:
            _pillow_settings.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _pillow_settings.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _pillow_readers += 1
    try:
        yield
    finally:
        with _pillow_lock:
            _pillow_readers -= 1
            if _pillow_readers == 0:
                _pillow_settings.close()


@contextmanager
def decoding(name: str, error: type[ProbeError], file: BinaryIO | None = None) -> Iterator[None]:
    """Runs Pillow strictly and turns whatever it raises into one line; `file` is there while the kind is unknown."""
    try:
        with _strict_pillow():
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as failure:
        raise error(f"{name} declares more pixels than can be read ({_line(failure)}): make it smaller") from failure
    except Image.UnidentifiedImageError as failure:
        raise error(
            f"{name} is not a readable image: {_kind(file)}. The formats read are {', '.join(FORMATS)}"
        ) from failure
    except MemoryError as failure:
        raise error(f"{name} needs more memory than there is: make it smaller") from failure
    except Exception as failure:
        # Decoders raise whatever their parsers ran into (OSError, SyntaxError, struct.error, OverflowError and more),
        # and each of them means the same: these pixels cannot be had.
        reason = _line(failure) or type(failure).__name__
        raise error(
            f"{name} is broken or incomplete and cannot be read ({reason}): fetch or save it again"
        ) from failure


def _kind(file: BinaryIO | None) -> str:
    if file is None:
        return "its kind is unknown"
    file.seek(0)
    head = file.read(512)
    for signature, what in SIGNATURES:
        if head.startswith(signature):
            return what
    # A cut-off multi-byte letter at the end is still text.
    text = head.decode("utf-8", errors="ignore")
    if text and all(letter.isprintable() or letter.isspace() for letter in text) and len(text.encode()) > len(head) - 4:
        return f"it is a text file that starts with {text[:20]!r}"
    return f"its first bytes are {head[:8].hex(' ')}"


def _line(reason: object) -> str:
    """The reason on one printable line; decoders quote bytes of the file in their messages."""
    text = " ".join(str(reason).split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_size(image: Image.Image, name: str, error: type[ProbeError]) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise error(f"{name} has no pixels: its size is {height} x {width} (height x width)")
    limit = max_pixels("CMYK JPEG" if image.mode == "CMYK" else image.format)  # four channels are copied once more
    if width * height > limit:
        what = f"the {limit:,} that are read" + (f" from {image.format}" if image.format else "")
        raise error(f"{name} has {height} x {width} = {width * height:,} pixels, more than {what}: make it smaller")
