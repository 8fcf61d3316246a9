"""Contact sheets: the right pictures at the right places, text under them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.contact_sheet import contact_sheet
from data_pipelines.index import index_shards
from data_pipelines.loader import evaluation_loader
from tests.data_pipelines.samples import write_numbered_tars


def test_pictures_and_text(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path / "set", [3, 3])
    index_shards(tmp_path / "set", progress=False)
    out = tmp_path / "sheets" / "sheet.png"
    assert contact_sheet(tmp_path / "set", out, num=4, image_size=100) == 4
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * 138 + 8, 2 * 108 + 8, 3)
    batch = next(iter(evaluation_loader(tmp_path / "set", image_size=8, num=4, batch_size=4)))
    for place in range(4):
        top, left = 8 + 138 * (place // 2), 8 + 108 * (place % 2)
        assert (sheet[top : top + 100, left : left + 100] == int(batch.images[place].max())).all()
        label, caption = sheet[top + 100 : top + 115], sheet[top + 115 : top + 130]
        assert label[:, left : left + 100].min() < 100
        assert caption[:, left : left + 100].min() < 200


def test_more_than_there_are(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [3], {1: b"damaged"})
    index_shards(tmp_path, progress=False)
    assert contact_sheet(tmp_path, tmp_path / "sheet.jpg", num=64) == 3


@pytest.mark.parametrize(("num", "name"), [(0, "a.png"), (4, "a.xyz"), (4, "a")])
def test_bad_arguments(tmp_path: Path, num: int, name: str) -> None:
    write_numbered_tars(tmp_path, [3])
    index_shards(tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"at least 1|use \.png"):
        contact_sheet(tmp_path, tmp_path / name, num=num)
