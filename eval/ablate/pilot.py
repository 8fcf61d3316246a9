"""How many images fit into a budget of minutes: a short pilot of the very run tells."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.run_log import read_run
from simple_diffusion.config import RunConfig
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.signals import StopRequested

_LINES = 8  # measurements of speed in a pilot; the first half is warming up
_FILE = "budget.json"


def images_in_minutes(config: RunConfig, minutes: float, folder: Path) -> int:
    """Images that training sees in so many minutes on this machine, a multiple of the batch.

    It is measured once and written down in the cell's folder, so that a run that is stopped goes on
    to the same end.

    Args:
        config: the run.
        minutes: wall time spent in training.
        folder: the cell's.

    Raises:
        ValueError: not even one batch fits.
    """
    path = folder / _FILE
    if path.is_file():
        return int(json.loads(path.read_bytes())["images"])
    rate = _measured(config, folder / "pilot")
    batch = config.train.batch_size
    images = int(60 * minutes * rate) // batch * batch
    if images < batch:
        raise ValueError(
            f"budget.minutes={minutes:g} is less than one batch takes ({batch / rate:.1f} s)"
        )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"images": images, "images_per_second": rate}))
    temporary.replace(path)
    return images


def _measured(config: RunConfig, folder: Path) -> float:
    """Images per second of a few steps."""
    shutil.rmtree(folder, ignore_errors=True)
    every = 4 * config.train.batch_size
    short = replace(
        config,
        run_dir=str(folder),
        train=replace(config.train, total_images=_LINES * every),
        log=replace(config.log, every_images=every, tracker="none"),
        validation=replace(config.validation, images=0, wiener_images=0),
        scores=replace(config.scores, num=0),
        grids=replace(config.grids, final_num=1),
        sampling=replace(config.sampling, steps=1),
    )
    try:
        if assemble(short).run().received is not None:
            raise StopRequested
        rates = read_run(folder).curves["images_per_second"][_LINES // 2 :]
        return float(np.median(rates))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
