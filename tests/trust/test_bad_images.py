"""Image files that are broken, odd or made to do harm: one typed line or the right pixels, in bounded time and memory."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe.errors import ProbeError
from probe.images import read_image
from tests.image_helpers import HOSTILE, needs_hostile
from tests.trust.isolated import MEMORY, outcomes

TARGET = "0 crashes, 0 hangs over 5 s, 512 MB, one typed line or the right pixels"
#: Modes that Pillow's own conversion to RGB keeps every pixel of.
PLAIN = ("1", "L", "RGB", "CMYK")


def read(source, frame=None):
    """What the reader makes of a file: a digest of its pixels, or how it refuses."""
    try:
        found = read_image(source, frame=frame)
    except ProbeError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"escaped": f"{type(error).__name__}: {error}"}
    return {"size": [found.height, found.width], "pixels": hashlib.sha256(found.tobytes()).hexdigest()}


def read_plainly(source, frame=None):
    """The same by Pillow alone: ``None`` where it reads nothing, an empty digest where its own conversion would not do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                if frame:
                    image.seek(frame)
                image.load()
                turned = image.getexif().get(0x0112, 1) in range(2, 9) or image.format == "TIFF"
                clear = image.has_transparency_data or "transparency" in image.info
                usual = image.mode in PLAIN and not turned and not clear
                return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest() if usual else ""
    except Exception:
        return None


def count(line, found, plain):
    """Counts each input as one trial; wrong pixels are silent, everything else tells."""
    for one, other in zip(found, plain, strict=True):
        value = one.value or {}
        refusal = value.get("refused")
        typed = refusal is not None and refusal.isprintable()
        right = "pixels" in value and other.value in ("", value["pixels"])
        ok = one.kind == "done" and one.peak <= MEMORY and (typed or right)
        line.trial(
            ok, silent="pixels" in value and not right, what=f"{one.item}: {one.kind} {value} {one.peak:,} bytes"
        )


@needs_hostile
@pytest.mark.promises("R19")
def test_hostile_files(line):
    hostile = line("R19", target=TARGET, least=100)
    files = sorted(path for path in HOSTILE.iterdir() if path.suffix != ".json")
    # Of several frames the first is asked for, which one picture alone allows too.
    found = list(outcomes(lambda path: read(path, frame=0), [str(path) for path in files]))
    plain = list(outcomes(read_plainly, [str(path) for path in files]))
    count(hostile, found, plain)
    assert sum("pixels" in (one.value or {}) for one in found) > 50
    assert sum("refused" in (one.value or {}) for one in found) > 20
    hostile.settle()


def seeds(folder: Path) -> list[bytes]:
    """Whole files of every format, and the smaller of those that are hostile already."""
    dice = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40) * 3, np.arange(64) * 2)[:, :, None] + dice.integers(0, 60, (1, 1, 3))
    image = Image.fromarray(smooth.astype(np.uint8))
    options = {"gif": {"save_all": True, "append_images": [image.rotate(90)]}, "tiff": {"compression": "tiff_lzw"}}
    made = []
    for suffix in ("png", "jpg", "gif", "tiff", "bmp", "webp", "ppm", "tga", "jp2", "ico", "avif"):
        path = folder / f"seed.{suffix}"
        image.save(path, **options.get(suffix, {}))
        made.append(path.read_bytes())
    given = sorted(HOSTILE.iterdir()) if HOSTILE.is_dir() else []
    return made + [path.read_bytes() for path in given if path.suffix != ".json" and path.stat().st_size < 20_000]


