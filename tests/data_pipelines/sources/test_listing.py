"""Files of labels, and the listing of a folder."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.sources.listing import find_images, read_labels


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


def test_missing_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such labels file"):
        read_labels(tmp_path / "labels.csv")


def test_listing(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.JPG", "b/c/1.webp", ".hidden/x.png", "b/._2.png", "b/note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images, rejected = find_images(tmp_path, None)
    assert [(i.key, i.path, i.class_) for i in images] == [
        ("a", "a.JPG", None),
        ("b/2", "b/2.png", "b"),
        ("b/c/1", "b/c/1.webp", "b"),
    ]
    assert [item.name for item in rejected] == ["*.txt"]


def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    real = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match=rf"{tmp_path}/b: this folder cannot be read \(Permission"):
        find_images(tmp_path, None)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, far = tmp_path / "root", tmp_path / "far"
    for path in (root / "z" / "1.png", far / "2.png", far / "deep" / "3.png"):
        path.parent.mkdir(parents=True)
        path.touch()
    (root / "a").symlink_to(root / "z")  # a second name of what is there anyway
    (root / "cats").symlink_to(far)
    (root / "more").symlink_to(far)
    (far / "deep" / "back").symlink_to(root)
    (root / ".hidden").symlink_to(far)
    images, rejected = find_images(root, None)
    assert [(i.path, i.class_) for i in images] == [
        ("cats/2.png", "cats"),
        ("cats/deep/3.png", "cats"),
        ("z/1.png", "z"),
    ]
    assert rejected == []
