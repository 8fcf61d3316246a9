import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.charts import losses_picture, smooth, spectrum, training_curves, validation_means
from eval.run_log import RunLog, read_run
from tests.eval.run_folder import AFTER, BEFORE, train_line, validation_line, write_metrics

LOSS_ONLY = dict.fromkeys(("grad_norm", "lr", "images_per_second", "data_wait", "memory_gb"))


def texts(svg: str) -> list[str]:
    """The words of a plot, which must be well-formed on its own."""
    assert svg.startswith('<div class="plot"><svg')
    return [(e.text or "").strip() for e in ElementTree.fromstring(svg).iter("text")]


def log_of(folder: Path, *lines: dict[str, object]) -> RunLog:
    write_metrics(folder, list(lines))
    return read_run(folder)


def tick_values(svg: str) -> list[float]:
    """Numbers that label the vertical axis."""
    part = svg[svg.index("matplotlib.axis_2") :]
    numbers = [word for word in texts(svg) if f">{word}<" in part]
    return [float(word) for word in numbers if re.fullmatch(r"[0-9.e−-]+", word)]


def test_plots_take_their_colours_from_the_page(run: Path) -> None:
    log = read_run(run)
    svgs = [*training_curves(log), validation_means(log)]
    svgs.append(spectrum(log, log.validations[0], log.validations[1]))
    for svg in svgs:
        assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)
        assert "var(--text)" in svg
        assert "http" not in svg
    assert all(f"var(--{ink})" in svgs[-1] for ink in ("one", "two", "three"))


def test_no_two_plots_share_an_id(run: Path) -> None:
    log = read_run(run)
    ids = re.findall(r'id="([^"]*)"', "".join([*training_curves(log), validation_means(log)]))
    assert len(ids) == len(set(ids)) > 10


def test_only_known_curves_are_drawn(tmp_path: Path) -> None:
    lines = [train_line(n, lr=None, data_wait=None) for n in (10, 20)]
    titles = [texts(svg)[-1] for svg in training_curves(log_of(tmp_path, *lines))]
    assert titles == [
        "Training loss",
        "Gradient norm, before clipping",
        "Throughput (images/s)",
        "Peak memory, fullest process (GB)",
    ]


FULL = {
    "mfu": 0.4,
    "memory_reserved_gb": 2.0,
    "step_seconds_min": 0.20,
    "step_seconds_max": 0.25,
    "step_seconds_longest": 0.5,
    "skipped": 3,
}


def test_a_line_of_a_cluster_has_all_curves(tmp_path: Path) -> None:
    """Units are those of the titles; of several lines each is named."""
    log = log_of(tmp_path, *(train_line(n, **FULL) for n in (10, 20, 30)))
    by_title = {
        next(word for word in texts(svg) if word[:1].isupper()): svg for svg in training_curves(log)
    }
    assert len(by_title) == 9
    tops = {title: max(tick_values(svg)) for title, svg in by_title.items()}
    assert 40 <= tops["Model FLOPs utilisation (%)"] <= 44
    assert 500 <= tops["Step time (ms)"] <= 550
    assert 2 <= tops["Peak memory, fullest process (GB)"] <= 2.2
    assert sorted(tick_values(by_title["Steps skipped so far"])) == [0, 1, 2, 3]
    words = texts(by_title["Step time (ms)"])
    assert words[-3:] == ["slowest process", "fastest process", "longest step"]
    assert texts(by_title["Peak memory, fullest process (GB)"])[-2:] == ["allocated", "reserved"]


def test_the_slowest_process_is_above_the_fastest(tmp_path: Path) -> None:
    fields = FULL | {"step_seconds_longest": None}
    log = log_of(tmp_path, *(train_line(n, **fields) for n in (10, 20, 30)))
    (svg,) = (one for one in training_curves(log) if "Step time" in one)
    height = {
        ink: min(float(y) for y in re.findall(rf'y="([0-9.]+)" style="fill: var\(--{ink}\)', svg))
        for ink in ("one", "two")
    }
    assert height["one"] < height["two"]  # measured from the top
    assert "var(--three)" not in svg


