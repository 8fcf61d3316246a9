"""Hugging Face data sets: the images' own bytes, the ClassLabel's order, one split."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.sample import Rejected
from data_pipelines.sources import huggingface
from data_pipelines.sources.huggingface import HuggingFaceSource
from data_pipelines.sources.storage import Filters
from tests.data_pipelines.samples import encode, photo
from tests.data_pipelines.sources.sets import build, listed, read_all, refused, tree_bytes

datasets = pytest.importorskip("datasets")

NAMES = ["zebra", "ant", "yak"]  # not in the order of the alphabet
LABELS = [2, 0, 0, -1, 2]
TEXTS = ["a yak", "", "another zebra", "what is it?", None]
BY = ["ann", "bob", "ann", "cat", "bob"]


def images() -> list[bytes]:
    return [encode(photo(20, 30, n), "JPEG" if n % 2 else "PNG") for n in range(5)]


def rows(**columns: list[Any]) -> Any:
    """A data set whose features are as the hub's image sets have them."""
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "text": datasets.Value("string"),
        "by": datasets.Value("string"),
    }
    values = {
        "image": [{"bytes": data, "path": None} for data in images()],
        "label": LABELS,
        "text": TEXTS,
        "by": BY,
        **columns,
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    rows().save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_what_is_in_it_is_stored(saved: str, tmp_path: Path) -> None:
    report = build(HuggingFaceSource(saved, group="by", licence="mine"), tmp_path / "out")
    samples = list(read_all(report).values())
    assert [sample.image for sample in samples] == images()
    assert [s.class_ for s in samples] == ["yak", "zebra", "zebra", None, "yak"]
    assert [s.caption for s in samples] == [text or None for text in TEXTS]
    assert report.manifest.classes == tuple(NAMES)
    assert report.manifest.class_counts == (2, 0, 2)
    assert report.manifest.source == "Hugging Face data set saved"
    assert [item.group for item in listed(HuggingFaceSource(saved, group="by"))] == BY
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert build(HuggingFaceSource(saved, group="by", licence="mine"), tmp_path / "out").reused


def test_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": rows(), "test": rows().select([4, 0])})
    both.save_to_disk(tmp_path / "both")
    source = HuggingFaceSource(str(tmp_path / "both"), split="test")
    assert [item.caption for item in listed(source)] == [None, "a yak"]
    assert source.title == "Hugging Face data set both, test"
    for split in (None, "validation"):
        with pytest.raises(ValueError, match="choose a split with --split, one of train, test"):
            list(HuggingFaceSource(str(tmp_path / "both"), split=split).items())
    rows().save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="is a single split; leave --split out"):
        list(HuggingFaceSource(str(tmp_path / "one"), split="train").items())


def test_a_folder_of_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    source = HuggingFaceSource(str(tmp_path / "hub"), split="train")
    samples = list(read_all(build(source, tmp_path / "out")).values())
    assert [sample.image for sample in samples] == images()
    assert [s.class_ for s in samples] == ["yak", "zebra", "zebra", None, "yak"]


def test_columns_by_name(tmp_path: Path) -> None:
    data = [{"bytes": image, "path": None} for image in images()]
    table = datasets.Dataset.from_dict(
        {"a": data, "b": data[::-1], "kind": [3, 1, 3, 0, 1], "alt": ["x"] * 5, "n": [None] * 5},
        features=datasets.Features(
            {
                "a": datasets.Image(),
                "b": datasets.Image(),
                "kind": datasets.Value("int64"),
                "alt": datasets.Value("string"),
                "n": datasets.Value("null"),
            }
        ),
    )
    table.save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"2 columns of type Image \(a, b\).*--image"):
        list(HuggingFaceSource(saved).items())
    with pytest.raises(ValueError, match="no column 'nope'; it has a, b, kind, alt, n"):
        list(HuggingFaceSource(saved, image="b", caption="nope").items())
    source = HuggingFaceSource(saved, image="b", class_="kind", caption="alt")
    report = build(source, tmp_path / "out")
    samples = list(read_all(report).values())
    assert [sample.image for sample in samples] == images()[::-1]
    assert report.manifest.classes == ("0", "1", "2", "3")  # numbers stay the labels
    assert [s.caption for s in samples] == ["x"] * 5
    plain = HuggingFaceSource(saved, image="a")
    assert [item.class_ for item in listed(plain)] == [None] * 5
    for caption in ("b", "n"):
        with pytest.raises(ValueError, match=rf"column '{caption}' holds .*, not text or integers"):
            list(HuggingFaceSource(saved, image="a", caption=caption).items())


