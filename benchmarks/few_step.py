"""Few-step objectives against plain denoising: equal networks, data and processor time.

    python -m benchmarks.few_step --out runs/few_step --minutes 10 --jobs 2

Trains each arm for as many images as its share of the processor time allows (from the costs that
`benchmarks/few_step_cost.py` measures, `--cost ARM=RATIO`), on one thread each; scores samples of
the same seeds at 1, 4 and 128 steps against held-out images; and writes a table, a plot, and a grid
with the same seeds side by side. Some arms begin with what another has learned, and have
`--more_minutes` on top. Started again, it goes on where it was stopped.
"""

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image, ImageDraw

STEPS = (1, 4, 128)
ROW = 8  # samples of a grid's row


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        name: of it.
        config: what it trains.
        overrides: of the config's keys.
        sampler: how its samples are drawn.
        start: the arm whose averaged weights it begins with; None for a fresh network.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    sampler: str = "few_step"
    start: str | None = None


PLAIN = ("--sampling.guidance=1", "--sampling.spacing=t", "--sampling.sampler=ddim")
ARMS_64 = (
    Arm("plain", "quickstart", PLAIN, "ddim"),
    Arm("shortcut", "shortcut_icons_64"),
    Arm("consistency", "consistency_icons_64"),
    Arm("meanflow", "meanflow_icons_64"),
    # Five doublings instead of seven, and more of each batch: the base steps are learned already.
    Arm(
        "shortcut, warm",
        "shortcut_icons_64",
        ("--few_step.share=0.5", "--few_step.base_steps=32"),
        start="plain",
    ),
)
# The quickstart's network with a larger patch, on the interpolated schedule.
AT_128 = (
    "--data.image_size=128",
    "--model.patch_size=4",
    "--schedule={type: interpolated, base: {type: cosine}, low: 32, high: 128}",
)
ARMS_128 = (
    Arm("plain", "quickstart", (*PLAIN, *AT_128), "ddim"),
    Arm("shortcut", "shortcut_icons_64", AT_128),
)


def train(arm: Arm, images: int, given: argparse.Namespace) -> None:
    """Train an arm, or go on with it."""
    warmup, decay = images // 14 // 16 * 16, images * 3 // 7 // 16 * 16  # as the quickstart's
    run(
        "train",
        f"configs/{arm.config}.yaml",
        f"--run_dir={folder_of(arm, given)}",
        *([f"--init_from.run={given.out / arm.start}"] if arm.start else []),
        f"--data.path={given.data}",
        f"--train.total_images={images}",
        f"--optim.warmup_images={warmup}",
        f"--optim.decay_images={decay}",
        f"--grids.every_images={images}",
        f"--checkpoint.every_images={max(16, images // 6 // 16 * 16)}",
        f"--validation.every_images={images}",
        "--validation.wiener_images=0",
        "--scores.num=0",
        "--grids.final_num=16",
        "--grids.steps=4",
        *([f"--few_step.warmup_images={images // 4}"] if arm.name == "consistency" else []),
        *arm.overrides,
        *given.override,
    )


def folder_of(arm: Arm, given: argparse.Namespace) -> Path:
    """Where its run is."""
    folder: Path = given.out / arm.name.replace(", ", "_")
    return folder


def score(arm: Arm, steps: int, given: argparse.Namespace) -> dict[str, float]:
    """KID and FD of an arm's samples, with their floors."""
    folder = folder_of(arm, given)
    record = folder / f"evaluation-{steps}-{given.num}-{given.seed}.json"
    if not record.exists():
        run(
            "evaluate",
            str(folder),
            f"--num={given.num}",
            "--sampler",
            arm.sampler,
            f"--steps={steps}",
            "--spacing=t",
            "--guidance=1",
            f"--seed={given.seed}",
        )
        (folder / "evaluation.json").rename(record)
    scores = json.loads(record.read_text())["figures"]
    return {
        f"{name}{suffix}": scores[f"{name}_lite0"][key]
        for name in ("fd", "kid")
        for key, suffix in (("value", ""), ("floor", "_floor"))
    }


def draw(arm: Arm, steps: int, given: argparse.Namespace) -> Image.Image:
    """A row of samples, the same seeds and classes for all arms and steps."""
    path = folder_of(arm, given) / f"row-{steps}-{given.seed}.png"
    if not path.exists():
        options = ["--sampler", arm.sampler, f"--steps={steps}", "--spacing=t", "--guidance=1"]
        options += [f"--num={ROW}", f"--columns={ROW}", f"--seed={given.seed}", f"--out={path}"]
        run("sample", str(folder_of(arm, given)), *options)
    return Image.open(path).convert("RGB")


