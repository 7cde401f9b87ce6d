"""Pictures of every odd kind come back with the right pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe import image_files
from probe.errors import FileError, InputError
from probe.images import image_size, read_image
from tests.image_helpers import HOSTILE, needs_hostile, pixels, saved


def png(width: int, height: int, depth: int, colour: int, rows: bytes, clear: bytes = b"") -> io.BytesIO:
    """A PNG written by hand: colour 0 is grey, 2 is RGB; `rows` with the filter byte in front of each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = chunk(b"tRNS", clear) if clear else b""
    parts = chunk(b"IHDR", header), middle, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


# --- the right pixels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "tga", "webp", "jp2"])
def test_lossless_files_keep_every_pixel(picture: np.ndarray, tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(picture), tmp_path / f"picture.{suffix}", **options)
    assert np.array_equal(pixels(read_image(path)), picture)
    assert np.array_equal(pixels(read_image(str(path))), picture)
    assert image_size(path) == (40, 64)


def test_arrays_and_images_are_copied(picture: np.ndarray) -> None:
    original = Image.fromarray(picture)
    read = read_image(original)
    read.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(original), picture)
    assert np.array_equal(pixels(read_image(picture)), picture)
    assert np.array_equal(pixels(read_image(picture / 255)), picture)
    assert np.array_equal(pixels(read_image((picture / 255).astype(np.float32))), picture)
    assert np.array_equal(pixels(read_image(picture.astype(np.uint16) * 257)), picture)
    grey = read_image(picture[:, :, 0])
    assert np.array_equal(pixels(grey)[:, :, 2], picture[:, :, 0])
    assert np.array_equal(pixels(read_image(picture[:, :, :1])), pixels(grey))
    assert np.array_equal(pixels(read_image(picture[:, ::-1])), picture[:, ::-1])  # not contiguous
    assert image_size(picture) == image_size(original) == (40, 64)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_exif_orientation(picture: np.ndarray, tmp_path: Path, orientation: int, suffix: str) -> None:
    # What a camera stores when it is held so that its picture has to be turned by this much (EXIF 2.32, table 6).
    stored = {
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.swapaxes(0, 1),
        6: picture.swapaxes(0, 1)[::-1],
        7: picture.swapaxes(0, 1)[::-1, ::-1],
        8: picture.swapaxes(0, 1)[:, ::-1],
    }.get(orientation, picture)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / f"turned.{suffix}", exif=exif, **options)
    read = read_image(path)
    assert np.abs(pixels(read) - picture).max() <= (6 if suffix == "jpg" else 0)
    assert image_size(path) == (40, 64)
    assert not read.getexif(), "an orientation left behind is applied twice"
    if suffix != "tiff":  # a TIFF page is turned while Pillow loads it
        assert np.array_equal(pixels(read_image(Image.open(path))), pixels(read))
    assert np.array_equal(pixels(read_image(read)), pixels(read))


@needs_hostile
def test_nine_orientation_variants_are_one_photograph() -> None:
    small = [np.asarray(read_image(HOSTILE / f"Landscape_{variant}.jpg").reduce(4)).astype(int) for variant in range(9)]
    for variant in small[1:]:
        assert variant.shape == (300, 450, 3)
        # Each file was compressed anew, so single pixels at edges differ; a wrong turn differs by about 60 everywhere.
        assert np.abs(variant - small[0]).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm", "jp2"])
def test_sixteen_bits_keep_their_levels(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 32).reshape(32, 256).astype(np.uint16)
    read = read_image(saved(Image.fromarray(ramp), tmp_path / f"ramp.{suffix}"))
    levels = pixels(read)
    assert len(np.unique(levels)) > 200
    assert np.array_equal(levels[:, :, 0], (ramp / 257 + 0.5).astype(int))


