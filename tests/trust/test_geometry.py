"""R12: each patch covers the original pixels that its box says: asked of the real image processor by changing pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from probe.capture.geometry import Preparation, preparation_of
from probe.errors import CaptureError, InputError
from probe.families.llava import LLAVA
from tests.tiny import tiny_processor

SIZES = [
    (1, 1),
    (1, 40),
    (40, 1),
    (333, 500),
    (500, 333),
    (16, 8000),
    (8000, 16),
    (33, 32),
    (31, 47),
    (97, 101),
    (32, 32),
]
KINDS = ["crop", "pad", "squash"]
TARGET = "0 wrong cells, error <= 0.5 px"
promised = pytest.mark.promises("R12", target=TARGET)


def _grid(processor, size, patch=8):
    return preparation_of(processor, size, family=LLAVA).grid(patch)


def _processed(processor, pixels):
    """(row, col) grey levels 0 to 255 of what the model would see."""
    picture = Image.fromarray(np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=2))
    images = processor.image_processor
    found = images(images=picture, return_tensors="np")["pixel_values"][0, 0]
    return (found * images.image_std[0] + images.image_mean[0]) * 255


def _cells(change):
    """(row, col) mean of each 8 x 8 patch."""
    return change.reshape(4, 8, 4, 8).mean((1, 3))


@pytest.mark.promises("R12")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_under_a_cell_move_that_cell_most(size, kind, line):
    right_cells = line("R12", target=TARGET, least=2)
    processor = tiny_processor(preparation=kind)
    grid = _grid(processor, size)
    height, width = size
    plain = _processed(processor, np.zeros(size))
    cells = np.argwhere(grid.weight > 0.003)
    for row, col in cells if max(size) < 1000 else cells[:: len(cells) // 2]:  # padding 8000 x 16 takes half a second
        top, left, bottom, right = grid.boxes[row, col]
        # The pixels whose centres lie under the cell; of a picture coarser than its cells, the one at the cell's centre.
        rows = np.flatnonzero((np.arange(height) + 0.5 >= top) & (np.arange(height) + 0.5 < bottom))
        cols = np.flatnonzero((np.arange(width) + 0.5 >= left) & (np.arange(width) + 0.5 < right))
        rows = rows if len(rows) else [grid.centres[row, col, 0]]
        cols = cols if len(cols) else [grid.centres[row, col, 1]]
        moved, most = _moved(processor, plain, size, rows, cols), []
        for axis, where in enumerate((rows, cols)):
            if grid.boxes[row, col, axis + 2] - grid.boxes[row, col, axis] >= 1:
                most.append((moved[:, col] if axis == 0 else moved[row]).max())
                continue
            # Cells finer than a pixel: no neighbour of this pixel moves the cell more.
            for one in (where[0] - 1, where[0] + 1):
                if 0 <= one < size[axis]:
                    around = ([one], cols) if axis == 0 else (rows, [one])
                    most.append(_moved(processor, plain, size, *around)[row, col])
        right = moved[row, col] > 0.4 and all(moved[row, col] >= one - 1.0 for one in most)
        right_cells.trial(right, silent=True, what=(row, col, moved.round(1)))
    right_cells.settle()


def _moved(processor, plain, size, rows, cols):
    """(row, col) how much each cell changes when these pixels go from black to white."""
    pixels = np.zeros(size)
    pixels[np.ix_(rows, cols)] = 255
    return _cells(np.abs(_processed(processor, pixels) - plain))


@promised
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_weight_is_the_share_of_each_cell_that_is_image(size, kind):
    processor = tiny_processor(preparation=kind)
    white, black = (_processed(processor, np.full(size, level)) for level in (200, 50))
    # The colour of padding is the same in both, so what differs is image; resampling blurs its border by about a pixel of 8.
    np.testing.assert_allclose(_cells((white - black) / 150), _grid(processor, size).weight, atol=0.03)


@promised
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_edges_lie_within_half_a_pixel(size, kind):
    """A step at original row y gives a processed picture whose bright part ends at scale * y + offset: fit the two numbers."""
    processor = tiny_processor(preparation=kind)
    grid = _grid(processor, size)
    for axis in range(2):
        length, edges = size[axis], (grid.row_edges, grid.col_edges)[axis]
        low, high = max(edges[0], 0), min(edges[-1], length)
        black, white = (_processed(processor, np.full(size, level)) for level in (0, 255))
        covered = (white - black).sum(1 - axis)
        usual = np.median(covered[covered > covered.max() / 2])
        if length < 8 or usual < 255 * 0.2 or (covered > usual / 2).sum() < 6:
            continue  # nothing to fit in a few pixels, or in a thread that nearly vanishes; cells and weights speak for those
        # Well inside what is seen: near a border the processor's kernel has no other side.
        margin = 0.25 * (high - low)
        steps = sorted({int(one) for one in np.linspace(low + margin, high - margin, 7 if max(size) < 1000 else 3)})
        # From a row that is all image (two further, where the kernel rings no more), bright pixels up to the step add up.
        first = int(np.flatnonzero(covered > 0.98 * usual)[0])
        first += 2 * (first > 0)
        base, full = (_processed(processor, np.full(size, level)).sum(1 - axis) for level in (60, 180))
        ends = []
        for step in steps:
            # Levels that leave room for the kernel's overshoot.
            pixels = np.full(size, 60)
            pixels[(slice(None),) * axis + (slice(step),)] = 180
            line = (_processed(processor, pixels).sum(1 - axis) - base) / np.median((full - base)[covered > usual / 2])
            ends.append(first + line[first:].sum())
        scale, offset = np.polyfit(steps, ends, 1)
        found = (np.arange(5) * 8 - offset) / scale
        # Half an original pixel; a fiftieth of a processed one where that covers many.
        np.testing.assert_allclose(edges, found, atol=max(0.5, 0.02 / scale))


@promised
@pytest.mark.parametrize("size", [(333, 500), (500, 333), (16, 8000), (8000, 16), (31, 47), (1, 40)], ids=str)
def test_pixels_called_unseen_are_not_seen(size):
    processor = tiny_processor(preparation="crop")
    grid = _grid(processor, size)
    # The resampling kernel reaches two processed pixels beyond the edge.
    reach = int(np.ceil(2.5 * max(1.0, min(size) / 32)))
    near = np.zeros(size, bool)
    rows, cols = np.flatnonzero(grid.seen.any(1)), np.flatnonzero(grid.seen.any(0))
    near[max(rows[0] - reach, 0) : rows[-1] + 1 + reach, max(cols[0] - reach, 0) : cols[-1] + 1 + reach] = True
    assert not near.all()
    noise = np.random.default_rng(0).integers(0, 255, size)
    changed = np.where(near, noise, 255 - noise)
    np.testing.assert_array_equal(_processed(processor, noise), _processed(processor, changed))
    # And all that is called seen is: a darker half of it shows.
    assert np.abs(_processed(processor, np.where(grid.seen, 60, noise)) - _processed(processor, noise)).max() > 10


@promised
@pytest.mark.parametrize("kind", KINDS)
def test_a_random_mask_moves_each_cell_by_its_share(kind):
    processor = tiny_processor(preparation=kind)
    rng = np.random.default_rng(1)
    for _ in range(12):
        size = tuple(rng.integers(24, 120, 2))
        size = (int(size[0]), int(size[1]))
        # Blocks larger than the kernel, so that resampling keeps what they add up to.
        blocks = rng.random((3, 3)) < 0.5
        mask = np.kron(blocks, np.ones((size[0] // 3 + 1, size[1] // 3 + 1)))[: size[0], : size[1]].astype(bool)
        moved = _cells(_processed(processor, np.where(mask, 180, 60)) - _processed(processor, np.full(size, 60))) / 120
        np.testing.assert_allclose(moved, _grid(processor, size).mask_share(mask), atol=0.06)


@promised
def test_a_crop_larger_than_the_picture_is_padded_where_the_processor_pads_it():
    processor = tiny_processor(preparation="crop")
    processor.image_processor.do_resize = False
    for size in [(9, 9), (20, 31), (31, 64), (50, 7), (33, 33)]:
        white, black = (_processed(processor, np.full(size, level)) for level in (200, 50))
        found = _cells((white - black) / 150)
        np.testing.assert_allclose(found, _grid(processor, size).weight, atol=1e-3)


def test_steps_are_named_in_words():
    found = preparation_of(tiny_processor(preparation="crop"), (40, 60), family=LLAVA)
    assert found.steps == "resize to 32 x 48, centre crop to 32 x 32"
    assert "pad to 60 x 60" in preparation_of(tiny_processor(preparation="pad"), (40, 60), family=LLAVA).steps


@promised
def test_what_is_not_understood_is_refused():
    processor = tiny_processor(preparation="crop")
    images = processor.image_processor
    images.size = {"longest_edge": 40}
    with pytest.raises(CaptureError, match=r"longest_edge.* only height and width, or shortest_edge"):
        _grid(processor, (40, 40))
    images.size = {"shortest_edge": 32}
    images.crop_size = {"shortest_edge": 3}
    with pytest.raises(CaptureError, match=r"crop_size .* has no height and width"):
        _grid(processor, (40, 40))
    with pytest.raises(CaptureError, match="object is not one whose geometry is known for family 'llava'"):
        preparation_of(object(), (40, 40), family=LLAVA)
    with pytest.raises(InputError, match="smaller than one patch of 14"):
        Preparation.unknown((8, 8)).grid(14)


@promised
def test_padding_that_is_not_to_a_square_is_refused():
    # The library's plain do_pad comes last, and to the bottom and right; LLaVA's comes first, and centres.
    processor = tiny_processor(preparation="crop")
    processor.image_processor.do_pad = True
    with pytest.raises(CaptureError, match=r"CLIPImageProcessorPil has do_pad=True but no pad_to_square"):
        _grid(processor, (40, 60))