def mutant(dice: np.random.Generator, whole: list[bytes]) -> bytes:
    """A file with some of its bytes changed, moved, doubled or cut off; headers decide most and are changed most."""
    data = bytearray(whole[dice.integers(len(whole))])
    for _ in range(dice.integers(1, 7)):
        place = int(dice.integers(min(64, len(data)) if dice.random() < 0.5 else len(data)))
        kind = dice.random()
        if kind < 0.7:
            data[place] = dice.choice([0, 1, 127, 128, 255, dice.integers(256)])
        elif kind < 0.8:
            data[place : place + 4] = int(dice.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4, "big")
        elif kind < 0.9:
            data[place:place] = data[place : place + int(dice.integers(1, 200))]
        else:
            del data[place : place + int(dice.integers(1, 200))]
        data = data or bytearray(b"\0")
    if dice.random() < 0.2:
        del data[int(dice.integers(1, len(data) + 1)) :]
    if dice.random() < 0.1:
        other = whole[dice.integers(len(whole))]
        data += other[int(dice.integers(len(other))) :]
    return bytes(data)


@pytest.mark.promises("R19")
def test_mutants(line, full, tmp_path):
    number = 10_000 if full else 700
    mutants = line("R19", target=TARGET, least=number)
    whole, path = seeds(tmp_path), tmp_path / "mutant"

    def tried(reader):
        def action(seed):
            path.write_bytes(mutant(np.random.default_rng([19, seed]), whole))
            return reader(path, frame=0)

        return list(outcomes(action, range(number)))

    found, plain = tried(read), tried(read_plainly)
    count(mutants, found, plain)
    ways = [next(iter(one.value), "") if one.value else one.kind for one in found]
    assert min(ways.count("refused"), ways.count("size")) > number / 10
    mutants.settle()


def sixteen_bits(dice, path):
    levels = dice.integers(0, 65536, (5, 7)).astype(np.uint16)
    path = path.with_suffix(dice.choice([".png", ".tiff", ".pgm", ".jp2"]))
    Image.fromarray(levels).save(path)
    return path, {}, np.repeat(((levels.astype(int) * 2 + 257) // 514)[:, :, None], 3, axis=2)


def cmyk(dice, path):
    inks = dice.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    Image.frombytes("CMYK", (7, 5), inks.tobytes()).save(path.with_suffix(".tiff"))
    light = 255 - inks.astype(int)
    return path.with_suffix(".tiff"), {}, (light[:, :, :3] * light[:, :, 3:]) / 255


def palette(dice, path):
    colours, places = dice.integers(0, 256, (16, 3)).astype(np.uint8), dice.integers(0, 16, (5, 7)).astype(np.uint8)
    image = Image.frombytes("P", (7, 5), places.tobytes())
    image.putpalette(colours.tobytes())
    path = path.with_suffix(dice.choice([".png", ".gif", ".bmp"]))
    image.save(path)
    return path, {}, colours[places].astype(int)


def alpha(dice, path):
    levels = dice.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    background = tuple(int(one) for one in dice.integers(0, 256, 3))
    path = path.with_suffix(dice.choice([".png", ".tiff"]))
    Image.fromarray(levels).save(path)
    share = levels[:, :, 3:].astype(float) / 255
    return path, {"background": background}, levels[:, :, :3] * share + np.array(background) * (1 - share)


def frames(dice, path):
    pictures = dice.integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    path = path.with_suffix(dice.choice([".png", ".tiff"]))
    first, *rest = (Image.fromarray(one) for one in pictures)
    first.save(path, save_all=True, append_images=rest)
    with pytest.raises(ProbeError, match="holds 3 frames"):
        read_image(path)
    frame = int(dice.integers(3))
    return path, {"frame": frame}, pictures[frame].astype(int)


@pytest.mark.parametrize("kind", [sixteen_bits, cmyk, palette, alpha, frames])
@pytest.mark.promises("R20")
def test_pixels_are_true(line, full, tmp_path, kind):
    number = 400 if full else 60
    true = line("R20", target="every level kept; blending within 1 level", least=number)
    for seed in range(number):
        path, options, expected = kind(np.random.default_rng([20, seed]), tmp_path / "picture")
        levels = np.asarray(read_image(path, **options)).astype(float)
        error = np.abs(levels - expected).max()
        # Blending and inks are rounded by the decoder; everything else is exact.
        true.trial(
            error <= (1 if kind in (cmyk, alpha) else 0), silent=True, what=f"{kind.__name__} {seed}: off by {error}"
        )
    true.settle()
