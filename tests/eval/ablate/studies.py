"""Small studies for tests: configs that build in milliseconds, and are never trained."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "data": {"path": "nowhere", "image_size": 16},
    "model": {"patch_size": 4, "channels": [16], "blocks": [], "depth": 1, "head_dim": 16},
    "train": {"batch_size": 8},
    "sampling": {"steps": 4},
}


def study_tree(**changes: Any) -> dict[str, Any]:
    """A study of a 2 x 2 grid and two seeds; a change of None takes a key out."""
    tree: dict[str, Any] = {
        "about": "a question",
        "base": BASE,
        "axes": {
            "schedule": {
                "cosine": {"schedule": {"type": "cosine"}},
                "shifted_8": {"schedule": {"type": "shifted", "reference": 8}},
            },
            "objective.prediction": ["eps", "x0"],
        },
        "seeds": [0, 1],
        "budget": {"images": 64},
        "measure": {"num": 8},
    }
    tree |= changes
    return {key: value for key, value in tree.items() if value is not None}


def write_study(folder: Path, **changes: Any) -> Path:
    """`study_tree` as a file."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_tree(**changes), sort_keys=False))
    return path
