"""A contact sheet: samples of a shard set side by side, class and caption under each."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import Manifest

_MARGIN = 8
_FONT_SIZE = 12
_LINE = 15


def contact_sheet(
    root: Path | str, out: Path | str, *, num: int = 64, image_size: int = 128
) -> int:
    """Draws up to `num` samples, in the order of `evaluation_loader`, as the loader shows them.

    Args:
        root: Folder of the shard set.
        out: Image file to write; its extension chooses the format.
        num: Number of samples.
        image_size: Side of each in pixels.

    Returns:
        The number of samples drawn.

    Raises:
        ShardSetError: The set is missing, damaged or empty.
        ValueError: `num` is not positive, or the extension is of no image format.
    """
    if num < 1:
        raise ValueError(f"num is {num}; a sheet needs at least 1 sample")
    out = Path(out)
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{out}: {out.suffix!r} is no image format's extension; use .png")
    manifest = Manifest.load(Path(root))
    num = min(num, manifest.num_samples)
    columns = math.ceil(math.sqrt(num))
    width, height = image_size + _MARGIN, image_size + 2 * _LINE + _MARGIN
    rows = math.ceil(num / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    # A sheet is for looking at whatever is there: bad samples are logged but do not stop it.
    loader = evaluation_loader(
        root, image_size=image_size, num=num, batch_size=columns, max_bad_fraction=1.0
    )
    for row, batch in enumerate(loader):
        for column in range(len(batch.keys)):
            left, top = _MARGIN + column * width, _MARGIN + row * height
            pixels = batch.images[column].permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(pixels), (left, top))
            label = int(batch.labels[column])
            lines = manifest.classes[label] if label >= 0 else "", batch.captions[column]
            for number, (text, ink) in enumerate(zip(lines, ("black", "#666"), strict=True)):
                line = _fit(text, font, image_size)
                draw.text((left, top + image_size + number * _LINE), line, ink, font)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    return num


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shortens a text to one line of `width` pixels."""
    line = " ".join(text[:200].split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
