"""The images below a folder, and what a file of labels says of them."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.sample import Rejected
from data_pipelines.shard_index import IMAGE_EXTENSIONS
from data_pipelines.sources.reading import plain_key


@dataclass(frozen=True)
class Label:
    """What a labels file says of one image."""

    class_: str | None
    caption: str | None
    group: str | None = None


@dataclass(frozen=True)
class ImageFile:
    """An image to store: its key, path relative to the folder, class, caption and group."""

    key: str
    path: str
    class_: str | None
    caption: str | None
    group: str | None = None


def read_labels(path: Path, group: str | None = None) -> dict[str, Label]:
    """Reads a labels file: relative path of an image -> its label.

    Args:
        path: CSV file with the columns `file` and `class`, and perhaps `caption`.
        group: One more column, if it is to be kept as the label's group.

    Raises:
        ValueError: The file is missing, not UTF-8 CSV, lacks a column or lists a file twice.
    """
    table: dict[str, Label] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            wanted = ("file", "class") if group is None else ("file", "class", group)
            missing = [name for name in wanted if name not in columns]
            if missing:
                raise ValueError(
                    f"{path}: column {' and '.join(map(repr, missing))} missing; the first line "
                    f"must name the columns file,class[,caption], not {','.join(columns)}"
                )
            for row in reader:
                name = os.path.normpath(row["file"] or "")
                if name in table:
                    raise ValueError(f"{path}, line {reader.line_num}: {name} is listed twice")
                value = None if group is None else row[group] or None
                table[name] = Label(row["class"] or None, row.get("caption") or None, value)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such labels file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    return table


def find_images(
    folder: Path, table: dict[str, Label] | None
) -> tuple[list[ImageFile], list[Rejected]]:
    """Lists the images below a folder by path, and what is left out before any is opened.

    Links to folders are followed, but no folder is listed twice.

    Raises:
        ValueError: A folder in it cannot be read.
    """
    paths, others = [], Counter[str]()
    for parent, files in _walk(folder):
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
        images.append(ImageFile(key, path, label.class_, label.caption, label.group))
    return images, rejected


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder that is not hidden with its files; under its own name before a link's."""
    seen, tops = set[tuple[int, int]](), [str(folder)]
    while tops:
        links = []
        for top in tops:
            for parent, folders, files in os.walk(top, onerror=_refuse):
                status = os.stat(parent)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = [name for name in folders if not name.startswith(".")]
                below = [os.path.join(parent, name) for name in folders]
                links += [path for path in below if os.path.islink(path)]
                yield parent, files
        tops = sorted(links)


def _refuse(error: OSError) -> None:
    """A folder that is left out silently would make the set depend on the day it was built."""
    raise ValueError(
        f"{error.filename}: this folder cannot be read ({error.strerror}); change its permissions, "
        "run the same command again when it can be, or move it elsewhere"
    )


def _keys(paths: Sequence[str]) -> list[str]:
    """Makes a unique, legible key of each path."""
    stems = [os.path.splitext(path)[0] for path in paths]
    shared = Counter(stem.lower() for stem in stems)
    return [
        plain_key(stem, path, shared=shared[stem.lower()] > 1)
        for path, stem in zip(paths, stems, strict=True)
    ]
