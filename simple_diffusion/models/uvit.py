"""The one backbone: stem, convolutional levels, a transformer at the lowest grid, levels back up.

With no level and a large patch it is a plain vision transformer (JiT, Li & He 2025); with one
skip per level the residual U-ViT of Simpler Diffusion (Hoogeboom et al. 2024); with a skip per
block the U-ViT of simple diffusion (Hoogeboom et al. 2023).
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from simple_diffusion.models.arguments import check_arguments
from simple_diffusion.models.attention import Backend, check_backend
from simple_diffusion.models.blocks import MLPKind, Norm, TransformerBlock
from simple_diffusion.models.branches import Branches, start_branches
from simple_diffusion.models.conditioning import Conditioner, lowest_logsnr_told
from simple_diffusion.models.execution import compile_blocks, recompute_blocks
from simple_diffusion.models.layers import at_least_float32
from simple_diffusion.models.levels import Level, Skips
from simple_diffusion.models.positions import LearnedPositions, Positions, axial_rotation
from simple_diffusion.models.stems import (
    ConvHead,
    Embedding,
    PixelTransform,
    StemName,
    TokenHead,
)


class UViT(nn.Module):
    """A U-shaped vision transformer for images in pixel space.

    The untrained network returns exactly zero. It knows nothing of noise schedules: it is told
    the log-SNR of its input. Under autocast the transformer's residual stream, all norms, the
    conditioning, rotations and the head stay float32.

    Args:
        image_size: side of the training images, in pixels; other sizes work too (see `forward`).
        in_channels: channels of the images, in and out.
        stem: how p x p pixels become channels: ``patch``, or the wavelet packets ``haar`` and
            ``cdf53``. All are exactly invertible, and inverted at the head.
        patch_size: p, the stem's downsampling; a power of two for wavelets.
        bottleneck: rank of the patch embedding; None for full rank.
        channels: width of each convolutional level from the highest resolution down, then the
            width of the transformer. Each level halves the grid. Length 1: a plain ViT.
        blocks: residual convolutional blocks per level, each way; one fewer entry than `channels`.
        depth: number of transformer blocks.
        head_dim: channels per attention head; divides the transformer's width.
        mlp_ratio: hidden width of the transformer's MLP over its width.
        mlp: ``gelu``, or ``swiglu`` with 2/3 of the hidden width (to a multiple of 64).
        skips: ``block`` concatenates the output of each block on the way down to the input of
            its mirror image on the way up; ``level`` has one residual per level,
            x = up(x - h_after) + h_before, with h around the downsampling (SiD2).
        positions: ``learned`` table added to the tokens, or ``rotary`` in attention.
        qk_norm: normalise queries and keys.
        norm: in the transformer, ``pre`` normalises the input of each branch, ``post`` each sum.
        branches: how residual branches start: ``zero`` (off), ``small`` or ``default``; see
            `branches.start_branches`.
        dropout: probability of dropping activations in residual branches.
        dropout_resolution: dropout only in blocks whose grid has this side or a smaller one, for
            images of `image_size`; None means in every block.
        num_classes: 0 for an unconditional network. Label `num_classes` is the null class.
        condition_width: size of the conditioning vector.
        step_condition: whether the network can be told the size of the step that its output is
            for, as networks that sample in few steps are; see `conditioning.lowest_logsnr_told`.
        attention: backend, ``sdpa`` or ``xformers``.

    Raises:
        ValueError: arguments that do not fit together, each named in the message.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        stem: StemName = "patch",
        patch_size: int = 1,
        bottleneck: int | None = None,
        channels: Sequence[int],
        blocks: Sequence[int],
        depth: int,
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        mlp: MLPKind = "gelu",
        skips: Skips = "block",
        positions: Positions = "learned",
        qk_norm: bool = True,
        norm: Norm = "pre",
        branches: Branches = "zero",
        dropout: float = 0.0,
        dropout_resolution: int | None = None,
        num_classes: int = 0,
        condition_width: int = 256,
        step_condition: bool = False,
        attention: Backend = "sdpa",
    ) -> None:
        super().__init__()
        check_arguments(
            image_size=image_size,
            in_channels=in_channels,
            stem=stem,
            patch_size=patch_size,
            bottleneck=bottleneck,
            channels=channels,
            blocks=blocks,
            depth=depth,
            head_dim=head_dim,
            mlp_ratio=mlp_ratio,
            mlp=mlp,
            skips=skips,
            positions=positions,
            norm=norm,
            branches=branches,
            dropout=dropout,
            dropout_resolution=dropout_resolution,
            num_classes=num_classes,
            condition_width=condition_width,
        )
        check_backend(attention)
        *level_widths, width = channels
        self.image_size, self.in_channels, self.num_classes = image_size, in_channels, num_classes
        self.multiple = patch_size * 2 ** len(level_widths)
        self.head_dim = head_dim

        def dropout_at(level: int) -> float:
            side = image_size // (patch_size * 2**level)
            return dropout if dropout_resolution is None or side <= dropout_resolution else 0.0

        pixels = in_channels * patch_size**2
        self.transform = PixelTransform(stem, patch_size)
        self.embedding = Embedding(pixels, channels[0], 3 if level_widths else 1, bottleneck)
        self.conditioner = Conditioner(
            condition_width, num_classes, step_condition, lowest_logsnr_told(image_size)
        )
        self.levels = nn.ModuleList(
            Level(
                wide,
                channels[i + 1],
                blocks[i],
                condition_width=condition_width,
                dropout=dropout_at(i),
                skips=skips,
            )
            for i, wide in enumerate(level_widths)
        )
        self.positions = (
            LearnedPositions(image_size // self.multiple, width) if positions == "learned" else None
        )
        self.transformer = nn.ModuleList(
            TransformerBlock(
                width,
                condition_width,
                head_dim=head_dim,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                qk_norm=qk_norm,
                dropout=dropout_at(len(level_widths)),
                backend=attention,
                norm=norm,
            )
            for _ in range(depth)
        )
        self.head: ConvHead | TokenHead = (
            ConvHead(channels[0], pixels)
            if level_widths
            else TokenHead(width, pixels, condition_width)
        )
        start_branches(self, branches)

    @property
    def null_label(self) -> int:
        """The label that means "no class given".

        Raises:
            ValueError: the network is unconditional.
        """
        if not self.num_classes:
            raise ValueError("null_label: this network is unconditional (num_classes=0)")
        return self.num_classes

    def blocks(self, level: int) -> list[nn.Module]:
        """The residual blocks of a level: 0 is the highest resolution, the last the transformer.

        Raises:
            ValueError: no such level.
        """
        if not 0 <= level <= len(self.levels):
            raise ValueError(
                f"level {level}: this network has the levels 0 to {len(self.levels)}, of which "
                f"{len(self.levels)} is the transformer"
            )
        if level == len(self.levels):
            return list(self.transformer)
        one = cast("Level", self.levels[level])
        return [*one.down_blocks, *one.up_blocks]

    def recompute(self, levels: Sequence[int]) -> None:
        """Do not keep the activations of these levels' blocks (see `blocks`) for the backward pass.

        Once, and after `compile_blocks`.

        Raises:
            ValueError: no such level.
        """
        for level in levels:
            recompute_blocks(self.blocks(level))

    def compile_blocks(self) -> None:
        """Compile every block with torch.compile; state-dict keys stay as they are."""
        for level in range(len(self.levels) + 1):
            compile_blocks(self.blocks(level))

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        labels: Tensor | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        """What the network makes of noisy images.

        Args:
            z: noisy images, shape (B, C, H, W); H and W divisible by patch_size·2^levels. They
                need be neither square nor of `image_size`: learned positions are resampled,
                rotary ones extended.
            logsnr: λ = log(α²/σ²) of each image, shape (B,).
            labels: int64 classes, shape (B,), or None for an unconditional network.
            step: size of the step that the output is for, in [0, 1], shape (B,); 0, or None for
                all images, is no step: plain denoising.

        Returns:
            Tensor of z's shape and dtype.

        Raises:
            ValueError: shapes or labels that do not fit the network.
        """
        self._check_input(z)
        condition = self.conditioner(logsnr, labels, step)
        h = self.embedding(self.transform(z))
        saved: list[Tensor] = []
        levels = cast("Sequence[Level]", self.levels)
        for level in levels:
            h = level.down(h, condition, saved)
        h = self._at_lowest_grid(h, condition)
        for level in reversed(levels):
            h = level.up(h, condition, saved)
        return self.transform.inverse(self.head(h, condition)).to(z.dtype)

    def _at_lowest_grid(self, h: Tensor, condition: Tensor) -> Tensor:
        rows, columns = h.shape[2:]
        # float32 from here on: many small updates add up in this stream, and a level skip
        # subtracts its beginning from its end.
        tokens = at_least_float32(h).flatten(2).transpose(1, 2)
        rotation = None
        if self.positions is None:
            rotation = axial_rotation(rows, columns, self.head_dim, h.device)
        else:
            tokens = tokens + self.positions(rows, columns)
        # Compiled by itself on a CPU, a block that is given strided tokens has wrong gradients.
        tokens = tokens.contiguous()
        for block in self.transformer:
            tokens = block(tokens, condition, rotation)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    def _check_input(self, z: Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            raise ValueError(
                f"z: expected shape (B, {self.in_channels}, H, W), got {tuple(z.shape)}"
            )
        if z.shape[2] % self.multiple or z.shape[3] % self.multiple:
            raise ValueError(
                f"z: height and width must be divisible by {self.multiple} "
                f"(patch_size times 2 for each of the {len(self.levels)} levels), "
                f"got {z.shape[2]}x{z.shape[3]}"
            )

    def extra_repr(self) -> str:
        return (
            f"image_size={self.image_size}, in_channels={self.in_channels}, "
            f"num_classes={self.num_classes}, multiple={self.multiple}"
        )
