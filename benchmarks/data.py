"""Images per second from shards to batches: ours, webdataset and megatron-energon, and the limit.

    python benchmarks/data.py --images PHOTOS --energon ENV/bin/python --plot docs/data_speed.png

Every photograph's centre square is scaled to 512 and to 1024 pixels (Pillow LANCZOS; one that is
smaller is enlarged, which leaves it soft but makes files of usual size) and stored as JPEG of
quality 90, 4:2:0, in shard sets of a temporary folder. All contestants read the same shards, from
the page cache, in processes of their own that stay up. One runs at a time, a few seconds each, in
turn and for several rounds, so that what else the machine does hits all alike; figures are medians
over the rounds, ratios are medians of each round's ratio.

"bare" is a loop of simplejpeg and torch's scaling over encoded images in memory: no tar, no
metadata, no checks. megatron-energon is timed if the Python of an environment that has it is given
(in ours it would change other packages).
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from data_pipelines.building.stream import Sample, write_shards

STORED, SIZES = (512, 1024), (256, 512)
SHARDS = 4
Cell = tuple[int, int, int, str]  # stored pixels, size, workers, contestant
Figures = dict[Cell, list[dict[str, float]]]


def photographs(folder: Path, side: int, num: int) -> Iterator[Sample]:
    """The centre squares of the first `num` photographs."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, path in enumerate(paths[:num]):
        with Image.open(path) as image:
            square = ImageOps.fit(
                ImageOps.exif_transpose(image).convert("RGB"),
                (side, side),
                Image.Resampling.LANCZOS,
            )
        buffer = io.BytesIO()
        square.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        yield Sample(
            key=f"{number:06d}",
            image=buffer.getvalue(),
            extension="jpg",
            width=side,
            height=side,
            class_="photograph",
            caption=path.stem,
        )


