"""What is no readable picture is refused with one typed line, whatever the decoder makes of it."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from probe import image_files
from probe.errors import FileError, InputError, ProbeError
from probe.images import image_size, max_pixels, read_image
from tests.image_helpers import HOSTILE, needs_hostile, saved


def png(width: int, height: int, depth: int, colour: int, rows: bytes, clear: bytes = b"") -> io.BytesIO:
    """A PNG written by hand: colour 0 is grey, 2 is RGB; `rows` with the filter byte in front of each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = chunk(b"tRNS", clear) if clear else b""
    parts = chunk(b"IHDR", header), middle, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def refusal(source: object, kind: type[ProbeError] = FileError) -> str:
    with pytest.raises(kind) as caught:
        read_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.isprintable(), "one line, and nothing that a terminal would act on"
    return message


def test_paths_that_are_no_image_files(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("This is no picture.\nReally.")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    assert "Did you mean 'photo.jpg'" in refusal(tmp_path / "phto.jpg")
    assert "Its folder" in refusal(tmp_path / "nowhere" / "photo.jpg")
    assert "is a folder" in refusal(tmp_path)
    assert "empty file (0 bytes)" in refusal(tmp_path / "empty.png")
    assert "is a pipe, socket or device" in refusal(tmp_path / "pipe.png")
    assert "is a pipe, socket or device" in refusal("/dev/zero")
    assert "it is a text file that starts with 'This is no picture." in refusal(tmp_path / "photo.jpg")
    assert "Addresses are not fetched" in refusal("https://example.org/photo.jpg")
    assert "cannot be opened: embedded null" in refusal("a\0b.png")
    assert "cannot be opened: File name too long" in refusal("x" * 5000)
    assert "does not exist" in refusal("a\x1b[31m\nb.png")
    for start, what in ((b"%PDF-1.7", "PDF"), (b"PK\x03\x04", "zip"), (b"%!PS-Adobe", "not run"), (b"8BPS", "layered")):
        (tmp_path / "other.jpg").write_bytes(start + bytes(200))
        assert what in refusal(tmp_path / "other.jpg")
    (tmp_path / "other.jpg").write_bytes(b"\x00\x13\x37" + bytes(9))
    assert "its first bytes are 00 13 37" in refusal(tmp_path / "other.jpg")
    with pytest.raises(FileError, match="is a folder"):
        image_size(tmp_path)


def test_arrays_that_are_no_images() -> None:
    assert "transpose(1, 2, 0)" in refusal(np.zeros((3, 8, 9), np.uint8), InputError)
    assert "shape (4)" in refusal(np.zeros(4, np.uint8), InputError)
    assert "shape (0, 4, 3) has no pixels" in refusal(np.zeros((0, 4, 3), np.uint8), InputError)
    assert "int64 has no known range" in refusal(np.zeros((4, 4), np.int64), InputError)
    assert "bool has no known range" in refusal(np.zeros((4, 4), bool), InputError)
    assert "floats from 0 to 255: scale" in refusal(np.array([[0.0, 255.0]]), InputError)
    assert "floats from nan to nan" in refusal(np.array([[0.0, np.nan]]), InputError)
    assert "floats from -1 to 1" in refusal(np.array([[-1.0, 1.0]]), InputError)
    assert "of type builtins.NoneType" in refusal(None, InputError)
    assert "of type builtins.bytes" in refusal(b"photo.jpg", InputError)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    assert "has no pixels: its size is 4 x 0" in refusal(Image.new("RGB", (0, 4)), InputError)
    assert "may be an 8-bit picture" in refusal(Image.fromarray(np.array([[0, 200]], np.int32)), InputError)
    assert "from -5 to 200" in refusal(Image.fromarray(np.array([[-5, 200]], np.int32)), InputError)
    closed = Image.open(saved(Image.new("RGB", (4, 4)), tmp_path / "a.png"))
    closed.close()
    refusal(closed, InputError)


@pytest.mark.parametrize("background", ["white", (0, 0), (0, 0, 256), (0.5, 0.5, 0.5), None])
def test_a_background_is_three_levels(picture: np.ndarray, background: object) -> None:
    with pytest.raises(InputError, match="is not a colour"):
        read_image(picture, background=background)  # type: ignore[arg-type]


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("L", (100, 90)), tmp_path / "a.png")
    assert max_pixels("JPEG") > 45_000_000, "full-frame cameras"
    monkeypatch.setattr(image_files, "MEMORY", 13 * 8999)
    assert "has 90 x 100 = 9,000 pixels, more than the 8,999 that are read from PNG" in refusal(path)
    monkeypatch.undo()
    # Above its own limit Pillow only warns; with a header of 13,000 x 13,000 and one row of data.
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(13_000, 13_000, 8, 0, bytes(13_001)).getvalue())
    with warnings.catch_warnings(record=True) as seen:
        assert "more pixels than can be read" in refusal(bomb)
    assert not seen
    with pytest.raises(FileError, match="more pixels than can be read"):
        image_size(bomb)


