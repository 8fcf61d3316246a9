"""A folder of images as a shard set: classes from sub-folders or from a CSV file."""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import simplejpeg
from PIL import Image

from data_pipelines.build import BuildReport, Rejected, Sample, write_shards
from data_pipelines.decode import DecodeError, decode_upright, probe
from data_pipelines.shards import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, MAX_TEXT_BYTES

_JPEG_QUALITY = 95
_SCALING = "bicubic, antialiased; JPEG quality 95, 4:4:4"
_MAX_KEY = 80  # a ustar name holds 100 bytes, extension included


@dataclass(frozen=True)
class Label:
    """What a labels file says of one image."""

    class_: str | None
    caption: str | None


@dataclass(frozen=True)
class ImageFile:
    """An image to store: its key, path relative to the folder, class and caption."""

    key: str
    path: str
    class_: str | None
    caption: str | None


def build_folder(
    folder: Path | str,
    out: Path | str,
    *,
    size: int,
    labels: Path | str | None = None,
    licence: str = "not stated",
    shard_samples: int = 1000,
    validation: float = 0.0,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Writes the images below a folder, hidden ones aside, as a shard set.

    Images whose short side is longer than `size` are scaled to it, aspect kept, and encoded again
    (JPEG from JPEG, PNG from anything else); the others keep their bytes. Images that cannot be
    decoded are left out and reported.

    Args:
        folder: Where the images are. Without `labels`, the first sub-folder is the class.
        out: Folder of the shard set.
        size: Short side in pixels that is enough for training.
        labels: CSV file with the columns `file` (relative to `folder`) and `class`, and perhaps
            `caption`; other columns are ignored. Images that it does not list are left out.
        licence: Note on what the images may be used for.
        shard_samples, validation, overwrite, progress: As in `write_shards`.

    Raises:
        ValueError: The folder or the labels cannot be used, or as in `write_shards`.
    """
    folder = Path(folder)
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1 pixel")
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of images")
    table = None if labels is None else read_labels(Path(labels))
    images, rejected = find_images(folder, table)
    listing = [[i.path, (folder / i.path).stat().st_size, i.class_, i.caption] for i in images]
    recipe = {
        "builder": "folder",
        "size": size,
        "scaling": _SCALING,
        "licence": licence,
        "images": len(images),
        "listing": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
    return write_shards(
        partial(_samples, folder, images, rejected, size),
        out,
        source=f"images of the folder {folder.resolve().name}",
        licence=licence,
        recipe=recipe,
        shard_samples=shard_samples,
        validation=validation,
        overwrite=overwrite,
        total=len(images) + len(rejected),
        progress=progress,
    )


def read_labels(path: Path) -> dict[str, Label]:
    """Reads a labels file: relative path of an image -> its label.

    Raises:
        ValueError: The file is missing, not UTF-8 CSV, lacks a column or lists a file twice.
    """
    table: dict[str, Label] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [name for name in ("file", "class") if name not in columns]
            if missing:
                raise ValueError(
                    f"{path}: column {' and '.join(map(repr, missing))} missing; the first line "
                    f"must name the columns file,class[,caption], not {','.join(columns)}"
                )
            for row in reader:
                name = os.path.normpath(row["file"] or "")
                if name in table:
                    raise ValueError(f"{path}, line {reader.line_num}: {name} is listed twice")
                table[name] = Label(row["class"] or None, row.get("caption") or None)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such labels file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    return table


def find_images(
    folder: Path, table: dict[str, Label] | None
) -> tuple[list[ImageFile], list[Rejected]]:
    """Lists the images below a folder by path, and what is left out before any is opened."""
    paths, others = [], Counter[str]()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            extension = os.path.splitext(name)[1].lower()
            if extension[1:] in IMAGE_EXTENSIONS:
                paths.append(os.path.relpath(os.path.join(parent, name), folder))
            else:
                others[extension] += 1
    paths.sort()
    rejected = [
        Rejected(f"*{extension}", f"not an image format's extension ({count} of these files)")
        for extension, count in sorted(others.items())
    ]
    if table is not None:
        present = set(paths)
        rejected += [
            Rejected(name, "listed in the labels, but there is no such image")
            for name in table
            if name not in present
        ]
        rejected += [
            Rejected(path, "not listed in the labels") for path in paths if path not in table
        ]
        paths = [path for path in paths if path in table]
    images = []
    for key, path in zip(_keys(paths), paths, strict=True):
        parts = Path(path).parts
        default = Label(parts[0] if len(parts) > 1 else None, None)
        label = default if table is None else table[path]
        images.append(ImageFile(key, path, label.class_, label.caption))
    return images, rejected


def _keys(paths: Sequence[str]) -> list[str]:
    """Makes a unique, legible key of each path: it stays the same when other files are added.

    A key is the path without its extension, if that is plain, short and no other file's as well;
    else a shortened one with a hash of the path.
    """
    stems = [os.path.splitext(path)[0] for path in paths]
    shared = Counter(stem.lower() for stem in stems)
    keys = []
    for path, stem in zip(paths, stems, strict=True):
        plain = re.sub(r"[^A-Za-z0-9_/-]", "_", stem)
        if plain != stem or len(plain) > _MAX_KEY or shared[stem.lower()] > 1:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:10]
            plain = f"{plain[-(_MAX_KEY - 11) :].lstrip('/')}-{digest}"
        keys.append(plain)
    return keys


def _samples(
    folder: Path, images: Sequence[ImageFile], rejected: Sequence[Rejected], size: int
) -> Iterable[Sample | Rejected]:
    yield from rejected
    for image in images:
        try:
            yield _sample(folder, image, size)
        except (DecodeError, OSError) as error:
            yield Rejected(image.path, str(error))


def _sample(folder: Path, image: ImageFile, size: int) -> Sample:
    path = folder / image.path
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise DecodeError(f"the file is larger than {MAX_IMAGE_BYTES} bytes")
    for name, text in (("class", image.class_), ("caption", image.caption)):
        if text is not None and len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES // 4:
            raise DecodeError(f"its {name} is longer than {MAX_TEXT_BYTES // 4} bytes")
    data = path.read_bytes()
    if not data:
        raise DecodeError("the file is empty")
    width, height, extension = probe(data)
    pixels = decode_upright(data, size)  # in any case: what cannot be decoded is not stored
    if min(width, height) > size:
        height, width = pixels.shape[1:]
        array = pixels.permute(1, 2, 0).contiguous().numpy()
        if extension == "jpg":
            data = simplejpeg.encode_jpeg(
                array, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
            )
        else:
            extension = "png"
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG")
            data = buffer.getvalue()
    return Sample(image.key, data, extension, width, height, image.class_, image.caption)