def make_shards(folder: Path, images: Path, num: int) -> dict[int, Path]:
    """Builds the shard sets, by stored pixels."""
    sets = {}
    for side in STORED:
        sets[side] = folder / f"photos_{side}"
        report = write_shards(
            partial(photographs, images, side, num),
            sets[side],
            source="photographs",
            licence="those of the photographs",
            recipe={"side": side, "num": num},
            shard_samples=-(-num // SHARDS),
            total=num,
        )
        print(report)
    return sets


class Contestant:
    """A process that times one loader when asked to."""

    def __init__(self, name: str, python: str) -> None:
        script = Path(__file__).with_name("data_contestants.py")
        self.name = name
        self._child = subprocess.Popen(
            [python, str(script), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, **task: Any) -> dict[str, float]:
        """Times one loader: images, seconds and CPU seconds."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(json.dumps(task), file=self._child.stdin, flush=True)
        answer = self._child.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} failed at {task}")
        figures: dict[str, float] = json.loads(answer)
        return figures

    def close(self) -> None:
        """Ends the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def for_energon(shards: Path, python: str) -> Path:
    """A copy of a set with the index that megatron-energon wants."""
    copy = shards.with_name(f"{shards.name}_energon")
    copy.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, copy)
    options = ["--non-interactive", "--no-progress", "--split-parts", r"train:.*\.tar"]
    options += ["--sample-type", "CrudeWebdataset", "--num-workers", "1", str(copy)]
    command = [str(Path(python).with_name("energon")), "prepare", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return copy


def measure(args: argparse.Namespace, sets: dict[str, dict[int, Path]]) -> Figures:
    """Times all contestants in turn, round after round."""
    contestants = {
        name: Contestant(name, args.energon if name == "energon" else sys.executable)
        for name in sets
    }
    cells: list[Cell] = [
        (stored, size, workers, name)
        for stored in STORED
        for size in SIZES
        for workers in args.workers
        for name in sets
        if name != "bare" or workers == 0
    ]
    figures: Figures = {cell: [] for cell in cells}
    with tqdm(total=args.rounds * len(cells), desc="timing", unit="run") as bar:
        for number in range(args.rounds):
            for cell in cells if number % 2 == 0 else reversed(cells):
                stored, size, workers, name = cell
                figures[cell].append(
                    contestants[name].run(
                        shards=str(sets[name][stored]),
                        size=size,
                        workers=workers,
                        batch_size=args.batch_size,
                        seconds=args.seconds,
                    )
                )
                bar.update()
    for contestant in contestants.values():
        contestant.close()
    return figures


def show(figures: Figures, workers: list[int]) -> None:
    """Prints the tables, in Markdown."""
    for stored in STORED:
        for size in SIZES:
            cells = {
                (count, name): runs
                for (at, to, count, name), runs in figures.items()
                if (at, to) == (stored, size)
            }
            heads = [f"{count} worker{'' if count == 1 else 's'}" for count in workers]
            print(f"\n{stored}px JPEG to {size}px: images/s (per CPU-second)\n")
            print("| | " + " | ".join(heads) + " |")
            print("|---" * (len(heads) + 1) + "|")
            for name in dict.fromkeys(name for _, name in cells):
                row = [speed(cells.get((count, name))) for count in workers]
                print(f"| {name} | " + " | ".join(row) + " |")
            for rival in ("webdataset", "energon", "bare"):
                # The limit of one core is set beside the others' images per CPU-second.
                row = [ratio(cells, rival, count) for count in workers]
                if any(row):
                    print(f"| ours / {rival} | " + " | ".join(row) + " |")


def plot(figures: Figures, path: Path) -> None:
    """Draws the medians of images per second, one panel for each pair of sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for *_, name in figures))
    pairs = list(dict.fromkeys((stored, size) for stored, size, *_ in figures))
    figure, panels = pyplot.subplots(1, len(pairs), figsize=(10, 2.8), layout="constrained")
    for panel, (stored, size) in zip(panels, pairs, strict=True):
        counts = sorted({count for at, to, count, _ in figures if (at, to) == (stored, size)})
        for place, name in enumerate(names):
            bars = {
                at: statistics.median(run["images"] / run["seconds"] for run in runs)
                for at, count in enumerate(counts)
                if (runs := figures.get((stored, size, count, name)))
            }
            at = [where + (place - (len(names) - 1) / 2) * 0.8 / len(names) for where in bars]
            panel.bar(at, list(bars.values()), 0.8 / len(names), label=name)
        panel.set_title(f"{stored}px JPEG to {size}px", fontsize=9)
        panel.set_xticks(range(len(counts)), [str(count) for count in counts], fontsize=8)
        panel.set_xlabel("workers", fontsize=8)
        panel.tick_params(axis="y", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("images/s", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def speed(runs: list[dict[str, float]] | None) -> str:
    """Medians of the runs of one cell."""
    if runs is None:
        return ""
    wall = statistics.median(run["images"] / run["seconds"] for run in runs)
    cpu = statistics.median(run["images"] / run["cpu_seconds"] for run in runs)
    return f"{wall:.0f} ({cpu:.0f})"


def ratio(cells: dict[tuple[int, str], list[dict[str, float]]], rival: str, workers: int) -> str:
    """Medians over the rounds of our speed over a rival's; of the bare loop's per CPU-second."""
    ours, theirs = cells[workers, "ours"], cells.get((0 if rival == "bare" else workers, rival))
    if theirs is None:
        return ""
    parts = {}
    for kind in ("seconds", "cpu_seconds"):
        parts[kind] = statistics.median(
            (mine["images"] / mine[kind]) / (other["images"] / other[kind])
            for mine, other in zip(ours, theirs, strict=True)
        )
    if rival == "bare" and workers:
        return f"({parts['cpu_seconds']:.2f})"
    return f"{parts['seconds']:.2f} ({parts['cpu_seconds']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG photographs")
    parser.add_argument("--energon", help="Python of an environment with megatron-energon")
    parser.add_argument("--num", type=int, default=256, help="photographs in each set")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="also draw a picture, here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        usual = make_shards(Path(folder), args.images, args.num)
        sets = dict.fromkeys(("bare", "ours", "webdataset"), usual)
        if args.energon:
            sets["energon"] = {
                side: for_energon(path, args.energon) for side, path in usual.items()
            }
        figures = measure(args, sets)
    show(figures, args.workers)
    if args.plot:
        plot(figures, args.plot)


if __name__ == "__main__":
    main()