def test_spectrum_has_a_line_for_each_thing_known(run: Path) -> None:
    log = read_run(run)
    first, last = log.validations
    assert texts(spectrum(log, first, last))[-3:] == ["first", "last", "Wiener"]
    log.wiener = {}
    assert texts(spectrum(log, first, last))[-2:] == ["first", "last"]
    alone = texts(spectrum(log, last, last))
    assert alone[-1] == "last"
    assert "first" not in alone


def test_means_have_a_line_for_each_set_of_weights(tmp_path: Path) -> None:
    lines = [validation_line(n, AFTER, w) for n in (10, 20) for w in ("raw", "$\\frac{")]
    words = texts(validation_means(log_of(tmp_path, *lines)))
    assert set(words[-2:]) == {"validation, raw", "validation, $\\frac{"}


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1275, 0.1393), (0.31, 0.47), (2.2, 9.1), (0.012, 0.7), (3e-5, 2.0), (4.0, 4.0)],
)
def test_a_logarithmic_axis_always_has_numbers(tmp_path: Path, low: float, high: float) -> None:
    lines = [train_line(10, loss=high, **LOSS_ONLY), train_line(20, loss=low, **LOSS_ONLY)]
    log = log_of(tmp_path, *lines)
    values = tick_values(training_curves(log)[0])
    near = [v for v in values if 0.8 * low <= v <= 1.25 * high]
    assert len(near) >= (1 if low == high else 2)


@pytest.mark.parametrize("lines", [1, 2])
def test_a_short_curve_can_be_seen(tmp_path: Path, lines: int) -> None:
    log = log_of(tmp_path, *(train_line(10 * n + 10, **LOSS_ONLY) for n in range(lines)))
    (svg,) = training_curves(log)
    marks = re.findall(r'<use href="#[^"]*" x="[^"]*" y="[^"]*" style="fill: var\(--one\)', svg)
    assert len(marks) == lines


def test_curves_of_zeros_are_drawn_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    zeros = {"lr": 0.0, "data_wait": 0.0, "loss": 0.0, "grad_norm": 0.0}
    assert len(training_curves(log_of(tmp_path, train_line(10, **zeros)))) == 6
    assert not list(recwarn)


def test_picture_of_losses(run: Path) -> None:
    with Image.open(io.BytesIO(losses_picture(read_run(run)))) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in np.unique(pixels, axis=0).tolist()}
    assert (0x16, 0x68, 0xB8) in colours  # training
    assert (0xC4, 0x54, 0x1C) in colours  # validation
    assert list(pixels[0]) == [255, 255, 255]


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 1, 20_000)  # nothing for a renderer to merge
    lines = [train_line(n, loss=loss, **LOSS_ONLY) for n, loss in enumerate(losses.tolist())]
    (svg,) = training_curves(log_of(tmp_path, *lines))
    longest = max(len(d) for d in re.findall(r' d="([^"]*)"', svg))
    assert 500 * len("L 1.2 3.4") < longest < 2000 * len("L 123.123456 123.123456 ")


def test_smoothed_curve_is_the_mean_of_its_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=200)
    values[[3, 90]] = np.nan
    expected = [np.nanmean(values[max(0, i - 5) : i + 6]) for i in range(200)]
    assert smooth(values) == pytest.approx(expected)
    assert np.isnan(smooth(np.full(4, np.nan))).all()
    assert len(smooth(np.empty(0))) == 0


def test_drawing_is_repeatable(tmp_path: Path) -> None:
    log = log_of(tmp_path, validation_line(0, BEFORE), train_line(10), validation_line(10, AFTER))
    assert validation_means(log) == validation_means(log)
    assert losses_picture(log) == losses_picture(log)
