"""ImageNet's own layout: the standard labels, and no other numbering taken for them.

The miniature has real WordNet IDs with their real ILSVRC2012_IDs and their real places in the
sorted order of the full list, where these differ from each other as they do there.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources import imagenet_labels
from data_pipelines.sources.imagenet import ImageNetSource
from data_pipelines.sources.imagenet_labels import read_ids, read_synsets
from tests.data_pipelines.samples import encode, photo
from tests.data_pipelines.sources.sets import build, listed, read_all, refused, tree_bytes

# ILSVRC2012_ID -> WordNet ID and names; the ID's order is not the WordNet IDs'.
IDS = {
    1: ("n02119789", "kit fox, Vulpes macrotis"),
    2: ("n02100735", "English setter"),
    3: ("n02110185", "Siberian husky"),
    4: ("n02096294", "Australian terrier"),
}
SORTED = ("n02096294", "n02100735", "n02110185", "n02119789")
TRUTH = [3, 1, 4, 1, 2, 4]  # the classes of the validation images, as the kit gives them
TRAIN = {"n02119789": 3, "n02100735": 1, "n02110185": 2, "n02096294": 2}


def picture(seed: int) -> bytes:
    return encode(photo(12, 16, seed), "JPEG", quality=95)


def validation_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture(autouse=True)
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All classes that there are: those of these tests."""
    monkeypatch.setattr(imagenet_labels, "NUM_CLASSES", len(IDS))


@pytest.fixture
def train(tmp_path: Path) -> Path:
    for wnid, count in TRAIN.items():
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for number in range(count):
            path = tmp_path / "train" / wnid / f"{wnid}_{10 * number}.JPEG"
            path.write_bytes(picture(int(wnid[1:]) + number))
    (tmp_path / "train" / "README.txt").write_text("not a class")
    return tmp_path / "train"


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for number in range(1, 7):
        (tmp_path / "val" / validation_name(number)).write_bytes(picture(number))
    return tmp_path / "val"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    folder.mkdir()
    truth = "".join(f"{number}\n" for number in TRUTH)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    lines = [f"{w} {i} {names.split(',')[0].replace(' ', '_')}\n" for i, (w, names) in IDS.items()]
    (folder / "map_clsloc.txt").write_text("".join(lines))
    solution = [f"ILSVRC2012_val_{n:08d},{IDS[i][0]} 1 2 3 4 " for n, i in enumerate(TRUTH, 1)]
    text = "\n".join(["ImageId,PredictionString", *solution[::-1]])
    (folder / "LOC_val_solution.csv").write_text(text)
    names = "".join(f"{wnid} {name}\n" for wnid, name in sorted(IDS.values()))
    (folder / "LOC_synset_mapping.txt").write_text(names)
    return folder


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_bytes(files: dict[str, bytes], folder: Path) -> bytes:
    return write_archive(folder / "inner.tar", files).read_bytes()


def test_training_folders(train: Path, tmp_path: Path) -> None:
    report = build(ImageNetSource(train), tmp_path / "out")
    assert report.manifest.classes == SORTED
    assert report.manifest.class_counts == (2, 1, 2, 3)
    samples = read_all(report)
    assert list(samples)[:3] == [
        "n02096294/n02096294_0",
        "n02096294/n02096294_10",
        "n02100735/n02100735_0",
    ]
    for key, sample in samples.items():
        assert sample.class_ == key.split("/")[0]
        assert sample.image == (train / f"{key}.JPEG").read_bytes()
    assert "non-commercial" in report.manifest.licence


def test_training_archive_is_the_folders(train: Path, tmp_path: Path) -> None:
    inner = {}
    for wnid in TRAIN:  # in no order
        images = {path.name: path.read_bytes() for path in sorted((train / wnid).iterdir())[::-1]}
        inner[f"{wnid}.tar"] = tar_bytes(images, tmp_path)
    archive = write_archive(tmp_path / "ILSVRC2012_img_train.tar", inner)
    folders = build(ImageNetSource(train), tmp_path / "a")
    archived = build(ImageNetSource(archive), tmp_path / "b")
    assert folders.manifest.classes == archived.manifest.classes
    tars = [tree_bytes(tmp_path / name)["shard-000000.tar"] for name in ("a", "b")]
    assert tars[0] == tars[1]


