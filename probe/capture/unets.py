"""The U-Net of a diffusion model: its attention modules, and the grid of patches in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from probe.capture.places import Place
from probe.errors import CaptureError, InputError, did_you_mean
from probe.families import matches
from probe.families.stable_diffusion import STABLE_DIFFUSION
from probe.layout import Indices, resolve_indices

__all__ = ["choose_layers", "find_unet", "grid_shape", "level_of", "require_seen", "unet_attention"]

# How the data flows, which is not how the parts are listed in the model.
_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
_KNOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D",
                 "CrossAttnUpBlock2D", None)  # fmt: skip
# These compute attention without torch's function, or call it several times with something else than words among the keys.
_UNSEEN_PROCESSORS = ("AttnProcessor", "Sliced*", "*XFormers*", "*NPU*", "XLA*", "*IPAdapter*", "PAG*", "CustomDiffusion*",
                      "*AddedKV*")  # fmt: skip


def find_unet(model: nn.Module) -> nn.Module:
    """The only U-Net inside a model.

    Raises
    ------
    CaptureError
        If there is none, or several.
    """
    found = [one for one in model.modules() if matches(one, ("UNet2DConditionModel",))]
    if len(found) != 1:
        raise CaptureError(f"{type(model).__name__} holds {len(found)} diffusion U-Nets; exactly one can be recorded.")
    return found[0]


def unet_attention(unet: Any, place: Place) -> list[tuple[str, nn.Module]]:
    """Name and module of every attention layer of that kind, in the order in which they run.

    Raises
    ------
    CaptureError
        If there are not as many as the configuration states, or one computes attention in a way that cannot be seen.
    """
    crossed = place == "cross-attention"
    found = [
        (name, one)
        for name, one in unet.named_modules()
        if matches(one, STABLE_DIFFUSION.attention) and bool(getattr(one, "is_cross_attention", False)) == crossed
    ]
    found.sort(key=lambda pair: _ORDER.get(pair[0].split(".")[0], 3))
    stated = _stated(unet)
    if len(found) != stated:
        raise CaptureError(
            f"The configuration of {type(unet).__name__} states {stated} {place} layers but {len(found)} were found: it is not "
            "built as U-Nets of Stable Diffusion are."
        )
    require_seen(
        found,
        cure="switch it off (attention slicing, xformers or adapters), or call unet.set_attn_processor(AttnProcessor2_0())",
    )
    return found


def require_seen(found: list[tuple[str, nn.Module]], *, cure: str) -> None:
    """Nothing, if the attention of all these modules goes through torch's own function, once a pass.

    Raises
    ------
    CaptureError
        If a processor is known to compute it otherwise.
    """
    for name, one in found:
        processor: Any = getattr(one, "processor", None)
        if matches(processor, _UNSEEN_PROCESSORS):
            raise CaptureError(
                f"{name} uses {type(processor).__name__}, whose attention cannot be seen as it is computed; {cure}."
            )
        backend = getattr(processor, "_attention_backend", None)
        backend = str(getattr(backend, "value", backend) or "native")
        if "native" not in backend or backend.endswith(("npu", "xla")):
            raise CaptureError(
                f"{name} computes attention with the backend {backend!r}, which cannot be seen; call "
                'set_attention_backend("native") on the model.'
            )


def _stated(unet: Any) -> int:
    """How many transformer blocks, with one layer of each kind, the configuration gives to the blocks that are there."""
    config = unet.config
    blocks = (*config.down_block_types, config.mid_block_type, *config.up_block_types)
    unknown = [one for one in blocks if one not in _KNOWN_BLOCKS]
    if unknown:
        raise CaptureError(f"Blocks of type {unknown[0]!r} are not known; U-Nets of Stable Diffusion can be recorded.")
    depth = len(config.down_block_types)
    residual, transformer = (
        _each(getattr(config, f"{name}_per_block"), depth) for name in ("layers", "transformer_layers")
    )
    upward = getattr(config, "reverse_transformer_layers_per_block", None) or transformer[::-1]
    count = 0
    # A U-Net may have been cut after the block that somebody needs.
    for number, kind in enumerate(config.down_block_types[: len(unet.down_blocks)]):
        count += _blocks(transformer[number], residual[number]) if "CrossAttn" in kind else 0
    for number, kind in enumerate(config.up_block_types[: len(unet.up_blocks)]):
        count += _blocks(upward[number], residual[::-1][number] + 1) if "CrossAttn" in kind else 0
    middle = unet.mid_block is not None and "CrossAttn" in str(config.mid_block_type)
    return count + (_blocks(transformer[-1], 1) if middle else 0)


def _each(setting: Any, depth: int) -> list[Any]:
    return [setting] * depth if isinstance(setting, int) else list(setting)


def _blocks(transformer: Any, residual: int) -> int:
    """Transformer blocks in one block of the U-Net; a list gives each of its places a number of its own."""
    return sum(transformer) if isinstance(transformer, Sequence) else transformer * residual


def choose_layers(
    found: list[tuple[str, nn.Module]], layers: Indices | str | Sequence[str], *, place: Place
) -> list[tuple[str, nn.Module]]:
    """The layers chosen by number, or by the beginnings of their names, such as "mid_block" or "up_blocks.1".

    Raises
    ------
    InputError
        If one of them does not exist.
    """
    names = [layers] if isinstance(layers, str) else layers
    if not isinstance(names, Sequence) or not names or not all(isinstance(one, str) for one in names):
        return [found[i] for i in resolve_indices(layers, len(found), what="layer")]  # type: ignore[arg-type]
    chosen = set()
    for wanted in names:
        inside = {i for i, (name, _) in enumerate(found) if f"{name}.".startswith(f"{wanted}.")}
        if not inside:
            blocks = dict.fromkeys(_block(name) for name, _ in found)
            raise InputError(
                f"No block {wanted!r} with {place} layers; the model has them in {', '.join(blocks)}."
                f"{did_you_mean(str(wanted), blocks)}"
            )
        chosen |= inside
    return [found[i] for i in sorted(chosen)]


def _block(name: str) -> str:
    """The block of a layer as one would type it: "down_blocks.0" or "mid_block"."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if second.isdigit() else first


def level_of(queries: int, latent: tuple[int, int]) -> int:
    """How often a layer's grid was halved, from its number of queries and the (rows, cols) of the latents.

    Every halving rounds up, so that patch (row, col) of level k begins at latent (row << k, col << k).

    Raises
    ------
    CaptureError
        If no number of halvings gives that many patches.
    """
    for level in range(max(latent).bit_length() + 1):
        rows, cols = grid_shape(latent, level)
        if rows * cols == queries:
            return level
    raise CaptureError(
        f"A layer has {queries} queries, which is no halving of latents of {latent[0]} x {latent[1]}, so its patches cannot be "
        "placed."
    )


def grid_shape(latent: tuple[int, int], level: int) -> tuple[int, int]:
    """(rows, cols) of the patches after that many halvings, each of which rounds up."""
    return -(-latent[0] // 2**level), -(-latent[1] // 2**level)
