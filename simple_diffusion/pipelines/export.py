"""Writing an exported folder: whole or not at all, and never over what is not an export."""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError

from simple_diffusion.pipelines.model_card import CardFacts, model_card
from simple_diffusion.pipelines.pipeline import PixelDiffusionPipeline

INDEX = "model_index.json"
CARD = "README.md"


class ExportError(ValueError):
    """A folder that cannot be exported to; the message says why and what to do."""


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it is an export that may be replaced.

    Raises:
        ExportError: see above.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out}: is a file; name a folder to export to")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _is_export(out):
        raise ExportError(f"{out}: exists and holds something other than an export; choose another")
    if not overwrite:
        raise ExportError(f"{out}: holds an export already; choose another, or add --overwrite")


def export_pipeline(
    pipeline: PixelDiffusionPipeline, out: Path, facts: CardFacts, *, overwrite: bool = False
) -> None:
    """Write a pipeline as safetensors, JSON and a model card.

    An export that is replaced keeps what others put beside it (a `.git`, say).

    Args:
        pipeline: what to write.
        out: the folder.
        facts: for the card.
        overwrite: replace an earlier export.

    Raises:
        ExportError: the folder holds something (see `check_target`), or the disk is full.
    """
    check_target(out, overwrite)
    whole = out.resolve()
    partial = whole.with_name(f".{whole.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pipeline.save_pretrained(partial, safe_serialization=True)
        (partial / CARD).write_text(_card(pipeline, facts), encoding="utf-8")
        out.mkdir(parents=True, exist_ok=True)
        # The index last: without it the folder does not load.
        for path in sorted(partial.iterdir(), key=lambda path: path.name == INDEX):
            _replace(path, out / path.name)
    except SafetensorError as error:  # a full disk, for one; what it raises is no OSError
        raise ExportError(f"{out}: could not be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _card(pipeline: PixelDiffusionPipeline, facts: CardFacts) -> str:
    unet = pipeline.unet
    return model_card(
        facts,
        image_size=unet.image_size,
        parameters=sum(p.numel() for p in unet.parameters()),
        class_names=pipeline.class_names,
        num_classes=unet.num_classes,
        scheduler=dict(pipeline.scheduler.config),
    )


def _replace(path: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


def _is_export(folder: Path) -> bool:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == PixelDiffusionPipeline.__name__
