"""The files that say which class an ImageNet image has. What is in doubt is refused, not guessed.

There are two numberings of the classes. Training code numbers the WordNet IDs ("n01440764") in
sorted order. The development kit's ground truth numbers them otherwise, by "ILSVRC2012_ID", which
only the kit's own table (meta.mat, or map_clsloc.txt of later kits) leads back to WordNet IDs.
Taken for one another they give labels that look right and are not.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

NUM_CLASSES = 1000
WNID = re.compile(r"n\d{8}", re.ASCII)
_MAX_BYTES = 2**26


def read_synsets(path: Path) -> dict[str, str]:
    """Reads names of classes: lines of a WordNet ID and names ("n01440764 tench, Tinca tinca").

    Returns:
        WordNet ID -> its first name.

    Raises:
        ValueError: The file is missing or has other lines.
    """
    names: dict[str, str] = {}
    for number, line in _lines(path):
        wnid, _, rest = line.partition(" ")
        name = rest.split(",")[0].strip()
        if not WNID.fullmatch(wnid) or not name:
            raise ValueError(
                f"{path}, line {number}: not a WordNet ID and a name (n01440764 tench)"
            )
        if wnid in names:
            raise ValueError(f"{path}, line {number}: {wnid} is listed twice")
        names[wnid] = name
    if not names:
        raise ValueError(f"{path}: lists no classes")
    return names


def read_ground_truth(path: Path, meta: Path | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Reads the classes of the validation images.

    Args:
        path: `LOC_val_solution.csv` (columns ImageId, PredictionString), whose lines name WordNet
            IDs; or `ILSVRC2012_validation_ground_truth.txt`, whose line n is the ILSVRC2012_ID of
            image n.
        meta: What the ILSVRC2012_IDs mean: the kit's `meta.mat` or `map_clsloc.txt`. Needed with
            the second form.

    Returns:
        Name of an image without extension -> WordNet ID, and all WordNet IDs, sorted.

    Raises:
        ValueError: A file is missing or malformed, or it is not certain what its numbers mean.
    """
    if path.suffix.lower() == ".csv":
        if meta is not None:
            raise ValueError(f"{path}: names WordNet IDs itself; leave {meta} (--meta) out")
        truth = _read_solution(path)
        return truth, tuple(sorted(set(truth.values())))
    if meta is None:
        raise ValueError(
            f"{path}: its numbers are ILSVRC2012_IDs, which are not the sorted order of the "
            "WordNet IDs; name the development kit's meta.mat or map_clsloc.txt (--meta)"
        )
    wnids, truth = read_ids(meta), {}
    for number, line in _lines(path):
        if not (line.isascii() and line.isdigit()):
            raise ValueError(
                f"{path}, line {number}: not a number alone; this has to be the development kit's "
                "ILSVRC2012_validation_ground_truth.txt, or LOC_val_solution.csv"
            )
        if int(line) not in wnids:
            raise ValueError(f"{path}, line {number}: {meta} has no ILSVRC2012_ID {line}")
        truth[f"ILSVRC2012_val_{number:08d}"] = wnids[int(line)]
    return truth, tuple(sorted(wnids.values()))


def read_ids(path: Path) -> dict[int, str]:
    """Reads what the ILSVRC2012_IDs mean.

    Args:
        path: `meta.mat` (needs scipy), or lines of a WordNet ID and an ID, in either order.

    Returns:
        ILSVRC2012_ID, from 1 on without a gap, -> WordNet ID.

    Raises:
        ValueError: The file is missing or malformed, or its numbers are some other numbering.
    """
    ids = _read_mat(path) if path.suffix.lower() == ".mat" else _read_id_lines(path)
    if set(ids) != set(range(1, len(ids) + 1)) or len(set(ids.values())) != len(ids):
        raise ValueError(
            f"{path}: ILSVRC2012_IDs are 1, 2, ... without a gap, one for each WordNet ID, and "
            "these are not"
        )
    if len(ids) > 1 and [ids[number] for number in sorted(ids)] == sorted(ids.values()):
        raise ValueError(
            f"{path}: numbers the WordNet IDs in sorted order, so these are not ILSVRC2012_IDs; "
            "name the development kit's meta.mat or map_clsloc.txt"
        )
    return ids


