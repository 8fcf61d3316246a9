"""Peak memory of a real run on a CPU, beside what `simple-diffusion plan` says of it.

    python benchmarks/memory.py configs/icons_512.yaml --steps 20 --data.path=data/icons_64

The real trainer runs in a process of its own with all that a run has: training, validation, sample
grids, checkpoints (one while training goes on), report. Measured is the growth of its resident
memory from after the imports to its peak. What takes time but no memory is cut short: steps of
sampling, levels and batches of validation. Nothing of the run is kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import importlib, json, sys
from pathlib import Path

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
for late in ("torch._dynamo", "matplotlib.pyplot", "PIL.PngImagePlugin"):  # else during the run
    importlib.import_module(late)
before = status("VmRSS:")
trainer = assemble(load_config(Path(sys.argv[1]), sys.argv[2:]))
trainer.run()
print(json.dumps({"before": before, "peak": status("VmHWM:"), "images": trainer.images_seen}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measured and planned peak memory of a run on a CPU.",
        epilog="Further arguments override the config: --section.key=value.",
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    args, overrides = parser.parse_known_args()

    from simple_diffusion.config_files import load_config
    from simple_diffusion.plan import make_plan

    config = load_config(args.config, overrides)
    if args.steps < 4:
        raise SystemExit(f"--steps {args.steps}: at least 4, so that a checkpoint lies between")
    batch = config.train.batch_size
    overrides += [
        f"--train.total_images={args.steps * batch}",
        f"--validation.images={min(config.validation.images, 2 * config.validation.batch_size)}",
        "--validation.logsnr=[-2, 0, 2]",
        "--sampling.steps=4",
        "--grids.steps=4",
        "--data.workers=0",
        "--scores.num=0",  # the plan leaves the extractor out
        f"--checkpoint.every_images={args.steps // 2 * batch}",  # written while training goes on
    ]
    plan = make_plan(load_config(args.config, overrides))
    with tempfile.TemporaryDirectory() as folder:
        words = [str(args.config), *overrides, f"--run_dir={folder}/run"]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True, check=True
        )
    result = json.loads(child.stdout.splitlines()[-1])
    measured = result["peak"] - result["before"]
    print(plan.text())
    print()
    print(f"{args.config.stem}: {args.steps} steps of {batch} images, {result['images']} in all")
    print(f"resident after imports  {result['before'] / 1e6:8.0f} MB")
    print(f"measured growth to peak {measured / 1e6:8.0f} MB")
    print(f"planned peak            {plan.peak / 1e6:8.0f} MB")
    print(f"measured / planned      {measured / plan.peak:8.3f}")


if __name__ == "__main__":
    main()