def truths(kit: Path) -> list[tuple[Path, Path | None]]:
    numbers = kit / "ILSVRC2012_validation_ground_truth.txt"
    return [(kit / "LOC_val_solution.csv", None), (numbers, kit / "map_clsloc.txt")]


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("archived", [False, True])
def test_validation(validation: Path, kit: Path, tmp_path: Path, form: int, archived: bool) -> None:
    truth, meta = truths(kit)[form]
    path = validation
    if archived:
        images = {file.name: file.read_bytes() for file in validation.iterdir()}
        path = write_archive(tmp_path / "ILSVRC2012_img_val.tar", images)
    report = build(ImageNetSource(path, truth, meta), tmp_path / "out")
    assert report.manifest.classes == SORTED
    samples = read_all(report)
    assert list(samples) == [validation_name(number)[:-5] for number in range(1, 7)]
    for number, sample in enumerate(samples.values(), 1):
        assert sample.image == picture(number)
        assert sample.class_ == IDS[TRUTH[number - 1]][0]
    # The trap: the kit's number less one is not the label.
    labels = [report.manifest.classes.index(str(s.class_)) for s in samples.values()]
    assert labels == [2, 3, 0, 3, 1, 0]
    assert labels != [number - 1 for number in TRUTH]


def test_matlab_table(validation: Path, kit: Path) -> None:
    io_module = pytest.importorskip("scipy.io")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, names, 0) for number, (wnid, names) in IDS.items()]
    rows.append((5, "n02084071", "dog, domestic dog", 189))  # a class of classes
    table = np.array([[row] for row in rows], dtype=kinds)
    io_module.savemat(kit / "meta.mat", {"synsets": table})
    assert read_ids(kit / "meta.mat") == {number: wnid for number, (wnid, _) in IDS.items()}
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    by_mat = listed(ImageNetSource(validation, truth, kit / "meta.mat"))
    assert by_mat == listed(ImageNetSource(validation, truth, kit / "map_clsloc.txt"))
    (kit / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(ValueError, match=r"meta\.mat: not the development kit's meta\.mat"):
        read_ids(kit / "meta.mat")


def test_names_and_a_part_of_the_classes(train: Path, kit: Path, tmp_path: Path) -> None:
    for wnid in SORTED[:2]:
        for path in (train / wnid).iterdir():
            path.unlink()
        (train / wnid).rmdir()
    synsets = kit / "LOC_synset_mapping.txt"
    report = build(ImageNetSource(train, synsets=synsets), tmp_path / "out")
    assert report.manifest.classes == (
        "n02096294 Australian terrier",
        "n02100735 English setter",
        "n02110185 Siberian husky",
        "n02119789 kit fox",
    )
    assert report.manifest.class_counts == (0, 0, 2, 3)  # the others keep their labels
    synsets.write_text("n02110185 Siberian husky\n")
    with pytest.raises(ValueError, match="does not name n02119789"):
        list(ImageNetSource(train, synsets=synsets).items())


def test_what_does_not_belong_together_is_told(validation: Path, kit: Path) -> None:
    (validation / validation_name(2)).unlink()
    (validation / validation_name(7)).write_bytes(picture(7))
    (validation / "stray.JPEG").write_bytes(picture(8))
    (validation / validation_name(3)).write_bytes(picture(3)[:200])
    source = ImageNetSource(validation, kit / "LOC_val_solution.csv")
    assert refused(source) == {
        "ILSVRC2012_val_00000007": "no label: the ground truth does not list it",
        "stray": "no label: the ground truth does not list it",
        "ILSVRC2012_val_00000002": "missing: there is no such image",
    }
    results = [source.sample(item) for item in listed(source)]
    assert [type(result) for result in results] == [Sample, Rejected, Sample, Sample, Sample]


def test_numbers_without_their_meaning_are_refused(validation: Path, kit: Path) -> None:
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    with pytest.raises(ValueError, match=r"not the sorted order of the WordNet IDs; name .*--meta"):
        list(ImageNetSource(validation, truth).items())
    with pytest.raises(ValueError, match="says what a ground truth means; name that too"):
        ImageNetSource(validation, meta=kit / "map_clsloc.txt")
    source = ImageNetSource(validation, kit / "LOC_val_solution.csv", kit / "map_clsloc.txt")
    with pytest.raises(ValueError, match=r"names WordNet IDs itself; leave .*map_clsloc"):
        list(source.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The sorted order, which is what the labels are, is not what the kit numbers by.
        ("".join(f"{w} {n}\n" for n, w in enumerate(SORTED, 1)), "in sorted order, so these are"),
        ("".join(f"{w} {n - 1}\n" for n, (w, _) in IDS.items()), "are 1, 2, ... without a gap"),
        ("n02119789 1\nn02119789 2\n", "one for each WordNet ID"),
        ("n02119789 1\nn02100735 1\n", "line 2: 1 is listed twice"),
        ("n02119789 kit_fox\n", "line 1: not a WordNet ID and an ILSVRC2012_ID"),
        ("1 2\n", "line 1: not a WordNet ID and an ILSVRC2012_ID"),
        ("n02119789 1\nn02100735 3\n", "without a gap"),
    ],
)
def test_other_numberings_are_refused(kit: Path, text: str, message: str) -> None:
    (kit / "map_clsloc.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_ids(kit / "map_clsloc.txt")
    assert "map_clsloc.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "1\n9\n", r"line 2: .*map_clsloc.txt has no ILSVRC2012_ID 9"),
        ("t.txt", "ILSVRC2012_val_00000001.JPEG 65\n", "line 1: not a number alone"),
        ("t.csv", "ImageId,wnid\n", "line 1: must name the columns ImageId,PredictionString"),
        ("t.csv", "ImageId,PredictionString\na,65\n", "line 2: not an image and a WordNet ID"),
        (
            "t.csv",
            "ImageId,PredictionString\na,n02119789 1\na,n02100735 1\n",
            "line 3: a is listed twice",
        ),
        ("gone.csv", None, "there is no such file"),
    ],
)
def test_bad_ground_truths(
    validation: Path, kit: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (kit / name).write_text(text)
    meta = kit / "map_clsloc.txt" if name.endswith("txt") else None
    with pytest.raises(ValueError, match=message):
        list(ImageNetSource(validation, kit / name, meta).items())


def test_bad_synsets(kit: Path) -> None:
    path = kit / "LOC_synset_mapping.txt"
    for text, message in [
        ("tench\n", "line 1: not a WordNet ID and a name"),
        ("n01440764 tench\nn01440764 tench\n", "line 2: n01440764 is listed twice"),
        ("", "lists no classes"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_synsets(path)


def test_nothing_of_imagenet(tmp_path: Path, kit: Path, train: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder or archive"):
        list(ImageNetSource(tmp_path / "gone").items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folders or tars called n01440764"):
        list(ImageNetSource(tmp_path / "empty").items())
    with pytest.raises(ValueError, match=r"files called ILSVRC2012_val_00000001\.JPEG"):
        list(ImageNetSource(tmp_path / "empty", kit / "LOC_val_solution.csv").items())


@pytest.mark.parametrize("damage", ["cut", "header", "nested size", "nothing in it", "not a tar"])
def test_damaged_archives(train: Path, tmp_path: Path, damage: str) -> None:
    images = {path.name: path.read_bytes() for path in (train / SORTED[0]).iterdir()}
    inner = tar_bytes(images, tmp_path)
    archive = write_archive(tmp_path / "t.tar", {f"{SORTED[0]}.tar": inner})
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 3]
    elif damage == "header":
        data[512 + 512 + 1024 : 512 + 512 + 1536] = b"\xff" * 512
    elif damage == "nested size":
        wide = tar_bytes({"n02096294_0.JPEG": bytes(4096)}, tmp_path)[:2048]
        data = bytearray(write_archive(tmp_path / "t.tar", {"n02096294.tar": wide}).read_bytes())
    elif damage == "nothing in it":
        files = {"n02096294.tar": inner, "n02096295.tar": bytes(10240)}
        data = bytearray(write_archive(tmp_path / "t.tar", files).read_bytes())
    else:
        data = bytearray(b"\x01" * 4096)
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"t\.tar: not a whole, uncompressed tar"):
        list(ImageNetSource(archive).items())


def test_a_part_of_the_ground_truth_needs_all_names(
    validation: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the labels 0, 1, ... would be of the classes that happen to be listed."""
    source = ImageNetSource(validation, kit / "LOC_val_solution.csv")
    assert len(source.classes) == len(IDS)
    monkeypatch.setattr(imagenet_labels, "NUM_CLASSES", len(IDS) + 1)
    part = ImageNetSource(validation, kit / "LOC_val_solution.csv")
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv: names 4 classes of 5.*--synsets"):
        list(part.items())
