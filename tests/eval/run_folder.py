"""A training run's folder, fabricated."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

LOGSNR = [-4.0, 0.0, 4.0]
BEFORE = [0.11, 0.42, 0.93]
AFTER = [0.0102, 0.0345, 0.21]
WIENER = [0.0204, 0.03, 0.25]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;$\\frac{"


def train_line(images: int, **fields: Any) -> dict[str, Any]:
    line = {
        "kind": "train",
        "step": images // 10,
        "images_seen": images,
        "loss": 1 / (1 + images / 100),
        "grad_norm": 0.5,
        "lr": 1e-3,
        "images_per_second": 64.0,
        "memory_gb": 1.5,
        "data_wait": 0.03,
        "seconds": images / 64,
    }
    return line | fields


def run_line(**fields: Any) -> dict[str, Any]:
    line = {
        "kind": "run",
        "images_seen": 0,
        "parameters": 1234567,
        "device": "cpu",
        "processes": 1,
        "threads": 2,
        "precision": "fp32",
        "total_images": 8000,
    }
    return line | fields


def validation_line(images: int, errors: list[float], weights: str = "raw") -> dict[str, Any]:
    mean = sum(errors) / len(errors)
    kept = {"kind": "validation", "step": images // 10, "images_seen": images, "weights": weights}
    return kept | {"logsnr": LOGSNR, "eps_mse": errors, "mean": mean}


def write_metrics(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail)


def write_picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(path)
