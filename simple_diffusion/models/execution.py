"""How blocks run: compiled, or computed twice to save memory. Neither changes names or numbers."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Blocks that differ in width or grid share their code, and each needs a compiled version of it.
COMPILED_VERSIONS = 64


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward pass of each block by itself, for fixed shapes.

    Blocks rather than the whole: equal blocks are compiled once, and hooks around a block (those
    that gather its sharded weights) stay outside. Nothing is wrapped, so state-dict keys stay.
    """
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, COMPILED_VERSIONS)
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let each block keep its input only, and compute the rest again in the backward pass.

    Source: Chen et al. 2016. Dropout draws the same again.
    """
    for block in blocks:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=bool(getattr(block, "dropout", 0.0)),
        )
