"""Our FID, KID, IS, precision and recall beside torch-fidelity's, on the same two folders.

    python benchmarks/fidelity.py samples/ reference/

For machines that have torchvision and torch-fidelity (`pip install torch-fidelity torchvision`);
they are no dependencies of this project. Both read the same image files (PNG or JPEG, all of one
size) and the same Inception weights: the usual ones, downloaded once, or `--weights FILE`. Exits
with 1 where a figure differs by more than rounding explains.

Theirs is asked for what ours computes: the Inception Score of the whole set rather than the mean
over ten parts, and the KID of all images rather than of random subsets, for which both folders
must hold the same number of images; otherwise KID is left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Largest differences, relative to theirs, or absolute for those that may be about 0. FID's is wide
# because fewer images than features leave their eigenvalues of a product of covariances noisy, and
# KID's because their kernel is summed in float32. Points on the edge of a ball fall either way.
TOLERANCES = {"fid": 1e-3, "kid": 1e-5, "is": 1e-4, "precision": 2e-3, "recall": 2e-3}
RELATIVE = ("fid", "is")
ENDINGS = (".png", ".jpg", ".jpeg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path, help="folder of images to judge")
    parser.add_argument("reference", type=Path, help="folder of real images")
    parser.add_argument("--weights", type=Path, help="Inception weights (default: the usual ones)")
    parser.add_argument("--batch_size", type=int, default=50)
    args = parser.parse_args()

    try:
        import torch_fidelity
    except ImportError as error:
        print(
            f"nothing to compare with: {error}. This script wants `pip install torch-fidelity "
            "torchvision`, best in an environment of its own, since torchvision asks for its own "
            "build of torch.",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    counts = [len(images_in(folder)) for folder in (args.samples, args.reference)]
    kid = counts[0] == counts[1]

    ours = our_figures(args.samples, args.reference, args.weights, args.batch_size, device, kid)
    found = torch_fidelity.calculate_metrics(
        input1=str(args.samples),
        input2=str(args.reference),
        feature_extractor="inception-v3-compat",  # precision and recall too
        cuda=device.type == "cuda",
        batch_size=args.batch_size,
        fid=True,
        isc=True,
        prc=True,
        kid=kid,
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=counts[0],
        feature_extractor_weights_path=None if args.weights is None else str(args.weights),
        cache=False,
        verbose=False,
    )
    theirs = {
        "fid": found["frechet_inception_distance"],
        "is": found["inception_score_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }
    if kid:
        theirs["kid"] = found["kernel_inception_distance_mean"]
    else:
        print(f"KID left out: {counts[0]} samples, {counts[1]} reference images")
    return compare(ours, theirs)


def images_in(folder: Path) -> list[Path]:
    """The image files that torch-fidelity reads too: those directly in the folder."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise SystemExit(f"no images ({', '.join(ENDINGS)}) in {folder}")
    return found


def batches(folder: Path, size: int) -> Iterator[tuple[Tensor, None]]:
    paths = images_in(folder)
    for start in range(0, len(paths), size):
        piece = []
        for path in paths[start : start + size]:
            with Image.open(path) as image:
                piece.append(np.asarray(image.convert("RGB")))
        shapes = {array.shape for array in piece}
        if len(shapes) > 1:
            raise SystemExit(f"images of several sizes in {folder}: {sorted(shapes)}")
        yield torch.from_numpy(np.stack(piece)).permute(0, 3, 1, 2), None


def our_figures(
    samples: Path,
    reference: Path,
    weights: Path | None,
    batch_size: int,
    device: torch.device,
    kid: bool,
) -> dict[str, float]:
    from eval.features import figure_name, open_extractor
    from eval.metrics import score
    from eval.statistics import describe

    extractor = open_extractor("inception", weights=weights, device=device)
    described = [
        describe(batches(folder, batch_size), extractor, keep=len(images_in(folder)))
        for folder in (samples, reference)
    ]
    names = ["fd", "is", "precision", "recall", *(["kid"] if kid else [])]
    scores = score(names, *described)
    figures = {figure_name(name, "inception"): scores[name].value for name in names}
    return {name.removesuffix("_inception"): value for name, value in figures.items()}


def compare(ours: dict[str, float], theirs: dict[str, float]) -> int:
    print(f"{'':10} {'ours':>14} {'torch-fidelity':>14} {'difference':>12}")
    worst = 0
    for name, value in theirs.items():
        difference = abs(ours[name] - value)
        if name in RELATIVE:
            difference /= abs(value)
        over = not difference <= TOLERANCES[name]
        worst |= over
        kind = "relative" if name in RELATIVE else "absolute"
        mark = "  TOO MUCH" if over else ""
        print(f"{name:10} {ours[name]:14.7g} {value:14.7g} {difference:12.1e} {kind}{mark}")
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
