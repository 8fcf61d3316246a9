"""Networks published on the Hugging Face hub, through transformers where that is installed.

transformers is no dependency of this project: it is imported when such an extractor is opened.
Only tensors and a JSON config are read, from safetensors or by restricted unpickling, and no code
of a repository is run.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from eval.extractors.base import WEIGHTS_OPTION, WeightsMissingError
from eval.extractors.download import is_offline


def open_pretrained(
    extractor: str,
    class_name: str,
    model: str,
    weights: Path | None,
    expected: Mapping[str, Any],
) -> tuple[Any, str]:
    """Open a published network, float32, in evaluation mode, on the CPU.

    Args:
        extractor: for messages.
        class_name: of the network in transformers.
        model: id on the hub.
        weights: a folder with the files of that model, or None for the hub's cache or a download.
        expected: what the network's config must say, by attribute: figures carry the extractor's
            name, so a smaller model must not pass for it.

    Returns:
        The network, and the name of its weights: the model's id, or the folder's name.

    Raises:
        WeightsMissingError: transformers or the weights are absent, incomplete, or another model's.
    """
    remedy = (
        f"install transformers and, on a machine with a network, run `hf download {model}`; copy "
        f"its folder here where this machine has none, and give its path ({WEIGHTS_OPTION}); or "
        "measure with the extractor lite0, which needs no download"
    )
    try:
        import transformers
    except ImportError as error:
        raise WeightsMissingError(
            f"extractor {extractor}: it needs the package transformers (`pip install "
            f"transformers`), which does not import: {error}; or measure with the extractor lite0"
        ) from error
    if weights is not None and not (weights / "config.json").is_file():
        raise WeightsMissingError(
            f"extractor {extractor}: {weights} is not a folder with a config.json and the weights "
            f"of {model}; {remedy}"
        )
    try:
        with _quiet(transformers.logging):
            network, loading = getattr(transformers, class_name).from_pretrained(
                model if weights is None else str(weights),
                local_files_only=weights is not None or is_offline(),
                weights_only=True,
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:  # its own message would advise to load it all the same
        raise WeightsMissingError(
            f"extractor {extractor}: the weights in {weights or model} are no file of tensors; "
            f"{remedy}"
        ) from error
    except Exception as error:  # no network, no file, damaged file: each library has its own
        raise WeightsMissingError(
            f"extractor {extractor}: {weights or model} could not be opened: {error}; {remedy}"
        ) from error
    # transformers fills what a file lacks with random numbers
    absent = sorted(loading["missing_keys"])
    if absent:
        raise WeightsMissingError(
            f"extractor {extractor}: {weights or model} lacks {len(absent)} of the network's "
            f"tensors, {absent[0]} among them; {remedy}"
        )
    found = {key: getattr(network.config, key, None) for key in expected}
    if found != dict(expected):
        raise WeightsMissingError(
            f"extractor {extractor}: {weights or model} is another model than {model}: its config "
            f"says {found}, expected is {dict(expected)}; {remedy}"
        )
    network.to(torch.float32).requires_grad_(False).eval()
    return network, model if weights is None else weights.resolve().name


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No report of the text tower's tensors, which the files hold and the extractor leaves out."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def normalised(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(x / 255 - mean) / std by channel; (n, 3, H, W) floats in [0, 255]."""
    shift, scale = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (mean, std))
    return (x / 255 - shift) / scale
