"""Training sets of self-consuming chains: a model trained on what an earlier one drew.

The three loops are those of Alemohammad et al., "Self-Consuming Generative Models Go MAD" (2023):
``synthetic`` trains on drawn images alone, ``augmented`` adds the same real images every time,
``fresh`` adds real images that no earlier generation has seen.
"""

from pathlib import Path

from data_pipelines.building.combine import Source, combine
from data_pipelines.manifest import Manifest
from data_pipelines.store import is_remote
from eval.ablate.spec import RUN, CellSpec, DataRecipe
from simple_diffusion.training.sample_shards import sample_shards
from simple_diffusion.training.saved_run import open_run

DRAWN, DATA = "drawn", "data"


def generation_data(spec: CellSpec, folder: Path) -> Path:
    """Make the training set of a cell in its folder, or reuse it.

    Real images are taken in the order of a hash of their keys with the run's seed: the first
    `images` are generation 0's and those of the augmented loop; the fresh loop takes the next ones
    each generation.

    Args:
        spec: the cell; its parent lies beside it.
        folder: the cell's.

    Returns:
        The shard set.

    Raises:
        ValueError: the parent has not been trained, or there are too few real images.
    """
    recipe = spec.data
    assert recipe is not None
    sources = [] if recipe.parent is None else [_drawn(spec, recipe, recipe.parent, folder)]
    first = _first_real(recipe)
    if first is not None:
        check_real_images(spec)
        real = Path(spec.config.data.path)
        sources.append(Source(real, recipe.images, first, spec.config.seed))
    # The real ones come first: their classes keep the labels that they have everywhere.
    combine(sources[::-1], folder / DATA)
    return folder / DATA


def check_real_images(spec: CellSpec) -> None:
    """Refuse a generation that needs more real images than there are.

    Raises:
        ValueError: how many there are, and how many it needs.
    """
    recipe = spec.data
    first = None if recipe is None else _first_real(recipe)
    if recipe is None or first is None:
        return
    if spec.config.data.mix_with or is_remote(spec.config.data.path):
        raise ValueError(
            "generations take their real images from one shard set in a folder; set data.path to "
            "one, and leave data.mix_with out"
        )
    real = Path(spec.config.data.path)
    there = Manifest.load(real).num_samples
    if first + recipe.images > there:
        raise ValueError(
            f"{real} has {there} images; generation {recipe.generation} of {recipe.images} "
            f"images each needs {first + recipe.images} for the {recipe.loop} loop; lower "
            "generations.images or generations.count"
        )


def _first_real(recipe: DataRecipe) -> int | None:
    """Rank of the first real image to take; None for no real images."""
    if recipe.generation == 0 or recipe.loop == "augmented":
        return 0
    return recipe.images * recipe.generation if recipe.loop == "fresh" else None


def _drawn(spec: CellSpec, recipe: DataRecipe, parent: str, folder: Path) -> Source:
    """Images drawn by the parent's model, as they are drawn to be scored; other seeds."""
    saved = open_run(folder.parent / parent / RUN)
    out = folder / DRAWN
    # The parent's own config holds the sampling that its scores were measured with.
    seed = (spec.config.seed + 1_000_003 * recipe.generation) % 2**32
    sample_shards(saved, saved.config.sampling, out, num=recipe.images, seed=seed)
    return Source(out)