def run(*words: str) -> None:
    """One command of simple-diffusion, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "simple_diffusion", *words], env=environment, check=True)


def table(results: dict[str, dict[int, dict[str, float]]], images: dict[str, int]) -> str:
    """Markdown: KID and FD by steps."""
    head = "".join(f" KID, {n} | FD, {n} |" for n in STEPS)
    lines = [f"| objective | images |{head}", "|---|---|" + "---|---|" * len(STEPS)]
    for name, by_steps in results.items():
        cells = "".join(f" {s['kid']:.3f} | {s['fd']:.0f} |" for s in by_steps.values())
        lines.append(f"| {name} | {images[name]:,} |{cells}")
    floor = next(iter(next(iter(results.values())).values()))
    lines.append(
        f"\nFloor, half of the held-out images against the other half: KID "
        f"{floor['kid_floor']:.3f}, FD {floor['fd_floor']:.0f}."
    )
    return "\n".join(lines)


def picture(results: dict[str, dict[int, dict[str, float]]]) -> Image.Image:
    """FD over the number of steps."""
    figure, axes = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
    for name, by_steps in results.items():
        axes.plot(STEPS, [by_steps[n]["fd"] for n in STEPS], marker="o", label=name)
    axes.set(xscale="log", xlabel="steps", ylabel="FD (Lite0)", xticks=STEPS)
    axes.set_xticklabels([str(n) for n in STEPS])
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    return Image.open(buffer)


def side_by_side(arms: Sequence[Arm], given: argparse.Namespace) -> Image.Image:
    """Rows of samples: for each arm one for each number of steps."""
    rows = [(arm.name, steps, draw(arm, steps, given)) for arm in arms for steps in STEPS]
    width, height = rows[0][2].size
    sheet = Image.new("RGB", (width + 110, height * len(rows)), "white")
    for number, (name, steps, row) in enumerate(rows):
        sheet.paste(row, (110, number * height))
        ImageDraw.Draw(sheet).text(
            (4, number * height + height // 2 - 6), f"{name}, {steps}", "black"
        )
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Few-step objectives against plain denoising at equal processor time.",
        epilog="example: python -m benchmarks.few_step --out runs/few_step --minutes 10 --jobs 2",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/icons_64"))
    parser.add_argument("--size", type=int, choices=(64, 128), default=64)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, each arm")
    parser.add_argument(
        "--more_minutes", type=float, default=10.0, help="of arms that begin with another's weights"
    )
    parser.add_argument("--step", type=float, required=True, help="CPU seconds of a plain step")
    parser.add_argument("--cost", action="append", default=[], metavar="ARM=RATIO")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--num", type=int, default=256, help="samples to score")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="arms at once, a thread each")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    given.override = [f"--{one}" for one in given.override]
    arms = ARMS_64 if given.size == 64 else ARMS_128
    arms = tuple(arm for arm in arms if not given.arms or arm.name in given.arms)
    cost = {name: float(ratio) for name, _, ratio in (c.partition("=") for c in given.cost)}
    if unknown := (cost.keys() | set(given.arms or ())) - {arm.name for arm in ARMS_64}:
        parser.error(f"no such arms: {', '.join(sorted(unknown))}")
    minutes = {arm.name: given.more_minutes if arm.start else given.minutes for arm in arms}
    images = {
        name: 16 * int(time * 60 / given.step / cost.get(name, 1.0))
        for name, time in minutes.items()
    }

    def work(arm: Arm) -> dict[int, dict[str, float]]:
        train(arm, images[arm.name], given)
        return {n: score(arm, n, given) for n in STEPS}

    results: dict[str, dict[int, dict[str, float]]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for turn in (False, True):  # what others begin with comes first
            ours = [arm for arm in arms if bool(arm.start) == turn]
            results |= zip((arm.name for arm in ours), pool.map(work, ours), strict=True)
    for arm in arms:
        if arm.start in images:
            images[arm.name] += images[arm.start]
    text = table(results, images)
    (given.out / "table.md").write_text(text + "\n")
    (given.out / "results.json").write_text(json.dumps(results, indent=1))
    picture(results).save(given.out / "fd.png")
    side_by_side(arms, given).save(given.out / "samples.png")
    print(text)


if __name__ == "__main__":
    main()
