"""What commands print."""

from __future__ import annotations

import pytest

from probe.reports import short_names

UNET = ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2")
CLIP = tuple(f"vision_model.encoder.layers.{number}.self_attn" for number in range(2))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (UNET, ["down_blocks.0", "mid_block"]),
        (
            (*UNET, UNET[0].replace("attentions.0", "attentions.1")),
            ["down_blocks.0.0", "mid_block.0", "down_blocks.0.1"],
        ),
        (CLIP, ["layers.0", "layers.1"]),
        (CLIP[:1], [CLIP[0]]),
        (("a", "b"), ["a", "b"]),
        (("a.b", "c.a.b"), ["a.b", "c.a.b"]),
        (("same", "same"), ["same", "same"]),
    ],
)
def test_names_lose_what_they_share_and_stay_apart(names, expected):
    assert short_names(names) == expected
