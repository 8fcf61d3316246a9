"""Starting from another run's weights, usually at a higher resolution.

256 -> 512 -> 1024 is how large models are trained: the transformer holds nearly all of the weights,
and does not mind the size of its grid. What depends on the resolution is resampled, in the way that
the network itself resamples it (`models.positions`), or starts anew; nothing does so unsaid.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.config import ModelConfig, RunConfig
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.saved_run import SavedRun, open_run

RECORD = "init_from.json"
# Settings of the backbone that the shapes of its weights do not betray.
BACKBONE = ("head_dim", "mlp", "skips", "positions", "qk_norm", "norm")
_LABELS = "conditioner.label.table"
_POSITIONS = "positions.table"
_STEP = "conditioner.step."
_MOST_KEYS = 12

Resize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InitReport:
    """What became of every key.

    Attributes:
        run: folder of the run that the weights come from.
        weights: which of its weights.
        images_seen: images seen by them.
        taken: names of the parameters that were copied.
        resized: name -> from which shape to which, and how.
        new: name -> why it starts from chance.
        dropped: name in the other run -> why it is not used.
    """

    run: str
    weights: str
    images_seen: int
    taken: tuple[str, ...]
    resized: dict[str, str]
    new: dict[str, str]
    dropped: dict[str, str]

    def write(self, run_dir: Path) -> None:
        """Write it into the folder of the new run, as JSON."""
        text = json.dumps(asdict(self), indent=1)
        (run_dir / RECORD).write_text(text + "\n", encoding="utf-8")

    def summary(self) -> str:
        """For people: counts, and every key that was not simply copied."""
        lines = [
            f"initialised from {self.run}, {self.weights} after {self.images_seen} images: "
            f"{len(self.taken)} tensors taken, {len(self.resized)} resized, {len(self.new)} new, "
            f"{len(self.dropped)} dropped"
        ]
        for title, keys in (
            ("resized", self.resized),
            ("new", self.new),
            ("dropped", self.dropped),
        ):
            for key, reason in _grouped(keys).items():
                lines.append(f"  {title} {key}: {reason}")
        return "\n".join(lines)


def initialise(config: RunConfig, network: UViT, accelerator: Accelerator) -> InitReport:
    """Give a new run's network the weights that `init_from` names, and say what was done.

    Every process calls it, before the network is cut up or compiled, and only while there is no
    checkpoint. The main process writes `init_from.json` into the run folder.

    Raises:
        RunError: the other run is not there, or is of another backbone.
        CheckpointError: its checkpoint cannot be read.
    """
    start = config.init_from
    assert start.run is not None
    if Path(start.run).resolve() == Path(config.run_dir).resolve():
        raise RunError(f"init_from.run is this run, {start.run}; give both a folder of their own")
    try:
        source = open_run(Path(start.run), start.weights, start.checkpoint)
    except RunError as error:
        raise RunError(f"init_from: {error}") from None
    report = init_network(
        network, source, model=config.model, prediction=config.objective.prediction
    )
    if accelerator.is_main_process:
        report.write(Path(config.run_dir))
        print(report.summary(), flush=True)
    return report


def init_network(
    network: nn.Module, source: SavedRun, *, model: ModelConfig, prediction: Prediction
) -> InitReport:
    """Copy the weights of a run into a network, all or nothing.

    The transformer, the embedding of the noise level and all levels that both networks have must
    fit; levels are matched from the lowest resolution up, so that one may be added on top. Tables
    of positions are resampled to another grid. With another patch size, the embedding and the head
    of the ``patch`` stem are resampled so that the network sees the mean of the pixels that were
    one, and paints them alike. A table of other classes, an embedding of step sizes that the other
    network does not have, levels at new resolutions, and the two ends where they cannot be
    resampled start anew.

    Args:
        network: plain, in the state that it starts from.
        source: weights of another run.
        model: what `network` was built from.
        prediction: what it is to predict; where the other run predicted something else, the head
            starts anew.

    Raises:
        RunError: the backbones differ; the message names the settings and keys.
    """
    was = source.config.model
    shift = len(model.channels) - len(was.channels)
    new_ends = _why_new_ends(was, model, shift)
    new_head = new_ends
    if new_head is None and source.config.objective.prediction != prediction:
        new_head = f"objective.prediction {source.config.objective.prediction} -> {prediction}"
    plan = _Plan(source.state_dict(), dict(network.named_parameters()))
    for key in plan.targets:
        if key.startswith(("embedding.", "head.")):
            reason = new_head if key.startswith("head.") else new_ends
            plan.end(key, reason, (was.patch_size, model.patch_size))
        elif key.startswith("levels."):
            plan.level(key, shift)
        elif key == _LABELS:
            plan.labels(was.num_classes, model.num_classes)
        elif key == _POSITIONS:
            plan.positions()
        elif key.startswith(_STEP):
            plan.step(key)
        else:
            plan.take(key, key)
    plan.drop(new_ends or new_head, shift, model.num_classes)
    settings = [
        f"model.{name}: {getattr(was, name)} -> {getattr(model, name)}"
        for name in BACKBONE
        if getattr(was, name) != getattr(model, name)
    ]
    if settings or plan.misfits:
        raise RunError(_refusal(source, settings, plan.misfits))
    plan.apply()
    return InitReport(
        run=str(source.path),
        weights=source.weights,
        images_seen=source.images_seen,
        taken=tuple(plan.taken),
        resized=plan.resized,
        new=plan.new,
        dropped=plan.dropped,
    )


class _Plan:
    """What is to become of every key; nothing is changed before `apply`."""

    def __init__(self, there: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter]) -> None:
        self.there, self.targets = there, targets
        self.taken: list[str] = []
        self.resized: dict[str, str] = {}
        self.new: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.misfits: dict[str, str] = {}
        self._steps: dict[str, tuple[str, Resize | None]] = {}

    def take(self, key: str, old: str) -> None:
        """It must be there, in this shape."""
        self._steps[key] = (old, None)
        if old in self.there and self.there[old].shape == self.targets[key].shape:
            self.taken.append(key)
        else:
            was = _shape(self.there[old]) if old in self.there else "not there"
            self.misfits[key] = f"{was} -> {_shape(self.targets[key])}"

    def level(self, key: str, shift: int) -> None:
        """A level, counted from the lowest resolution."""
        old = _moved(key, -shift)
        if old is None:
            self.new[key] = "a level at a new resolution"
        else:
            self.take(key, old)

    def labels(self, was: int, now: int) -> None:
        """The table of classes; other numbers of classes are other classes."""
        if was == now:
            self.take(_LABELS, _LABELS)
        else:
            self.new[_LABELS] = f"model.num_classes {was} -> {now}"

    def positions(self) -> None:
        """The table of positions, on any grid."""
        old, new = self.there.get(_POSITIONS), self.targets[_POSITIONS]
        if old is None or old.shape == new.shape or old.ndim != 3 or old.shape[0] != new.shape[0]:
            self.take(_POSITIONS, _POSITIONS)
            return
        grid = (new.shape[1], new.shape[2])
        self._resize(
            _POSITIONS, lambda t: F.interpolate(t[None], grid, mode="bicubic")[0], "bicubic"
        )

    def step(self, key: str) -> None:
        """The embedding of step sizes, which starts at zero: it changes no prediction at first."""
        if key in self.there:
            self.take(key, key)
        else:
            self.new[key] = "model.step_condition false -> true"

    def end(self, key: str, new: str | None, patches: tuple[int, int]) -> None:
        """A parameter of the embedding or the head."""
        if new is not None:
            self.new[key] = new
            return
        old = self.there.get(key)
        into = key.startswith("embedding.")
        axis = 1 if into else 0  # of the pixels of a patch, if it has one
        if (
            old is None
            or old.shape == self.targets[key].shape
            or old.ndim <= axis
            or old.shape[axis] % patches[0] ** 2
        ):
            self.take(key, key)
            return
        self._resize(
            key,
            lambda t: _other_patch(t, patches, axis, summed=into),
            f"patch_size {patches[0]} -> {patches[1]}",
        )

    def drop(self, ends: str | None, shift: int, num_classes: int) -> None:
        """What is left over in the other run."""
        used = {old for old, _ in self._steps.values()}
        for key in self.there.keys() - used:
            if key.startswith(("embedding.", "head.")) and ends is not None:
                self.dropped[key] = ends
            elif key.startswith("levels.") and _moved(key, shift) is None:
                self.dropped[key] = "a level at a resolution that is no more"
            elif key == _LABELS:
                self.dropped[key] = f"model.num_classes is now {num_classes}"
            elif key.startswith(_STEP):
                self.dropped[key] = "model.step_condition true -> false"
            else:
                self.misfits[key] = f"{_shape(self.there[key])} -> not there"
        self.dropped = dict(sorted(self.dropped.items()))

    @torch.no_grad()
    def apply(self) -> None:
        """Fill the network."""
        for key, (old, resize) in self._steps.items():
            tensor = self.there[old]
            self.targets[key].copy_(tensor if resize is None else resize(tensor))

    def _resize(self, key: str, resize: Resize, how: str) -> None:
        shape = resize(self.there[key]).shape
        if shape != self.targets[key].shape:
            self.take(key, key)  # a misfit, then
            return
        self._steps[key] = (key, resize)
        self.resized[key] = f"{_shape(self.there[key])} -> {_shape(self.targets[key])} ({how})"


def _why_new_ends(was: ModelConfig, now: ModelConfig, shift: int) -> str | None:
    """Why embedding and head cannot come from the other network; None if they can."""
    if shift:
        return f"{len(was.channels) - 1} -> {len(now.channels) - 1} levels"
    if was.stem != now.stem:
        return f"model.stem {was.stem} -> {now.stem}"
    if was.patch_size == now.patch_size:
        return None
    change = f"model.patch_size {was.patch_size} -> {now.patch_size}"
    if now.stem != "patch":
        return f"{change} of the {now.stem} stem"
    larger, smaller = sorted((was.patch_size, now.patch_size), reverse=True)
    return change if larger % smaller else None


def _other_patch(weight: Tensor, patches: tuple[int, int], axis: int, summed: bool) -> Tensor:
    """Resample the axis of a patch's channels and pixels, (channel, row, column) in this order.

    Args:
        weight: of the embedding or the head.
        patches: sides of the patch before and after; one divides the other.
        axis: which axis.
        summed: the axis is summed over, so that of several pixels that see what one saw, each has
            its share.
    """
    was, now = patches
    parts = weight.unflatten(axis, (-1, was, was))
    rows, columns = axis + 1, axis + 2
    if now >= was:
        ratio = now // was
        parts = parts.repeat_interleave(ratio, rows).repeat_interleave(ratio, columns)
        parts = parts / ratio**2 if summed else parts
    else:
        ratio = was // now
        parts = parts.unflatten(columns, (now, ratio)).unflatten(rows, (now, ratio))
        means = parts.mean((rows + 1, rows + 3))
        parts = means * ratio**2 if summed else means
    return parts.flatten(axis, axis + 2)


def _moved(key: str, shift: int) -> str | None:
    """The key of a level `shift` places further down; None if it is not there."""
    match = re.fullmatch(r"levels\.(\d+)\.(.+)", key)
    assert match is not None
    level = int(match[1]) + shift
    return f"levels.{level}.{match[2]}" if level >= 0 else None


def _refusal(source: SavedRun, settings: list[str], misfits: Mapping[str, str]) -> str:
    keys = [f"{key}: {change}" for key, change in _grouped(dict(sorted(misfits.items()))).items()]
    more = [f"and {len(keys) - _MOST_KEYS} more"] if len(keys) > _MOST_KEYS else []
    lines = "".join(f"\n  {line}" for line in (*settings, *keys[:_MOST_KEYS], *more))
    return (
        f"init_from.run {source.path} has another backbone than this config (its {source.weights} "
        f"-> here):{lines}\nMake the model section agree with {source.path}/config.yaml (image "
        "size, patch size, levels on top and classes may differ), or start without init_from"
    )


def _grouped(keys: Mapping[str, str]) -> dict[str, str]:
    """Keys that differ in one number only, with the same text, as one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, text in keys.items():
        groups.setdefault((re.sub(r"\d+", "*", key, count=1), text), []).append(key)
    return {
        (alike[0] if len(alike) == 1 else f"{name} ({len(alike)} times)"): text
        for (name, text), alike in groups.items()
    }


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
