"""Folders of images: classes, labels files, scaling, and what is left out."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import BuildReport
from data_pipelines.folder import build_folder, read_labels
from data_pipelines.shards import RawSample, ShardReader
from tests.data_pipelines.samples import encode, photo, psnr


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
    options = {"size": 50, "progress": False, **options}
    return build_folder(folder, folder.parent / "out", **options)  # type: ignore[arg-type]


def read_all(report: BuildReport) -> dict[str, RawSample]:
    reader = ShardReader(report.out, report.manifest)
    counts = [shard.samples for shard in report.manifest.shards]
    samples = [reader.read(s, i) for s, count in enumerate(counts) for i in range(count)]
    return {sample.key: sample for sample in samples}


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "column 'file' and 'class' missing.*not a,b"),
        ("", "column 'file' and 'class' missing"),
        ("file,class\na.png,x\n./a.png,y\n", "line 3: a.png is listed twice"),
        ("file,class\n\xff.png,x\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_labels_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(path)
    assert "labels.csv" in str(caught.value)


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such labels file"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(ValueError, match="no such folder of images"):
        build(tmp_path / "nowhere")


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
