"""The training loop."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data_pipelines.bad_samples import BadDataError
from data_pipelines.counts import ReadCounts
from data_pipelines.dataset import Batch as ImageBatch
from data_pipelines.manifest import ShardSetError
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.evaluator import Evaluator
from simple_diffusion.training.health import Sample
from simple_diffusion.training.keeper import Keeper
from simple_diffusion.training.run_folder import hold_run_folder
from simple_diffusion.training.run_state import RunState
from simple_diffusion.training.signals import StopRequested, StopSignals
from simple_diffusion.training.speed import Stopwatch, speed_fields
from simple_diffusion.training.state import CheckpointError
from simple_diffusion.training.stepper import Stepper
from simple_diffusion.training.telemetry import (
    MetricsFile,
    progress_notes,
    reads_of_line,
    tracker_values,
)
from simple_diffusion.training.watchdog import Watchdog

DataError = (ShardSetError, BadDataError)
LOST_SECONDS = 15.0  # after a failed message between processes, until it is clear who is gone


class TrainingError(ValueError):
    """Training cannot go on; the message says why, and what is kept."""


class PeerLostError(TrainingError):
    """Another process is gone. The same command goes on from the newest checkpoint."""


@dataclass(frozen=True)
class Intervals:
    """Images between events of each kind."""

    log: int
    validation: int
    scores: int
    grid: int
    checkpoint: int
    snapshot: int | None


@dataclass
class Trainer:
    """Trains one network; everything it needs is handed in.

    Attributes:
        accelerator: device, processes, reductions, trackers.
        state: what checkpoints keep.
        stepper: does the optimiser's steps.
        loader: images seen -> the rest of the run's image batches, this rank's pieces.
        evaluator: validation and pictures.
        keeper: saves and resumes.
        agreement: what the processes decide together.
        watchdog: notices processes that make no progress.
        metrics: the JSON lines.
        intervals: when to log, validate, draw and save.
        batch_size: global batch.
        total_images: end of training.
        flops_per_image: of a training step, without recomputation.
        peak_tflops: what one device can do; None where that is not known.
        sets: names of the shard sets that are mixed, to log how often each is drawn from.
    """

    accelerator: Accelerator
    state: RunState
    stepper: Stepper
    loader: Callable[[int], Iterable[ImageBatch]]
    evaluator: Evaluator
    keeper: Keeper
    agreement: Agreement
    watchdog: Watchdog
    metrics: MetricsFile
    intervals: Intervals
    batch_size: int
    total_images: int
    flops_per_image: float
    peak_tflops: float | None
    sets: tuple[str, ...] = ()
    _images_timed: int = 0
    _interrupted: StopRequested | None = None

    @property
    def images_seen(self) -> int:
        """Images seen so far."""
        return self.state.images_seen

    def run(self) -> StopSignals:
        """Train to the end, or until a signal asks to stop; either way everything is saved.

        Returns:
            The signals object: `received` is None when training finished.

        Raises:
            TrainingError: too many steps in a row were not finite, data cannot be had any more
                (the run was saved first), or another process is gone.
            CheckpointError: a checkpoint could not be read or written.
        """
        main = self.accelerator.is_main_process
        with (
            hold_run_folder(self.evaluator.run_dir) if main else nullcontext(),
            self.agreement.signals as signals,
            self.watchdog,
        ):
            try:
                self._run()
                self.keeper.finish()
            except StopRequested:
                self.keeper.save_and_stop(self.state)
            except (RuntimeError, CheckpointError) as error:
                self._explain(error)
                raise
        return signals

    def _run(self) -> None:
        state = self.state
        self.keeper.resume(state)
        with self._progress_bar() as bar:
            self._events(previous=max(0, state.images_seen - self.batch_size))
            state.watch = Stopwatch(state.watch.seconds)
            batches = iter(self.loader(state.images_seen))
            while (batch := self._next(batches)) is not None:
                previous = state.images_seen
                self._train_step(batch)
                bar.update(self.batch_size)
                if self._due(self.intervals.log, previous) or self._ended:
                    self._log(bar)
                with state.watch.paused():
                    self._events(previous)

    @property
    def _ended(self) -> bool:
        return self.state.images_seen >= self.total_images

    def _train_step(self, images: ImageBatch) -> None:
        state = self.state
        self.watchdog.at("step", state.images_seen)
        self._note(images)
        result = self.stepper.step(images, state.step + 1, state.images_seen)
        state.step += 1
        state.images_seen += self.batch_size
        state.events_done = False
        self._images_timed += self.batch_size
        state.window.add("loss", result.losses)
        for name, values in result.terms.items():
            state.window.add(f"loss/{name}", values)
        state.window.add("grad_norm", result.norm)
        samples = [Sample(*one) for one in zip(images.positions.tolist(), images.keys, strict=True)]
        state.health.take(state.step, state.images_seen, samples, result.norm, result.losses)
        state.watch.step()

    def _events(self, previous: int) -> None:
        """Validate, draw and save where due. Done again as a whole if interrupted."""
        state, intervals = self.state, self.intervals
        if not state.events_done:
            self._evaluate(previous)
            state.events_done = True
        at_start, ended = state.step == 0, self._ended
        if at_start or ended or self._due(intervals.checkpoint, previous):
            self.keeper.save(state)
        if (
            intervals.snapshot
            and not at_start
            and (ended or self._due(intervals.snapshot, previous))
        ):
            self.keeper.save_snapshot(state)

    def _evaluate(self, previous: int) -> None:
        state, intervals = self.state, self.intervals
        at_start, ended = state.step == 0, self._ended
        validation = at_start or ended or self._due(intervals.validation, previous)
        scores = at_start or ended or self._due(intervals.scores, previous)
        grid = not at_start and (ended or self._due(intervals.grid, previous))
        if not (validation or scores or grid):
            return
        self.watchdog.at("evaluate", state.images_seen)
        name = "raw" if at_start else state.ema.main
        weights = state.parameters if at_start else state.ema.tensors(name)
        with self.evaluator.whole.lent(weights) as network:
            if validation:
                self.evaluator.validate(network, name, state.step, state.images_seen)
            if scores:
                self.evaluator.score(network, name, state.step, state.images_seen)
            if ended:
                self.watchdog.at("final", state.images_seen)
                self.evaluator.draw_final(network)
            elif grid:
                self.evaluator.draw(network, state.images_seen)

    def _due(self, every: int, previous: int) -> bool:
        return self.state.images_seen // every > previous // every

    def _log(self, bar: tqdm) -> None:
        state = self.state
        self.keeper.write_notes(state)
        means = state.window.means(self._sum)
        lap = state.watch.lap()
        images, self._images_timed = self._images_timed, 0
        line: dict[str, Any] = {
            "kind": "train",
            "step": state.step,
            "images_seen": state.images_seen,
            **means,
            "lr": self.stepper.rate(state.images_seen),
            "skipped": state.health.skipped,
            "replaced": int(self._sum(self._tensor([state.replaced]))),
            **speed_fields(
                lap,
                images,
                state.watch.seconds,
                self.accelerator,
                flops_per_image=self.flops_per_image,
                peak_tflops=self.peak_tflops,
            ),
            **reads_of_line(self._reads_everywhere(), lap.seconds),
        }
        bar.set_postfix_str(progress_notes(line))
        if self.accelerator.is_main_process:
            self.metrics.append(line)
        self.accelerator.log(tracker_values(line), step=state.images_seen)

    def _next(self, batches: Iterator[ImageBatch]) -> ImageBatch | None:
        """The next batch, None after the last; all processes then agree to go on.

        Raises:
            StopRequested: a process got a signal.
            TrainingError: a process cannot have its data, for which the run was saved; or too many
                steps in a row were skipped.
        """
        state, watch = self.state, self.state.watch
        self.watchdog.at("data", state.images_seen)
        before, batch, failure = time.perf_counter(), None, None
        try:
            with self.agreement.signals.interrupting():  # a server may be silent for minutes
                batch = next(batches, None)
        except StopRequested as stop:
            # Kept, and with it the loader's frames: its workers would be waited for before saving.
            self._interrupted = stop
        except DataError as error:
            failure = error
        watch.waited(time.perf_counter() - before)
        self.watchdog.at("agree", state.images_seen)
        state.health.poll()
        with watch.with_others():
            failed, diverged, unsaved = self.agreement.settle(
                failure is not None, state.health.diverged, self.keeper.save_failed()
            )
        if unsaved:
            self.keeper.finish()  # raises
        if failed:
            raise self._no_data(failure) from failure
        if diverged:
            raise self._diverged()
        return batch

    def _no_data(self, failure: Exception | None) -> TrainingError:
        self.keeper.save(self.state)
        self.keeper.finish()
        what = failure or "another process cannot have its data, see its message"
        return TrainingError(
            f"{what}. The run is saved at image {self.images_seen}; when the data is there "
            "again, the same command goes on"
        )

    def _diverged(self) -> TrainingError:
        in_row = self.state.health.in_row
        self.keeper.write_notes(self.state)
        self.keeper.finish()  # a checkpoint under way is of finite weights
        return TrainingError(
            f"loss or gradient were not finite in {in_row} steps in a row, by "
            f"image {self.images_seen}; they were skipped, and their samples are in "
            f"{self.metrics.path}. {self.keeper.kept} "
            "Lower optim.lr, or look at the data, and run again"
        )

    def _explain(self, error: Exception) -> None:
        """Raise PeerLostError if the error comes of another process being gone."""
        if self.accelerator.num_processes == 1 or isinstance(error, torch.OutOfMemoryError):
            return
        lost = self.watchdog.lost(LOST_SECONDS)
        if lost is not None:
            raise PeerLostError(
                f"{lost} is gone; see its own message. {self.keeper.kept} The same command goes on"
            ) from error

    def _note(self, images: ImageBatch) -> None:
        """Take down what a batch says of the data."""
        state = self.state
        state.replaced += len(images.replaced)
        state.reads += images.counts
        if len(self.sets) > 1:
            drawn = images.sets.to(self.accelerator.device, non_blocking=True)
            for number, name in enumerate(self.sets):
                state.window.add(f"mix/{name}", (drawn == number).float())

    def _reads_everywhere(self) -> dict[str, float]:
        """What all processes read since the last metrics line."""
        mine = asdict(self.state.reads)
        self.state.reads = ReadCounts()
        return dict(zip(mine, self._sum(self._tensor(list(mine.values()))).tolist(), strict=True))

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

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
