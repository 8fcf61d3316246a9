import json
from pathlib import Path

import pytest

from tests.eval.run_folder import (
    AFTER,
    BEFORE,
    LOGSNR,
    WIENER,
    run_line,
    train_line,
    validation_line,
    write_metrics,
    write_picture,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose every part is present."""
    folder = tmp_path / "first-light"
    folder.mkdir()
    (folder / "config.yaml").write_text("model:\n  width: 64\n")
    lines = [run_line(), validation_line(0, BEFORE)]
    lines += [train_line(n) for n in range(100, 4000, 100)]
    lines += [validation_line(4000, AFTER)]
    write_metrics(folder, lines)
    wiener = {"logsnr": LOGSNR, "eps_mse": WIENER, "images": 4096}
    (folder / "wiener.json").write_text(json.dumps(wiener))
    write_picture(folder / "samples" / "final.png", (200, 10, 10))
    for images in (0, 2000, 4000):
        write_picture(folder / "samples" / f"{images:09d}.png", (10, 10, 200))
    return folder