def check_complete(path: Path, wnids: tuple[str, ...]) -> None:
    """Refuses a ground truth that does not name all classes, if nothing else does.

    Raises:
        ValueError: The labels would be others than the training images'.
    """
    if len(wnids) != NUM_CLASSES:
        raise ValueError(
            f"{path}: names {len(wnids)} classes of {NUM_CLASSES}, and their numbers would not be "
            "the training images' labels; name all that there are (--synsets)"
        )


def class_names(wnids: tuple[str, ...], synsets: Mapping[str, str] | None) -> dict[str, str]:
    """WordNet ID -> class name, in the order of the labels.

    The ID comes first, as two classes are called "crane" and two "maillot".

    Raises:
        ValueError: The synsets do not name one of the classes.
    """
    if synsets is None:
        return {wnid: wnid for wnid in sorted(wnids)}
    missing = sorted(set(wnids) - set(synsets))
    if missing:
        raise ValueError(f"the file of class names (--synsets) does not name {missing[0]}")
    return {wnid: f"{wnid} {synsets[wnid]}" for wnid in sorted(synsets)}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, text) of the lines that are not blank."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _read_solution(path: Path) -> dict[str, str]:
    truth: dict[str, str] = {}
    lines = _lines(path)
    if [cell.strip() for cell in next(lines, (0, ""))[1].split(",")] != [
        "ImageId",
        "PredictionString",
    ]:
        raise ValueError(f"{path}, line 1: must name the columns ImageId,PredictionString")
    for number, line in lines:
        cells = next(csv.reader([line]))
        wnid = cells[1].split(" ")[0] if len(cells) == 2 else ""
        if not WNID.fullmatch(wnid):
            raise ValueError(
                f"{path}, line {number}: not an image and a WordNet ID (name,n01440764 ...)"
            )
        if cells[0] in truth:
            raise ValueError(f"{path}, line {number}: {cells[0]} is listed twice")
        truth[cells[0]] = wnid
    return truth


def _read_id_lines(path: Path) -> dict[int, str]:
    ids: dict[int, str] = {}
    for number, line in _lines(path):
        words = re.split(r"[\s,]+", line)[:2]
        wnids = [word for word in words if WNID.fullmatch(word)]
        numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
        if len(wnids) != 1 or len(numbers) != 1:
            raise ValueError(
                f"{path}, line {number}: not a WordNet ID and an ILSVRC2012_ID (n02119789 1)"
            )
        if numbers[0] in ids:
            raise ValueError(f"{path}, line {number}: {numbers[0]} is listed twice")
        ids[numbers[0]] = wnids[0]
    return ids


def _read_mat(path: Path) -> dict[int, str]:
    """Reads the classes without sub-classes of the kit's MATLAB table."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            f"{path}: reading it needs scipy (`pip install scipy`); or name map_clsloc.txt"
        ) from None
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: there is no such file, or it is larger than {_MAX_BYTES} bytes")
    try:
        rows = loadmat(str(path), squeeze_me=True)["synsets"]
        leaves = rows[rows["num_children"] == 0]
        ids = [int(number) for number in leaves["ILSVRC2012_ID"]]
        wnids = [str(wnid) for wnid in leaves["WNID"]]
    except Exception as error:  # damaged files raise nearly anything in the reader
        raise ValueError(f"{path}: not the development kit's meta.mat ({error})") from None
    if not ids or not all(WNID.fullmatch(wnid) for wnid in wnids) or len(set(ids)) != len(ids):
        raise ValueError(f"{path}: not the development kit's meta.mat (no table of WordNet IDs)")
    return dict(zip(ids, wnids, strict=True))
