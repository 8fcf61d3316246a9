"""Refusing arguments of the backbone that do not fit together, before anything is built."""

from collections.abc import Sequence
from typing import get_args

from simple_diffusion.models.blocks import MLPKind, Norm
from simple_diffusion.models.branches import Branches
from simple_diffusion.models.levels import Skips
from simple_diffusion.models.positions import Positions
from simple_diffusion.models.stems import StemName


def check_arguments(
    *,
    image_size: int,
    in_channels: int,
    stem: str,
    patch_size: int,
    bottleneck: int | None,
    channels: Sequence[int],
    blocks: Sequence[int],
    depth: int,
    head_dim: int,
    mlp_ratio: float,
    mlp: str,
    skips: str,
    positions: str,
    norm: str,
    branches: str,
    dropout: float,
    dropout_resolution: int | None,
    num_classes: int,
    condition_width: int,
) -> None:
    """Check the arguments of `UViT`, which describes them.

    Raises:
        ValueError: naming the argument, what was given and what would do.
    """
    _choice("stem", stem, get_args(StemName))
    _choice("mlp", mlp, get_args(MLPKind))
    _choice("skips", skips, get_args(Skips))
    _choice("positions", positions, get_args(Positions))
    _choice("norm", norm, get_args(Norm))
    _choice("branches", branches, get_args(Branches))
    for name, value in (
        ("image_size", image_size),
        ("in_channels", in_channels),
        ("patch_size", patch_size),
        ("bottleneck", bottleneck),
        ("depth", depth),
        ("head_dim", head_dim),
        ("dropout_resolution", dropout_resolution),
        ("condition_width", condition_width),
    ):
        _whole(name, value, at_least=1)
    _whole("num_classes", num_classes, at_least=0)
    if mlp_ratio <= 0:
        raise ValueError(f"mlp_ratio: must be positive, got {mlp_ratio}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: a probability in [0, 1), got {dropout}")
    _check_shape(image_size, patch_size, stem, channels, blocks)
    _check_heads(channels[-1], head_dim, positions)


def _check_shape(
    image_size: int, patch_size: int, stem: str, channels: Sequence[int], blocks: Sequence[int]
) -> None:
    if not channels:
        raise ValueError("channels: empty; give at least the width of the transformer")
    for width in channels:
        _whole("channels", width, at_least=1)
    for count in blocks:
        _whole("blocks", count, at_least=1)
    levels = len(channels) - 1
    if len(blocks) != levels:
        raise ValueError(
            f"blocks: {len(blocks)} given for {levels} convolutional levels; channels lists a "
            "width per level and last the transformer's, so blocks has one entry fewer"
        )
    if stem != "patch" and patch_size & (patch_size - 1):
        raise ValueError(
            f"patch_size: the {stem} stem halves the image each step, so it must be a power of "
            f"two, got {patch_size}"
        )
    multiple = patch_size * 2**levels
    if image_size % multiple:
        raise ValueError(
            f"image_size: {image_size} is not divisible by {multiple} (patch_size {patch_size}, "
            f"halved by {levels} levels); change image_size, patch_size or the number of levels"
        )


def _check_heads(width: int, head_dim: int, positions: str) -> None:
    if width % head_dim:
        raise ValueError(
            f"head_dim: {head_dim} does not divide the transformer's width {width} "
            "(the last of channels)"
        )
    if positions == "rotary" and head_dim % 4:
        raise ValueError(
            f"head_dim: rotary positions need a multiple of 4 (two axes, in pairs), got {head_dim}"
        )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: unknown value {value!r}; choose one of {', '.join(allowed)}")


def _whole(name: str, value: int | None, at_least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: must be a whole number of at least {at_least}, got {value!r}")
