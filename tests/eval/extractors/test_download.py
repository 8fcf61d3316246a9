import hashlib
from pathlib import Path

import pytest

from eval.extractors.base import WeightsMissingError
from eval.extractors.download import OFFLINE, download, is_offline

CONTENT = bytes(range(256)) * 8192  # 2 MiB: more than one piece
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OFFLINE, raising=False)


@pytest.fixture
def url(tmp_path: Path) -> str:
    source = tmp_path / "source.bin"
    source.write_bytes(CONTENT)
    return source.as_uri()


def fetch(url: str, path: Path, sha256: str = SHA256, most: int = len(CONTENT)) -> None:
    download(url, path, sha256, most_bytes=most, remedy="for toy: the remedy")


def test_a_file_arrives_whole(url: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache" / "a.pth"
    fetch(url, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_another_file_leaves_no_trace(url: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "a.pth"
    with pytest.raises(WeightsMissingError, match=f"it brought SHA-256 {SHA256}, not 00.*the rem"):
        fetch(url, path, sha256="00")
    with pytest.raises(WeightsMissingError, match="more than 2,097,151 bytes"):
        fetch(url, path, most=len(CONTENT) - 1)
    with pytest.raises(WeightsMissingError, match=r"could not be fetched.*the remedy"):
        fetch(url + "x", path)
    assert not list(path.parent.iterdir())


def test_a_wish_to_stay_offline_is_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_offline()
    monkeypatch.setenv(OFFLINE, "0")
    assert not is_offline()
    monkeypatch.setenv(OFFLINE, "1")
    assert is_offline()
    with pytest.raises(WeightsMissingError, match=f"no download while {OFFLINE} is set"):
        fetch(url, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
