"""Other people's shards are read by us, and ours by them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipelines.index import index_shards
from data_pipelines.loader import evaluation_loader
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.storage import Storage
from data_pipelines.sources.tars import TarSource
from tests.data_pipelines.samples import encode, photo
from tests.data_pipelines.sources.sets import build, pixels, read_all

SIDE = 16


def picture(number: int) -> np.ndarray:
    return photo(SIDE, SIDE, number)


def loaded(root: Path, num: int) -> list[tuple[str, int, str, np.ndarray]]:
    """(key, label, caption, pixels) of each sample, in the set's order, by the loader."""
    batches = list(evaluation_loader(root, image_size=SIDE, num=num, batch_size=4))
    return [
        (batch.keys[i], int(batch.labels[i]), batch.captions[i], batch.images[i].numpy())
        for batch in batches
        for i in range(len(batch.keys))
    ]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What webdataset's ShardWriter writes: an image, a class number and a caption a sample."""
    (tmp_path / "written").mkdir()
    pattern = str(tmp_path / "written" / "images-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number in range(10):
            sample = {
                "__key__": f"sample{number:04d}",
                "png": picture(number),
                "cls": 9 - number,
                "txt": f"picture {number}",
            }
            writer.write(sample)
    return tmp_path / "written"


def test_a_set_of_webdataset_is_read(written: Path) -> None:
    report = index_shards(written, progress=False)
    assert [shard.samples for shard in report.manifest.shards] == [4, 4, 2]
    assert report.manifest.classes == tuple(str(number) for number in range(10))
    samples = {key: rest for key, *rest in loaded(written, 10)}
    assert sorted(samples) == [f"sample{number:04d}" for number in range(10)]
    for key, (label, caption, image) in samples.items():
        number = int(key[-4:])
        assert (label, caption) == (9 - number, f"picture {number}")
        assert np.array_equal(image, picture(number).transpose(2, 0, 1))


def test_a_set_of_webdataset_is_made_into_ours(written: Path, tmp_path: Path) -> None:
    report = build(TarSource(written), tmp_path / "out", shard_samples=5)
    assert [shard.samples for shard in report.manifest.shards] == [5, 5]
    assert report.manifest.classes == tuple(str(number) for number in range(10))
    for number, sample in enumerate(read_all(report).values()):
        assert (sample.key, sample.class_) == (f"sample{number:04d}", str(9 - number))
        assert np.array_equal(pixels(sample.image), picture(number))


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A folder as img2dataset leaves it: tars, a table and statistics beside each."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root = tmp_path / "downloaded"
    root.mkdir()
    for shard in range(2):
        rows: list[dict[str, Any]] = []
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for place in range(4):
                number = 4 * shard + place
                failed = place == 2  # it is in the table, but not in the tar
                row = {
                    "caption": None if number == 1 else f"alt text {number}",
                    "url": f"https://example.org/{number}.jpg",
                    "key": f"{shard:05d}{place:04d}",
                    "status": "failed_to_download" if failed else "success",
                    "error_message": "HTTP Error 404: Not Found" if failed else None,
                    "width": None if failed else SIDE,
                    "height": None if failed else SIDE,
                    "original_width": None if failed else 640,
                    "original_height": None if failed else 640,
                    "exif": None if failed else "{}",
                    "sha256": None if failed else f"{number:064x}",
                }
                rows.append(row)
                if not failed:
                    members = {
                        "jpg": encode(picture(number), "JPEG", quality=100, subsampling=0),
                        "json": json.dumps(row, indent=4).encode(),
                        "txt": (row["caption"] or "").encode(),
                    }
                    for extension, data in members.items():
                        info = tarfile.TarInfo(f"{row['key']}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / f"{shard:05d}.parquet")
        stats = {"count": 4, "successes": 3, "failed_to_download": 1, "failed_to_resize": 0}
        (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return root


DOWNLOADED = [0, 1, 3, 4, 5, 7]


def test_an_output_folder_of_img2dataset_is_read(downloaded: Path) -> None:
    report = index_shards(downloaded, progress=False)
    assert [shard.samples for shard in report.manifest.shards] == [3, 3]
    assert not report.bad
    samples = {key: rest for key, *rest in loaded(downloaded, 6)}
    keys = [f"{number // 4:05d}{number % 4:04d}" for number in DOWNLOADED]
    assert sorted(samples) == keys
    for number, key in zip(DOWNLOADED, keys, strict=True):
        label, caption, image = samples[key]
        assert (label, caption) == (-1, "" if number == 1 else f"alt text {number}")
        error = image.astype(int) - picture(number).transpose(2, 0, 1)
        assert np.abs(error).mean() < 2


def test_an_output_folder_of_img2dataset_is_made_into_ours(
    downloaded: Path, tmp_path: Path
) -> None:
    report = build(TarSource(downloaded), tmp_path / "out")
    captions = [sample.caption or "" for sample in read_all(report).values()]
    assert captions == ["" if n == 1 else f"alt text {n}" for n in DOWNLOADED]
    assert report.manifest.classes == ()


@pytest.mark.parametrize("size", [None, 8])
def test_plain_webdataset_reads_ours(tmp_path: Path, size: int | None) -> None:
    images = {f"class{n % 3}/{n}": encode(picture(n), "PNG") for n in range(7)}
    for key, data in images.items():
        path = tmp_path / "images" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = FolderSource(tmp_path / "images", storage=Storage(size))
    report = build(source, tmp_path / "out", shard_samples=3)
    urls = [str(tmp_path / "out" / shard.path) for shard in report.manifest.shards]
    assert len(urls) == 3
    stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil")
    found = {sample["__key__"]: sample for sample in stream}
    assert set(found) == set(images)
    side = size or SIDE
    for key, data in images.items():
        sample, ours = found[key], read_all(report)[key]
        assert isinstance(sample["png"], Image.Image)
        assert np.array_equal(np.asarray(sample["png"]), pixels(ours.image))
        if size is None:
            assert np.array_equal(np.asarray(sample["png"]), pixels(data))
        assert sample["json"] == {"class": key.split("/")[0], "width": side, "height": side}
