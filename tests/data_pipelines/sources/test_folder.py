"""Folders of images: classes, labels files, scaling, and what is left out."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.building.report import BuildReport
from data_pipelines.shards import RawSample
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.storage import Filters, Storage
from tests.data_pipelines.samples import encode, photo, psnr
from tests.data_pipelines.sources import sets
from tests.data_pipelines.sources.sets import listed, read_all, refused, tree_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    images = {
        "cats/tom.jpg": encode(photo(60, 90, 1), "JPEG", quality=95, subsampling=0),
        "cats/old/kit.PNG": encode(photo(120, 80, 2)),
        "dogs/rex.webp": encode(photo(30, 30, 3), "WEBP", lossless=True),
        "dogs/liar.png": encode(photo(20, 40, 4), "JPEG"),
        "loose.bmp": encode(photo(10, 12, 5), "BMP"),
        "cats/broken.jpg": encode(photo(60, 60), "JPEG")[:500],
        "cats/empty.png": b"",
        "dogs/note.png": b"a text file",
        "dogs/notes.txt": b"not an image",
        "dogs/other.txt": b"not an image",
        ".hidden/secret.png": encode(photo(8, 8)),
        "cats/._tom.jpg": b"a resource fork",
    }
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def build(folder: Path, **options: object) -> BuildReport:
    given = {"labels": None, "size": 50, "overwrite": False, "workers": 1, **options}
    size, overwrite, workers = (given.pop(name) for name in ("size", "overwrite", "workers"))
    source = FolderSource(folder, storage=Storage(size), **given)  # type: ignore[arg-type]
    return sets.build(source, folder.parent / "out", overwrite=overwrite, workers=workers)


def pixels(sample: RawSample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))


def test_classes_sizes_and_bytes(folder: Path) -> None:
    report = build(folder)
    samples = read_all(report)
    assert list(samples) == ["cats/old/kit", "cats/tom", "dogs/liar", "dogs/rex", "loose"]
    assert report.manifest.classes == ("cats", "dogs")
    assert report.manifest.class_counts == (2, 2)
    assert [s.class_ for s in samples.values()] == ["cats", "cats", "dogs", "dogs", None]
    sizes = {key: (s.width, s.height, s.extension) for key, s in samples.items()}
    assert sizes == {
        "cats/old/kit": (50, 75, "png"),  # scaled: 80 x 120
        "cats/tom": (75, 50, "jpg"),  # scaled: 90 x 60
        "dogs/rex": (30, 30, "webp"),  # small ones keep their bytes
        "dogs/liar": (40, 20, "jpg"),  # called .png, but it is a JPEG
        "loose": (12, 10, "bmp"),
    }
    for key, name in [("dogs/rex", "dogs/rex.webp"), ("dogs/liar", "dogs/liar.png")]:
        assert samples[key].image == (folder / name).read_bytes()
    for key, source in [("cats/old/kit", photo(120, 80, 2)), ("cats/tom", photo(60, 90, 1))]:
        stored = pixels(samples[key])
        assert stored.shape == (samples[key].height, samples[key].width, 3)
        scaled = Image.fromarray(source).resize(stored.shape[1::-1], Image.Resampling.LANCZOS)
        assert psnr(stored, np.asarray(scaled)) > 35


def test_what_is_left_out_is_reported(folder: Path) -> None:
    rejected = {item.name: item.reason for item in build(folder).rejected}
    assert set(rejected) == {"cats/broken.jpg", "cats/empty.png", "dogs/note.png", "*.txt"}
    assert "damaged JPEG" in rejected["cats/broken.jpg"]
    assert "empty" in rejected["cats/empty.png"]
    assert "not a file of a known format" in rejected["dogs/note.png"]
    assert "2 of these files" in rejected["*.txt"]


def test_rotated_photographs_stay_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(encode(photo(60, 120), "JPEG", exif=exif))
    (sample,) = read_all(build(tmp_path / "p")).values()
    assert (sample.width, sample.height) == (50, 100)
    turned = Image.fromarray(np.rot90(photo(60, 120), -1)).resize((50, 100))
    assert psnr(pixels(sample), np.asarray(turned)) > 30
    assert not Image.open(io.BytesIO(sample.image)).getexif()  # or it would be turned again


def test_labels_file(folder: Path) -> None:
    labels = folder / "labels.csv"
    labels.write_text(
        "contributor,file,class,caption,kids\n"
        "7,cats/tom.jpg,Tomcat,a cat,no\n"
        "7,./dogs/rex.webp,Dog,,no\n"
        '8,loose.bmp,,"a, loose one",yes\n'
        "9,gone.jpg,Dog,,\n"
        "9,../outside.jpg,Dog,,\n"
    )
    report = build(folder, labels=labels)
    samples = read_all(report)
    found = {key: (s.class_, s.caption) for key, s in samples.items()}
    assert found == {
        "cats/tom": ("Tomcat", "a cat"),
        "dogs/rex": ("Dog", None),
        "loose": (None, "a, loose one"),
    }
    rejected = {item.name: item.reason for item in report.rejected}
    assert "no such image" in rejected["gone.jpg"]
    assert "no such image" in rejected["../outside.jpg"]
    assert "not listed" in rejected["cats/old/kit.PNG"]


def test_awkward_names_get_plain_unique_keys(tmp_path: Path) -> None:
    names = ["a.b.png", "a b.png", "same.jpg", "same.png", "Same.webp", "ü.png", "x" * 200 + ".png"]
    root = tmp_path / "p"
    root.mkdir()
    for number, name in enumerate([*names, "plain-1_x.png"]):
        (root / name).write_bytes(encode(photo(8, 8, number)))
    first = set(read_all(build(root)))
    assert len(first) == 8
    assert "plain-1_x" in first
    assert all(key.isascii() and "." not in key and len(key) <= 80 for key in first)
    (root / "another.png").write_bytes(encode(photo(8, 8)))
    assert set(read_all(build(root, overwrite=True))) == first | {"another"}


def test_reuse_follows_the_folder(folder: Path) -> None:
    assert not build(folder).reused
    assert build(folder).reused
    with pytest.raises(ValueError, match=r"size: 50 -> 40.*--overwrite"):
        build(folder, size=40)
    (folder / "cats" / "new.png").write_bytes(encode(photo(8, 8)))
    with pytest.raises(ValueError, match=r"images: 8 -> 9"):
        build(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder of images"):
        build(tmp_path / "nowhere")


def test_any_number_of_workers_builds_the_same(folder: Path, tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        source = FolderSource(folder, storage=Storage(20), drop_duplicates=True)
        out = tmp_path / f"out{workers}"
        sets.build(source, out, workers=workers, shard_samples=2, validation=0.3)
        results.append(tree_bytes(out))
    assert results[0] == results[1]


def test_duplicates_the_first_in_order_stays(folder: Path) -> None:
    (folder / "again.jpg").write_bytes((folder / "cats" / "tom.jpg").read_bytes())
    (folder / "zebra.png").write_bytes((folder / "dogs" / "rex.webp").read_bytes())
    source = FolderSource(folder, drop_duplicates=True)
    reasons = refused(source)
    assert reasons["cats/tom.jpg"] == "duplicate: the same bytes as again.jpg"
    assert reasons["zebra.png"] == "duplicate: the same bytes as dogs/rex.webp"
    assert sum(reason.startswith("duplicate") for reason in reasons.values()) == 2
    assert list(read_all(build(folder, drop_duplicates=True))) == [
        "again",
        "cats/old/kit",
        "dogs/liar",
        "dogs/rex",
        "loose",
    ]


def test_filters(folder: Path) -> None:
    filters = Filters(min_side=15, max_aspect=1.5)
    report = build(folder, filters=filters)
    assert list(read_all(report)) == ["cats/old/kit", "cats/tom", "dogs/rex"]
    assert report.tally.rejected["too small"] == 1
    assert report.tally.rejected["too wide"] == 1


def test_groups_come_from_the_labels(folder: Path) -> None:
    labels = folder.parent / "labels.csv"
    labels.write_text("by,file,class\nann,cats/tom.jpg,cat\n,loose.bmp,\nbob,dogs/rex.webp,dog\n")
    source = FolderSource(folder, labels, group="by")
    groups = {item.key: item.group for item in listed(source)}
    assert groups == {"cats/tom": "ann", "loose": None, "dogs/rex": "bob"}
    with pytest.raises(ValueError, match="column 'who' missing"):
        list(FolderSource(folder, labels, group="who").items())
    with pytest.raises(ValueError, match="is a column of a labels file; name one"):
        FolderSource(folder, group="by")
    captions = FolderSource(folder, labels, filters=Filters(min_caption=1))
    assert listed(captions) == []  # told by the listing, before an image is read
    assert refused(captions)["loose.bmp"] == "caption too short: 0 characters"
