"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from data_pipelines.bad_samples import BadDataError
from data_pipelines.counts import ReadCounts
from data_pipelines.dataset import Batch as ImageBatch
from data_pipelines.manifest import ShardSetError
from simple_diffusion.diffusion.objectives import Batch, Objective
from simple_diffusion.training.data_facts import DataFacts
from simple_diffusion.training.draws import Draws
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.evaluator import Evaluator
from simple_diffusion.training.optim import set_learning_rate
from simple_diffusion.training.signals import STOPPING, StopRequested, StopSignals
from simple_diffusion.training.state import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    load_optimizer_tensors,
    optimizer_tensors,
)
from simple_diffusion.training.telemetry import (
    MetricsFile,
    Stopwatch,
    Window,
    data_notes,
    memory_gb,
    reads_of_line,
)

DataError = (ShardSetError, BadDataError)


class TrainingError(ValueError):
    """Training cannot go on; the message says why, and what is kept."""


@dataclass(frozen=True)
class Intervals:
    """Images between events of each kind."""

    log: int
    validation: int
    scores: int
    grid: int
    checkpoint: int


@dataclass
class Trainer:
    """Trains one network; everything it needs is handed in.

    Attributes:
        accelerator: device, processes, reductions, trackers.
        network: the plain module whose weights are saved.
        model: the same module as Accelerate prepared it (DDP, autocast).
        objective: (model, batch) -> losses.
        optimizer: over the network's parameters.
        rate: images seen at the end of a step -> learning rate.
        ema: averages of the network.
        draws: the randomness of a step.
        loader: images seen -> the rest of the run's image batches, this rank's pieces.
        evaluator: validation and pictures.
        store: checkpoints.
        metrics: the JSON lines.
        intervals: when to log, validate, draw and save.
        batch_size: global batch.
        micro_batch_size: images a device takes at once; None for all of its share.
        total_images: end of training.
        clip_norm: largest gradient norm.
        identity: what a checkpoint must agree on to be continued here (data, for one).
        data: what checkpoints tell of the training set to those who sample and export.
        facts: what the first metrics line says of the run.
        sets: names of the shard sets that are mixed, to log how often each is drawn from.
    """

    accelerator: Accelerator
    network: nn.Module
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    ema: Ema
    draws: Draws
    loader: Callable[[int], Iterable[ImageBatch]]
    evaluator: Evaluator
    store: CheckpointStore
    metrics: MetricsFile
    intervals: Intervals
    batch_size: int
    micro_batch_size: int | None
    total_images: int
    clip_norm: float
    identity: dict[str, str]
    data: DataFacts
    facts: dict[str, str | int]
    sets: tuple[str, ...] = ()
    step: int = 0
    images_seen: int = 0
    replaced: int = 0
    _images_timed: int = 0
    _events_done: bool = False
    _saved_at: int | None = None
    _reads: ReadCounts = field(default_factory=ReadCounts)
    _interrupted: StopRequested | None = None
    _watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self._window = Window(self.accelerator.device)
        self._stop = StopSignals()
        self._names: dict[Tensor, str] = {p: n for n, p in self.network.named_parameters()}

    def run(self) -> StopSignals:
        """Train to the end, or until a signal asks to stop; either way everything is saved.

        Returns:
            The signals object: `received` is None when training finished.

        Raises:
            TrainingError: the loss is no longer finite, or data cannot be had any more; for the
                latter, the run was saved first.
            CheckpointError: a checkpoint could not be read or written.
        """
        self._resume()
        with self._stop, self._progress_bar() as bar:
            try:
                self._events(previous=max(0, self.images_seen - self.batch_size))
                self._watch = Stopwatch(self._watch.seconds)
                batches = iter(self.loader(self.images_seen))
                while (batch := self._next(batches)) is not None:
                    previous = self.images_seen
                    self._train_step(batch)
                    bar.update(self.batch_size)
                    ended = self.images_seen >= self.total_images
                    if ended or self._due(self.intervals.log, previous):
                        self._log(bar)
                    with self._watch.paused():
                        self._events(previous)
            except StopRequested:
                self._save()
        return self._stop

    def _train_step(self, images: ImageBatch) -> None:
        torch.manual_seed(self.draws.dropout_seed(self.accelerator.process_index, self.images_seen))
        batch = self.draws.batch(images.images, images.labels, images.positions, self.images_seen)
        self._note(images)
        local = batch.x0.shape[0]
        parts = _split(batch, self.micro_batch_size or local)
        for number, part in enumerate(parts, start=1):
            wait = nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model)
            with wait:
                losses = self.objective(self.model, part)
                self.accelerator.backward(losses.loss.sum() / local)
            self._window.add("loss", losses.loss)
            for name, values in losses.terms.items():
                self._window.add(f"loss/{name}", values)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self._window.add("grad_norm", norm)
        self.step += 1
        self.images_seen += self.batch_size
        self._images_timed += self.batch_size
        self._events_done = False
        set_learning_rate(self.optimizer, self.rate(self.images_seen))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, self.step, self.images_seen)

    def _events(self, previous: int) -> None:
        """Validate, draw and save where due. Done again as a whole if interrupted."""
        if self._events_done:
            return
        ended = self.images_seen >= self.total_images
        network = self.ema.networks[self.ema.main] if self.step else self.network
        at_start = self.step == 0
        alone = self.accelerator.num_processes == 1
        check_stop = self._check_stop if alone else _go_on  # collectives must stay in step
        name = self.ema.main if self.step else "raw"
        if at_start or ended or self._due(self.intervals.validation, previous):
            self.evaluator.validate(network, name, self.step, self.images_seen, check_stop)
        if at_start or ended or self._due(self.intervals.scores, previous):
            self.evaluator.score(network, name, self.step, self.images_seen, check_stop)
        if not at_start and not ended and self._due(self.intervals.grid, previous):
            self.evaluator.draw(network, self.images_seen, check_stop)
        if ended:
            self.evaluator.draw_final(network, check_stop)
        self._events_done = True
        if at_start or ended or self._due(self.intervals.checkpoint, previous):
            self._save()

    def _due(self, every: int, previous: int) -> bool:
        return self.images_seen // every > previous // every

    def _log(self, bar: tqdm) -> None:
        means = self._window.means(self._sum)
        if not all(map(math.isfinite, means.values())):
            raise self._not_finite()
        elapsed, waited = self._watch.window()
        images, self._images_timed = self._images_timed, 0
        reads = self._reads_everywhere()
        line: dict[str, Any] = {
            "kind": "train",
            "step": self.step,
            "images_seen": self.images_seen,
            **means,
            "lr": self.rate(self.images_seen),
            "replaced": self._replaced_everywhere(),
            "images_per_second": images / elapsed,
            "data_wait": waited,
            "memory_gb": memory_gb(self.accelerator.device),
            "seconds": self._watch.seconds,
            **reads_of_line(reads, elapsed),
        }
        bar.set_postfix_str(
            f"loss {means['loss']:.4f}, lr {line['lr']:.1e}, data wait {100 * waited:.0f}%"
            + data_notes(line)
        )
        if self.accelerator.is_main_process:
            self.metrics.append(line)
        values = {k: v for k, v in line.items() if isinstance(v, int | float)}
        self.accelerator.log(values, step=self.images_seen)

    def _save(self) -> None:
        if self._saved_at == self.images_seen and self._events_done:
            return
        window, replaced = self._window.reduced(self._sum), self._replaced_everywhere()
        if not all(math.isfinite(total) for total, _ in window.values()):
            raise self._not_finite()
        if self.accelerator.is_main_process:
            groups = {"model": self.network.state_dict()}
            groups |= {name: net.state_dict() for name, net in self.ema.networks.items()}
            groups["optimizer"] = optimizer_tensors(self.optimizer, self._names)
            state = {
                "images_seen": self.images_seen,
                "step": self.step,
                "ema_updated_at": self.ema.updated_at,
                "events_done": self._events_done,
                "replaced": replaced,
                "window": window,
                "seconds": self._watch.seconds,
                "identity": self.identity,
                "data": self.data.to_state(),
                "world_size": self.accelerator.num_processes,
                "torch": torch.__version__,
            }
            self.metrics.sync()
            self.store.save(self.images_seen, groups, state)
        self.accelerator.wait_for_everyone()
        if self._events_done:
            self._saved_at = self.images_seen

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def _replaced_everywhere(self) -> int:
        count = torch.tensor(self.replaced, device=self.accelerator.device)
        return int(self._sum(count))

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = self.store.newest() if self.accelerator.is_main_process else None
        self.accelerator.wait_for_everyone()  # the main process may set damaged ones aside
        if not self.accelerator.is_main_process:
            found = self.store.newest(verify=False)
        if found is None:
            if any(line.get("kind") == "train" for line in self.metrics.lines()):
                raise CheckpointError(
                    f"{self.metrics.path} says that training has begun, but {self.store.root} "
                    "holds no checkpoint; restore one, or choose another --run_dir"
                )
            if self.accelerator.is_main_process:
                self.metrics.rewind(lambda line: False)
                self.metrics.append({"kind": "run", "images_seen": 0, **self.facts})
            return
        self._load(found)
        if self.accelerator.is_main_process:
            self.metrics.rewind(self._is_written)
            facts = {"kind": "run", **self.facts}
            told = [line for line in self.metrics.lines() if line.get("kind") == "run"]
            if not told or {**told[-1], "images_seen": 0} != {**facts, "images_seen": 0}:
                self.metrics.append({**facts, "images_seen": self.images_seen})
            tqdm.write(f"resuming {found.path} at image {self.images_seen}")
            before = found.state.get("world_size")
            if before != self.accelerator.num_processes:
                tqdm.write(f"processes: {before} -> {self.accelerator.num_processes}")

    def _load(self, found: Checkpoint) -> None:
        try:
            for key, value in self.identity.items():
                was = found.state["identity"].get(key)
                if was != value:
                    raise CheckpointError(
                        f"{found.path}: the run's {key} was {was}, and is now {value}; restore "
                        "it, or choose another --run_dir"
                    )
            self.network.load_state_dict(found.tensors("model"))
            for name, network in self.ema.networks.items():
                network.load_state_dict(found.tensors(name))
            load_optimizer_tensors(self.optimizer, self._names, found.tensors("optimizer"))
            self._load_state(found.state)
        except CheckpointError:
            raise
        except RuntimeError as error:
            raise CheckpointError(f"{found.path}: is of another model: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{found.path}: its state cannot be used: {error!r}") from None

    def _load_state(self, state: dict[str, Any]) -> None:
        self.step, self.images_seen = state["step"], state["images_seen"]
        self.ema.updated_at = state["ema_updated_at"]
        self._events_done = state["events_done"]
        self._saved_at = self.images_seen if self._events_done else None
        self._watch = Stopwatch(state["seconds"])
        main = self.accelerator.is_main_process  # holds the sums of all processes
        self.replaced = state["replaced"] if main else 0
        window = state["window"].items()
        self._window.load_state_dict({k: (s, n) if main else (0.0, 0) for k, (s, n) in window})
        if self.images_seen - self.batch_size >= self.total_images:
            raise CheckpointError(
                f"the run has seen {self.images_seen} images already, more than "
                f"train.total_images={self.total_images}; raise it, or choose another --run_dir"
            )

    def _is_written(self, line: dict[str, Any]) -> bool:
        """Whether a metrics line is older than the restored state."""
        at = line.get("images_seen", 0)
        done = self._events_done or line.get("kind") not in ("validation", "scores")
        return at < self.images_seen or (at == self.images_seen and done)

    def _agree(self, failed: bool) -> bool:
        """Whether any process failed.

        Raises:
            StopRequested: on every process if any got a signal; all then agree which it was.
        """
        if self.accelerator.num_processes > 1:
            mine = [float(self._stop.received == number) for number in STOPPING] + [float(failed)]
            counts = self._sum(torch.tensor(mine, device=self.accelerator.device)).tolist()
            failed = counts.pop() > 0
            heard = [number for number, count in zip(STOPPING, counts, strict=True) if count]
            if not heard:  # leave it: one may have come since the counting, for the next step
                return failed
            self._stop.received = heard[0]
        self._check_stop()
        return failed

    def _check_stop(self) -> None:
        """Raise if this process got a signal."""
        if self._stop.received is not None:
            raise StopRequested

    def _not_finite(self) -> TrainingError:
        newest = self.store.newest()
        kept = f"the newest checkpoint is {newest.path}" if newest else "nothing was saved"
        return TrainingError(
            f"the loss is not finite, by image {self.images_seen}; {kept}. Lower optim.lr, or "
            "look at the data, and run again"
        )

    def _next(self, batches: Iterator[ImageBatch]) -> ImageBatch | None:
        """The next batch, None after the last; all processes then agree to go on.

        Raises:
            StopRequested: a process got a signal.
            TrainingError: a process cannot have its data; the run was saved.
        """
        before, batch, failure = time.perf_counter(), None, None
        try:
            with self._stop.interrupting():  # a server may be silent for minutes
                batch = next(batches, None)
        except StopRequested as stop:
            # Kept, and with it the loader's frames: its workers would be waited for before saving.
            self._interrupted = stop
        except DataError as error:
            failure = error
        self._watch.waited(time.perf_counter() - before)
        if self._agree(failed=failure is not None):
            self._save()
            what = failure or "another process cannot have its data, see its message"
            raise TrainingError(
                f"{what}. The run is saved at image {self.images_seen}; when the data is there "
                "again, the same command goes on"
            ) from failure
        return batch

    def _note(self, images: ImageBatch) -> None:
        """Take down what a batch says of the data."""
        self.replaced += len(images.replaced)
        self._reads += images.counts
        if len(self.sets) > 1:
            drawn = images.sets.to(self.accelerator.device)
            for number, name in enumerate(self.sets):
                self._window.add(f"mix/{name}", (drawn == number).float())

    def _reads_everywhere(self) -> dict[str, float]:
        """What all processes read since the last metrics line."""
        mine = asdict(self._reads)
        self._reads = ReadCounts()
        values = torch.tensor(list(mine.values()), dtype=torch.float64)
        totals = self._sum(values.to(self.accelerator.device)).tolist()
        return dict(zip(mine, totals, strict=True))

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.total_images,
            initial=self.images_seen,
            desc="training",
            unit="img",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not self.accelerator.is_main_process,
        )


def _go_on() -> None:
    """Never stops: with several processes, stopping is agreed between steps only."""


def _split(batch: Batch, size: int) -> list[Batch]:
    labels = [None] * math.ceil(batch.x0.shape[0] / size)
    pieces = zip(
        batch.x0.split(size),
        batch.eps.split(size),
        batch.t.split(size),
        labels if batch.labels is None else batch.labels.split(size),
        strict=True,
    )
    return [Batch(*piece) for piece in pieces]