def test_big_endian_and_twelve_bit_tiff(tmp_path: Path) -> None:
    ramp = (np.arange(4096) * 16).astype(">u2").reshape(64, 64)
    stored = Image.frombytes("I;16B", (64, 64), ramp.tobytes())
    read = read_image(saved(stored, tmp_path / "big.tiff"))
    assert np.array_equal(pixels(read)[:, :, 0], (ramp / 257 + 0.5).astype(int))

    # Twelve bits: 2 samples in 3 bytes, by hand, since Pillow reads but does not write them.
    strip = bytes(
        byte for low in range(0, 4096, 2) for byte in (low >> 4, (low & 15) << 4 | (low + 1) >> 8, low + 1 & 255)
    )
    tags = [(256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 64), (279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    file = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "twelve.tif").write_bytes(file)
    read = read_image(tmp_path / "twelve.tif")
    assert np.array_equal(pixels(read)[:, :, 0].ravel(), (np.arange(4096) * 255 / 4095 + 0.5).astype(int))


def test_wide_integers_and_floats(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    floats = read_image(saved(Image.fromarray(ramp.astype(np.float32)), tmp_path / "float.tiff"))
    assert np.array_equal(pixels(floats)[:, :, 1], (ramp.astype(np.float32) * 255 + 0.5).astype(int))
    wide = np.linspace(0, 2**31 - 1, 64 * 64).reshape(64, 64).astype(np.int32)
    assert len(np.unique(pixels(read_image(Image.fromarray(wide))))) == 256
    assert len(np.unique(pixels(read_image(Image.fromarray(wide >> 15))))) == 256


def test_transparency_is_blended_with_the_background(tmp_path: Path) -> None:
    half = np.array([[[200, 100, 0, 0], [200, 100, 0, 51], [200, 100, 0, 255]]], np.uint8)
    expected = [[10, 20, 30], [48, 36, 24], [200, 100, 0]]  # 0.8 x background + 0.2 x colour in the middle
    for source in (half, Image.fromarray(half), saved(Image.fromarray(half), tmp_path / "a.png")):
        assert pixels(read_image(source, background=(10, 20, 30))).tolist() == [expected]
    assert pixels(read_image(half))[0, 0].tolist() == [255, 255, 255]

    grey = Image.merge("LA", (Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51)))
    assert pixels(read_image(grey, background=(0, 0, 0)))[0, 0].tolist() == [20, 20, 20]
    assert pixels(read_image(grey.convert("La"), background=(0, 0, 0)))[0, 0].tolist() == [20, 20, 20]
    assert pixels(read_image(Image.fromarray(half).convert("RGBa"), background=(10, 20, 30)))[0, 2].tolist() == [
        200,
        100,
        0,
    ]

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert pixels(read_image(saved(palette, tmp_path / "p.png"))).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    path = saved(palette, tmp_path / "p.gif", transparency=1)
    assert pixels(read_image(path, background=(1, 2, 3))).tolist() == [[[255, 0, 0], [1, 2, 3]]]


def test_one_transparent_level() -> None:
    eight = Image.open(png(2, 1, 8, 0, bytes([0, 7, 8]), struct.pack(">H", 7)))
    assert pixels(read_image(eight))[0, :, 0].tolist() == [255, 8]
    sixteen = Image.open(png(2, 1, 16, 0, struct.pack(">B2H", 0, 257, 514), struct.pack(">H", 257)))
    assert pixels(read_image(sixteen))[0, :, 0].tolist() == [255, 2]
    colour = Image.open(png(1, 1, 16, 2, struct.pack(">B3H", 0, 300, 300, 300), struct.pack(">3H", 300, 300, 300)))
    with pytest.raises(InputError, match="one 16-bit colour transparent"):
        read_image(colour)


def test_other_colour_spaces(picture: np.ndarray, tmp_path: Path) -> None:
    cmyk = Image.fromarray(picture).convert("CMYK")
    path = saved(cmyk, tmp_path / "cmyk.jpg", quality=100, subsampling=0)  # with the Adobe marker: stored inverted
    assert np.abs(pixels(read_image(path)) - picture).max() <= 6
    assert np.array_equal(pixels(read_image(cmyk)), np.asarray(cmyk.convert("RGB")))
    lab = Image.merge("LAB", [Image.new("L", (2, 2), level) for level in (137, 128, 128)])  # L = 53.6, a = b = 0
    assert np.abs(pixels(read_image(lab)) - 127).max() <= 2
    if HOSTILE.is_dir():
        lab = read_image(HOSTILE / "images__hopper.Lab.tif")
        assert np.abs(pixels(lab) - pixels(read_image(HOSTILE / "images__hopper.iccprofile.tif"))).mean() < 4
    two_levels = Image.fromarray(np.eye(3, dtype=np.uint8) * 255).convert("1")
    assert np.array_equal(pixels(read_image(two_levels))[:, :, 0], np.eye(3) * 255)
    for mode in ("YCbCr", "HSV", "RGBX"):
        assert np.abs(pixels(read_image(Image.fromarray(picture).convert(mode))) - picture).max() <= 12


# --- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
def test_frames_are_chosen_or_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(frames[0], tmp_path / f"three.{suffix}", save_all=True, append_images=frames[1:], **options)
    with pytest.raises(InputError, match=rf"three\.{suffix}' holds 3 frames.*frame=0"):
        read_image(path)
    for index, frame in enumerate(frames):
        assert np.array_equal(pixels(read_image(path, frame=index)), np.asarray(frame))
    with pytest.raises(InputError, match=r"holds 3 frames, and frame=3 was asked for: give 0 to 2"):
        read_image(path, frame=3)
    with Image.open(path) as opened:
        opened.seek(1)
        assert np.array_equal(pixels(read_image(opened, frame=2)), np.asarray(frames[2]))
        assert opened.tell() == 1, "the caller's image was moved"
    assert image_size(path) == (6, 8)


def test_large_files_are_not_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "COUNTED_BYTES", 10)
    frames = [Image.new("L", (4, 4), level) for level in (0, 255)]
    path = saved(frames[0], tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="holds several frames"):
        read_image(path)
    assert pixels(read_image(path, frame=1)).min() == 255
    with pytest.raises(FileError, match="no more images in GIF file"):
        read_image(path, frame=2)


def test_a_multi_picture_jpeg_is_its_primary_picture(picture: np.ndarray, tmp_path: Path) -> None:
    preview = Image.new("RGB", (8, 8))
    image = Image.fromarray(picture)
    path = saved(image, tmp_path / "pair.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    assert Image.open(path).n_frames == 2  # type: ignore[attr-defined]
    assert read_image(path).size == (64, 40)
    assert read_image(path, frame=0).size == (64, 40)
    with pytest.raises(InputError, match="holds one picture, and frame=1"):
        read_image(path, frame=1)


@pytest.mark.parametrize("frame", [-1, True, 0.0, "0"])
def test_a_frame_is_a_whole_number(picture: np.ndarray, frame: object) -> None:
    with pytest.raises(InputError, match="is not a frame"):
        read_image(picture, frame=frame)  # type: ignore[arg-type]
