"""A plain folder of pictures and masks, with no table at all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from probe.errors import FileError, InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.layouts import check_limit, data_root, folder_contents
from probe.evaluation.pictures import Category, readable_size
from probe.evaluation.sentences import category_sentence, loose_spans
from probe.images import image_size, read_image

__all__ = ["plain_pictures", "read_masks", "read_plain_folder"]

#: What counts as a picture by its name; whether it is one is seen when it is opened.
ENDINGS = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
#: The longest caption that is read, in bytes.
LONGEST = 2**20


def read_plain_folder(folder: str | Path, *, limit: int | None = None) -> Iterator[Example]:
    """One example for each picture that has masks, in the order of their names.

        dogs/beach.jpg                     the picture
        dogs/beach.txt                     its caption, UTF-8; may be missing
        dogs/masks/beach/red ball.png      where the red ball is: one colour on black
        dogs/masks/beach/dog.png

    The name of a mask is the phrase. With a caption that is the example's text, every phrase must stand in it as whole words,
    and its first place counts; without one the text is a sentence of the phrases, "a dog and a red ball". Pictures without
    masks are left out.

    Raises
    ------
    InputError
        No picture has masks; a phrase is not in its caption; a mask is empty, has several colours, or another size.
    FileError
        A picture, mask or caption that cannot be read.
    """
    check_limit(limit)
    root = data_root(folder)
    pictures = plain_pictures(root)
    if not pictures:
        raise InputError(
            f"{str(folder)!r} has no picture with masks: looked for photo.jpg with masks/photo/PHRASE.png;"
            f" {folder_contents(root)}"
        )
    return islice((_example(root, picture) for picture in pictures), limit)


def plain_pictures(root: Path) -> list[Path]:
    """The pictures in a folder that have a folder of masks, by name.

    Raises
    ------
    InputError
        Two pictures share one folder of masks.
    FileError
        The folder cannot be listed.
    """
    try:
        found = sorted(path for path in root.iterdir() if path.suffix.lower() in ENDINGS)
    except OSError as error:
        raise FileError(f"{str(root)!r} cannot be listed: {error.strerror or error}") from error
    pictures = [path for path in found if (root / "masks" / path.stem).is_dir()]
    first: dict[str, Path] = {}
    for path in pictures:
        if path.stem in first:
            raise InputError(
                f"{str(path)!r} and {first[path.stem].name!r} share one folder of masks: rename one of them"
            )
        first[path.stem] = path
    return pictures


def _example(root: Path, picture: Path) -> Example:
    path = _inside(root, picture)
    folder = root / "masks" / picture.stem
    # A picture that cannot be read is for whoever opens it to say; its masks say how large it is.
    first = min(folder.glob("*.png"), default=None)
    size = readable_size(path) or ((1, 1) if first is None else image_size(_inside(root, first)))
    masks = [(Category(name, True), mask) for name, mask in _masks(root, folder, size).items()]
    caption = _caption(root, picture)
    text, phrases = category_sentence(masks)
    if caption is None:
        spans = [(phrase.start, phrase.end) for phrase in phrases]
    else:
        text, spans = caption, [_span(picture, caption, category.name) for category, _ in masks]
    found = zip(spans, masks, strict=True)
    placed = tuple(ExamplePhrase(text[start:end], start, end, mask) for (start, end), (_, mask) in found)
    return Example(picture.stem, path, text, placed)


def read_masks(folder: str | Path, *, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Phrase -> (height, width) bool mask: every PNG in a folder, each named like its phrase, of a picture of that size.

    Raises
    ------
    InputError
        There is none; one is empty, has several colours, another size, or a name that is no phrase.
    FileError
        The folder or a file cannot be read.
    """
    root = data_root(folder)
    return _masks(root, root, size)


def _masks(root: Path, folder: Path, size: tuple[int, int]) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise InputError(f"{str(folder)!r} has no PNG files: each is the mask of a phrase")
    for file in files:
        if not file.stem.strip() or not file.stem.isprintable():
            raise InputError(f"{str(folder)!r}: a mask is named {file.stem!r}, which is no phrase that can be printed")
    return {file.stem: _mask(_inside(root, file), size) for file in files}


def _span(picture: Path, caption: str, name: str) -> tuple[int, int]:
    found = loose_spans(caption, name)
    if not found:
        raise InputError(
            f"{str(picture)!r}: the phrase {name!r} of a mask is not in the caption: rename it, or change that"
        )
    return found[0]


def _inside(root: Path, path: Path) -> Path:
    """The file with its links resolved, certain to lie in the folder."""
    try:
        found = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise FileError(f"{str(path)!r} cannot be looked up ({error})") from error
    if not found.is_relative_to(root):
        raise InputError(f"{str(path)!r} is a link that leads out of {str(root)!r}, which is not followed")
    return found


def _caption(root: Path, picture: Path) -> str | None:
    """What the text file beside a picture says, without the blanks around it; ``None`` if there is none."""
    path = _inside(root, picture.with_suffix(".txt"))
    name = repr(str(path))
    if not path.exists():
        return None
    try:
        # Looked at before it is opened: opening a FIFO waits for a writer.
        if not path.is_file() or path.stat().st_size > LONGEST:
            raise FileError(f"{name} is not an ordinary file of at most {LONGEST:,} bytes: a caption is needed")
        text = path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{name} cannot be read: {error.strerror or error}") from error
    if not text or not " ".join(text.split()).isprintable():
        raise InputError(f"{name} has no text that can be printed: write the caption, or delete the file")
    return text


def _mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A bool array (height, width): the pixels of a mask's file that are not black."""
    # On black, so that what is transparent lies outside.
    levels = np.asarray(read_image(path, background=(0, 0, 0))).astype(np.int32)
    if levels.shape[:2] != size:
        found = " x ".join(map(str, levels.shape[:2]))
        raise InputError(f"{str(path)!r} is {found} (height x width), and its picture is {size[0]} x {size[1]}")
    colours = levels @ np.array([1, 256, 65536])
    found_colours = np.unique(colours[colours > 0])
    if len(found_colours) != 1:
        what = "is black all over" if not len(found_colours) else f"has {len(found_colours)} colours beside black"
        raise InputError(f"{str(path)!r} {what}; a mask is one colour on black, without soft edges")
    return np.asarray(colours > 0)