def test_no_image_column(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"0 columns of type Image \(x\)"):
        list(HuggingFaceSource(str(tmp_path / "saved")).items())


def test_bad_rows(tmp_path: Path) -> None:
    data: list[Any] = [{"bytes": image, "path": None} for image in images()]
    data[1] = None
    data[2] = {"bytes": images()[2][:200], "path": None}
    rows(image=data).save_to_disk(tmp_path / "saved")
    source = HuggingFaceSource(str(tmp_path / "saved"))
    results = [source.sample(item) for item in listed(source)]
    reasons = {r.name: r.reason for r in results if isinstance(r, Rejected)}
    assert list(reasons) == ["row 1", "row 2"]
    assert "no image in this row" in reasons["row 1"]
    assert "damaged PNG" in reasons["row 2"]
    report = build(source, tmp_path / "out")
    stored = [sample.image for sample in read_all(report).values()]
    assert stored == [images()[number] for number in (0, 3, 4)]


def test_files_that_a_data_set_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for number, data in enumerate(images()):
        path = tmp_path / "files" / f"class{number % 2}" / f"{number}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".jpg" if number % 2 else ".png").write_bytes(data)
    source = HuggingFaceSource(str(tmp_path / "files"))
    refusal = source.sample(listed(source)[0])
    assert isinstance(refusal, Rejected)
    assert "outside the data set; allow it (--allow_absolute)" in refusal.reason
    allowed = HuggingFaceSource(str(tmp_path / "files"), allow_absolute=True)
    samples = read_all(build(allowed, tmp_path / "out")).values()
    found = {sample.image: sample.class_ for sample in samples}
    assert found == {data: f"class{number % 2}" for number, data in enumerate(images())}


def test_duplicates_and_filters(tmp_path: Path) -> None:
    data = [{"bytes": images()[n], "path": f"{k}.png"} for k, n in enumerate([0, 1, 0, 2, 1])]
    rows(image=data).save_to_disk(tmp_path / "saved")
    source = HuggingFaceSource(
        str(tmp_path / "saved"), drop_duplicates=True, filters=Filters(min_caption=1)
    )
    assert [item.place for item in listed(source)] == [0, 3]
    assert refused(source) == {
        "row 1": "caption too short: 0 characters",
        "row 2": "duplicate: the same bytes as row 0",
        "row 4": "caption too short: 0 characters",
    }
    for workers in (1, 2):
        build(source, tmp_path / f"out{workers}", workers=workers, shard_samples=1)
    assert tree_bytes(tmp_path / "out1") == tree_bytes(tmp_path / "out2")


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be opened as a data set"):
        list(HuggingFaceSource(str(tmp_path / "nowhere")).items())


def test_versions_that_run_code_are_refused(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ValueError, match=r"version 3\.6\.0, which may run a data set's own code"):
        list(HuggingFaceSource(saved).items())


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(huggingface.__dict__["__builtins__"], "__import__", _without_datasets)
    with pytest.raises(ValueError, match=r"pip install 'simple-diffusion\[hf\]'"):
        list(HuggingFaceSource("any").items())


def _without_datasets(name: str, *args: Any, **options: Any) -> Any:
    if name == "datasets":
        raise ImportError(name)
    return _IMPORT(name, *args, **options)


_IMPORT = __import__


def test_a_class_beyond_the_names(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "saved")
    source = HuggingFaceSource(str(tmp_path / "saved"))
    source.__dict__["_label_names"] = tuple(NAMES[:2])
    assert refused(source) == {
        f"row {n}": "bad class: number 2, and there are names for 2" for n in (0, 4)
    }


def test_what_may_pass_is_not_taken_for_a_bad_image(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HuggingFaceSource(saved, drop_duplicates=True)
    for number, raised in ((errno.EIO, True), (errno.ENOENT, False)):

        def fail(self: Any, item: Any, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(HuggingFaceSource, "_read", fail)
        if raised:
            with pytest.raises(OSError, match="Input/output error"):
                list(source.items())
        else:
            assert len(listed(source)) == 5


def test_saved_sets_have_no_configurations(saved: str) -> None:
    with pytest.raises(ValueError, match="leave --config out"):
        HuggingFaceSource(saved, config="other").recipe()


def test_the_times_of_files_are_no_part_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    rows().to_parquet(folder / "train.parquet")
    first = HuggingFaceSource(str(folder)).recipe()
    os.utime(folder / "train.parquet", (1, 1))
    assert HuggingFaceSource(str(folder)).recipe() == first
    rows().select(range(3)).to_parquet(folder / "train.parquet")
    assert HuggingFaceSource(str(folder)).recipe()["fingerprint"] != first["fingerprint"]