def test_truncated_files_are_refused_whatever_pillow_is_told(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for suffix in ("jpg", "png", "gif", "bmp", "tiff"):
        whole = saved(noise, tmp_path / f"whole.{suffix}").read_bytes()
        half = tmp_path / f"half.{suffix}"
        half.write_bytes(whole[: len(whole) // 2])
        assert "broken or incomplete" in refusal(half)
        refusal(Image.open(tmp_path / f"half.{suffix}"), InputError) if suffix != "tiff" else None
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True, "somebody else's setting was changed"


def test_threads_share_the_strictness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    whole = saved(Image.fromarray(noise), tmp_path / "whole.jpg")
    half = tmp_path / "half.jpg"
    half.write_bytes(whole.read_bytes()[:9000])
    outcomes: list[str] = []

    def work(path: Path) -> None:
        for _ in range(40):
            try:
                read_image(path)
                outcomes.append(f"{path.name} read")
            except FileError:
                outcomes.append(f"{path.name} refused")

    threads = [threading.Thread(target=work, args=(path,)) for path in (whole, half, whole, half)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(outcomes)) == ["half.jpg refused", "whole.jpg read"]
    assert len(outcomes) == 160
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters


# --- broken on purpose ---------------------------------------------------------------------------------------------


def hostile_records() -> list[dict]:
    if not HOSTILE.is_dir():
        return []
    return json.loads((HOSTILE / "manifest.json").read_text())


@needs_hostile
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_hostile_files_against_what_pillow_says() -> None:
    records = hostile_records()
    assert len(records) > 100
    refused_formats = {"PSD"}
    for record in records:
        path = HOSTILE / record["file"]
        if record["status"] == "error" or record["format"] in refused_formats:
            refusal(path)
        elif (record.get("n_frames") or 1) > 1:
            assert f"holds {record['n_frames']} frames" in refusal(path, InputError), path.name
        else:
            read = read_image(path)
            width, height = record["size"]
            # In the manifest TIFF sizes are those after turning, all others those before.
            turned = (record.get("orientation") or 1) >= 5 and record["format"] != "TIFF"
            assert read.size == ((height, width) if turned else (width, height)), path.name
            assert image_size(path) == (read.height, read.width), path.name
            if record["mode"] in ("1", "L", "RGB", "CMYK") and record.get("orientation") in (None, 0, 1):
                with Image.open(path) as plain:
                    assert np.array_equal(np.asarray(read), np.asarray(plain.convert("RGB"))), path.name


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_mutants_are_read_or_refused(picture: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(picture)
    seeds: list[bytes] = []
    for suffix, options in (
        ("png", {}),
        ("jpg", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        ("gif", {"save_all": True, "append_images": [image.rotate(90)]}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("bmp", {}),
        ("webp", {}),
    ):
        seeds.append(saved(image, tmp_path / f"seed.{suffix}", **options).read_bytes())
    dice = random.Random(7)
    path = tmp_path / "mutant"
    outcomes = {"read": 0, "refused": 0}
    for number in range(300):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(dice.randint(1, 6)):
            # Headers decide most, so half of the changes fall there.
            place = dice.randrange(min(64, len(data)) if dice.random() < 0.5 else len(data))
            data[place] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        if dice.random() < 0.3:
            del data[dice.randrange(1, len(data)) :]
        path.write_bytes(bytes(data))
        try:
            read = read_image(path, frame=dice.choice((None, 0)))
            assert read.mode == "RGB"
            assert read.width * read.height > 0
            outcomes["read"] += 1
        except ProbeError as error:
            outcomes["refused" if str(error).isprintable() else "not one line"] += 1
    assert min(outcomes.values()) > 20, outcomes
