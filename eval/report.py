"""A training run as one page: `write_report` reads a run folder and writes `report.html` into it.

The page stands alone: no scripts, nothing fetched, pictures and plots inside it. It shows whatever
the folder holds so far (`eval.run_log` lists it, and `config.yaml` is shown as it is). Nothing read
is trusted: text is escaped, pictures are decoded and encoded afresh.
"""

import base64
import io
import math
import os
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from eval.charts import (
    losses_picture,
    score_curve,
    spectrum,
    training_curves,
    validation_means,
)
from eval.page_parts import duration, figure, rate, table
from eval.page_style import STYLE
from eval.report_events import what_happened
from eval.run_log import RunLog, Validation, read_run, sample_grids

_MAX_CONFIG = 2**18  # bytes
_MAX_GRIDS = 12
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` for a training run, finished or in progress.

    Args:
        run_dir: the run's folder; `eval.run_log` lists what is read from it.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is no such folder.
    """
    run_dir = Path(run_dir)
    log = read_run(run_dir)
    name = escape(run_dir.resolve().name)
    body = (
        _header(log, name)
        + _samples(run_dir)
        + _scores(log)
        + _validation(log)
        + _training(log)
        + what_happened(log)
        + _config(run_dir / "config.yaml")
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # A second lock: even if something hostile got through, nothing may run or be fetched.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{name} – training run</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    return _write(run_dir / "report.html", page.encode("utf-8", "replace"))


def plot_losses(run_dir: Path) -> Path:
    """Write `losses.png`: training loss and mean validation eps-MSE over images seen.

    Args:
        run_dir: the run's folder.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no such folder.
    """
    run_dir = Path(run_dir)
    return _write(run_dir / "losses.png", losses_picture(read_run(run_dir)))


def _write(path: Path, data: bytes) -> Path:
    """Put the file in place whole: someone may be looking at the one before."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path


def _header(log: RunLog, name: str) -> str:
    notices = (
        (log.unreadable, "lines of metrics.jsonl could not be read and are left out"),
        (log.replaced, "corrupt samples of the data were replaced by others"),
    )
    lines = [f'<p class="warning">{count:,} {text}.</p>' for count, text in notices if count]
    return (
        f'<header><p class="over">Training run</p><h1>{name}</h1>{_facts(log)}{_setup(log)}'
        f"{''.join(lines)}</header>"
    )


def _facts(log: RunLog) -> str:
    facts: list[tuple[str, str]] = []
    if len(log.images_seen) or log.total_images is not None:
        seen = int(log.images_seen[-1]) if len(log.images_seen) else 0
        total = "" if log.total_images is None else f" <small>/ {log.total_images:,}</small>"
        facts.append(("images seen", f"{seen:,}{total}"))
    if log.steps is not None:
        facts.append(("optimiser steps", f"{log.steps:,}"))
    shown: tuple[tuple[str, Callable[[np.ndarray], float], str, Callable[[float], str]], ...] = (
        ("seconds", np.max, "wall time", duration),
        ("images_per_second", np.median, "images/s, median", rate),
        ("mfu", np.median, "MFU, median", lambda v: f"{100 * v:.1f}%"),
        ("data_wait", np.mean, "waiting for data", lambda v: f"{100 * v:.1f}%"),
        ("memory_gb", np.max, "GB memory, peak", lambda v: f"{v:.1f}"),
        ("skipped", np.max, "steps skipped", lambda v: f"{v:,.0f}"),
    )
    for name, reduce, label, form in shown:
        values = log.curves[name][np.isfinite(log.curves[name])]
        if len(values):
            facts.append((label, form(float(reduce(values)))))
    if log.parameters is not None:
        facts.append(("parameters", f"{log.parameters:,}"))
    items = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return f'<dl class="facts">{items}</dl>' if items else ""


def _setup(log: RunLog) -> str:
    """What the run trains on, in one line."""
    counts = [
        f"{count:,} {one if count == 1 else many}"
        for count, one, many in (
            (log.processes, "process", "processes"),
            (log.threads, "thread each", "threads each"),
        )
        if count is not None
    ]
    precision = f"precision {escape(log.precision)}" if log.precision else ""
    parts = [part for part in (escape(log.device), ", ".join(counts), precision) if part]
    return f'<p class="setup">{" · ".join(parts)}</p>' if parts else ""


def _samples(run_dir: Path) -> str:
    parts = []
    final = _picture(run_dir / "samples" / "final.png", 1600)
    if final:
        parts.append(
            '<section><h2>Final samples</h2><img class="final" alt="Final sample grid"'
            f' src="{final}"></section>'
        )
    grids = sample_grids(run_dir)
    if len(grids) > _MAX_GRIDS:
        kept = np.linspace(0, len(grids) - 1, _MAX_GRIDS).round().astype(int)
        grids = [grids[i] for i in kept]
    figures = []
    for seen, path in grids:
        if source := _picture(path, 512):
            caption = f"{seen:,} images seen"
            figures.append(
                f'<figure id="grid-{seen}"><a href="#grid-{seen}"><img src="{source}"'
                f' alt="Samples after {caption}"></a><figcaption>{caption}</figcaption></figure>'
            )
    if figures:
        parts.append(
            '<section><h2>Samples over time</h2><p class="note">The same seeds and classes each'
            ' time. Click a grid to see it large.</p><div class="grids">'
            + "".join(figures)
            + "</div></section>"
        )
    return "".join(parts)


def _picture(path: Path, side: int) -> str | None:
    """A data URI of the picture, at most `side` pixels wide; None where it cannot be read (yet)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, *_BOMBS):
        return None
    picture.thumbnail((side, 4 * side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _scores(log: RunLog) -> str:
    if not log.scorings:
        return ""
    before, after = log.comparable_scorings()[0], log.scorings[-1]
    first = {} if before is after else before.figures
    head = ["figure", *([f"after {before.images_seen:,} images"] if first else [])]
    head += [f"after {after.images_seen:,} images", "matched", "floor"]
    rows = []
    for name, (value, matched, floor) in after.figures.items():
        cells = [first.get(name, (math.nan,))[0]] if first else []
        rows.append((escape(name), *map(figure, [*cells, value, matched, floor])))
    shown = {k: v for k, v in after.pins.items() if k not in ("extractor_sha256", "reference")}
    pins = ", ".join(f"{escape(k.replace('_', ' '))} {escape(v)}" for k, v in shown.items())
    note = (
        f"Samples of weights <code>{escape(after.weights)}</code> against held-out images ({pins})."
        " Only figures of one extractor, number of samples and reference compare. The floor is one"
        " half of the real images against the other half; matched scores as many samples against"
        " that same half, and compares with the floor."
    )
    plots = "".join(score_curve(log, name) for name in after.figures) if first else ""
    return (
        f'<section><h2>Scores</h2><p class="note">{note}</p>{table(head, rows)}'
        f'<div class="plots">{plots}</div></section>'
    )


def _validation(log: RunLog) -> str:
    groups = log.of_weights()
    if not groups:
        return ""
    best, group = next(iter(groups.items()))
    before, after = group[0], group[-1]
    since = "" if before is after else f" (first: after {before.images_seen:,})"
    note = (
        f"Weights <code>{escape(best)}</code> after {after.images_seen:,} images{since}."
        " Unweighted mean squared error of the predicted noise on images held out from training;"
        " small λ is mostly noise, large λ mostly image."
    )
    if log.wiener:
        count = "" if log.wiener_images is None else f" to {log.wiener_images:,} images"
        note += (
            f" Wiener is a linear denoiser fitted{count} of the training set: a ratio below 1"
            " means the network knows more than its second-order statistics."
        )
    others = ""
    if len(groups) > 1:
        rows = [
            (escape(name), f"{g[-1].images_seen:,}", figure(g[0].mean), figure(g[-1].mean))
            for name, g in groups.items()
        ]
        head = ("weights", "images seen", "mean eps-MSE, first", "last")
        others = "<h3>All sets of weights</h3>" + table(head, rows)
    plots = spectrum(log, before, after) + validation_means(log)
    return (
        f'<section><h2>Validation</h2><p class="note">{note}</p><div class="plots">{plots}</div>'
        f"{_bin_table(log, before, after)}{others}</section>"
    )


def _bin_table(log: RunLog, before: Validation, after: Validation) -> str:
    """Errors by λ; the first measurement and the yardstick have columns where they exist."""
    first = {} if before is after else dict(zip(before.logsnr, before.eps_mse, strict=True))
    head = ["log-SNR λ", *(["eps-MSE, first"] if first else []), "eps-MSE, last"]
    head += ["Wiener", "last / Wiener"] if log.wiener else []
    rows, css = [], []
    for value, error in sorted(zip(after.logsnr, after.eps_mse, strict=True)):
        wiener = log.wiener.get(value, math.nan)
        ratio = error / wiener if wiener > 0 else math.nan
        cells = [first.get(value, math.nan)] if first else []
        cells += [error, wiener, ratio] if log.wiener else [error]
        rows.append((f"{value:g}", *map(figure, cells)))
        css.append("" if math.isnan(ratio) else "better" if ratio < 1 else "worse")
    return table(head, rows, css)


def _training(log: RunLog) -> str:
    shown = training_curves(log)
    if not shown:
        return ""
    terms = ""
    if log.terms:
        rows = [(escape(name), figure(value)) for name, value in log.terms.items()]
        terms = "<h3>Terms of the loss, last line</h3>" + table(("term", "value"), rows)
    return f'<section><h2>Training</h2><div class="plots">{"".join(shown)}</div>{terms}</section>'


def _config(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG + 1)
    text = escape(data[:_MAX_CONFIG].decode("utf-8", "replace"))
    more = f"\n… cut after {_MAX_CONFIG:,} bytes" if len(data) > _MAX_CONFIG else ""
    return f"<details><summary>Configuration</summary><pre>{text}{more}</pre></details>"
