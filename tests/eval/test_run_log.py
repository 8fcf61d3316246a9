import json
import math
from pathlib import Path

import numpy as np
import pytest

from eval.run_log import TRAIN_FIELDS, read_run, sample_grids
from tests.eval.run_folder import (
    AFTER,
    BEFORE,
    LOGSNR,
    WIENER,
    run_line,
    train_line,
    validation_line,
    write_metrics,
    write_picture,
)


def test_everything_in_the_folder_is_read(run: Path) -> None:
    log = read_run(run)
    images = np.arange(100, 4000, 100)
    assert np.array_equal(log.images_seen, images)
    assert set(log.curves) == set(TRAIN_FIELDS)
    assert np.array_equal(log.curves["loss"], 1 / (1 + images / 100))
    assert np.array_equal(log.curves["seconds"], images / 64)
    assert (log.steps, log.parameters, log.total_images) == (390, 1234567, 8000)
    assert (log.device, log.processes, log.threads, log.precision) == ("cpu", 1, 2, "fp32")
    assert [v.images_seen for v in log.validations] == [0, 4000]
    assert log.validations[1].logsnr == tuple(LOGSNR)
    assert log.validations[1].eps_mse == tuple(AFTER)
    assert log.validations[1].mean == pytest.approx(np.mean(AFTER))
    assert log.wiener == dict(zip(LOGSNR, WIENER, strict=True))
    assert log.wiener_images == 4096
    assert log.unreadable == 0


def test_an_empty_folder_is_a_run_that_has_not_begun(tmp_path: Path) -> None:
    log = read_run(tmp_path)
    assert len(log.images_seen) == 0
    assert all(len(log.curves[name]) == 0 for name in TRAIN_FIELDS)
    assert (log.steps, log.parameters, log.replaced, log.total_images) == (None,) * 4
    assert log.of_weights() == {}
    assert sample_grids(tmp_path) == []


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such run folder"):
        read_run(tmp_path / "absent")


def test_the_last_train_line_gives_terms_and_counts(tmp_path: Path) -> None:
    lines = [
        train_line(10, replaced=1, **{"loss/eps_mse": 0.5, "loss/old": 1.0}),
        train_line(20, replaced=7, **{"loss/eps_mse": 0.25}),
    ]
    write_metrics(tmp_path, lines)
    log = read_run(tmp_path)
    assert log.terms == {"eps_mse": 0.25}
    assert (log.steps, log.replaced) == (2, 7)


def test_a_torn_last_line_is_no_error(tmp_path: Path) -> None:
    write_metrics(tmp_path, [train_line(10)], tail='{"kind": "train", "images_seen": 20')
    log = read_run(tmp_path)
    assert list(log.images_seen) == [10]
    assert log.unreadable == 0


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        "[" * 100_000,
        '"a string"',
        "",
        '{"kind": "train", "loss": 1}',
        '{"kind": "train", "images_seen": -1}',
        '{"kind": "train", "images_seen": true}',
        '{"kind": "train", "images_seen": 1e3}',
        '{"kind": "validation", "images_seen": 5, "logsnr": [1, 2], "eps_mse": [1]}',
        '{"kind": "validation", "images_seen": 5, "logsnr": "x", "eps_mse": 3}',
        json.dumps(
            {"kind": "validation", "images_seen": 5, "logsnr": [0] * 257, "eps_mse": [0] * 257}
        ),
        '"' + "x" * 3_000_000 + '"',
    ],
    ids=lambda text: text[:40],
)
def test_an_unreadable_line_is_counted_and_left_out(tmp_path: Path, bad: str) -> None:
    good = [json.dumps(train_line(n)) for n in (10, 20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([good[0], bad, good[1]]) + "\n")
    log = read_run(tmp_path)
    assert log.unreadable == 1
    assert list(log.images_seen) == [10, 20]
    assert not log.validations


def test_values_of_another_kind_are_absent(tmp_path: Path) -> None:
    lines = [
        run_line(device=["cpu"], precision=16, processes=-1, threads=2.0, total_images="many"),
        train_line(10, loss=None, lr="fast", grad_norm=True, data_wait=10**400, replaced="x"),
    ]
    write_metrics(tmp_path, lines)
    log = read_run(tmp_path)
    assert (log.device, log.precision) == ("", "")
    assert (log.processes, log.threads, log.total_images, log.replaced) == (None,) * 4
    for name in ("loss", "lr", "grad_norm", "data_wait"):
        assert math.isnan(log.curves[name][0])
    assert log.curves["seconds"][0] == 10 / 64


def test_long_text_is_cut(tmp_path: Path) -> None:
    write_metrics(tmp_path, [run_line(device="x" * 10_000)])
    assert read_run(tmp_path).device == "x" * 80


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"logsnr": [1], "eps_mse": []}', " " * 2**21]
)
def test_a_yardstick_that_cannot_be_read_is_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "wiener.json").write_text(text)
    assert read_run(tmp_path).wiener == {}


def test_untrained_measurement_opens_every_series(tmp_path: Path) -> None:
    lines = [validation_line(0, BEFORE, "raw")]
    lines += [validation_line(n, AFTER, "ema") for n in (10, 20)]
    write_metrics(tmp_path, lines)
    log = read_run(tmp_path)
    assert log.of_weights() == {"ema": log.validations}
    assert len(log.validations) == 3  # as the file has them

    write_metrics(tmp_path, lines[:1])
    log = read_run(tmp_path)
    assert log.of_weights() == {"raw": log.validations}


def test_weights_keep_their_own_untrained_measurement(tmp_path: Path) -> None:
    lines = [validation_line(n, e, w) for n, e in ((0, BEFORE), (9, AFTER)) for w in ("a", "b")]
    write_metrics(tmp_path, lines)
    groups = read_run(tmp_path).of_weights()
    assert {name: [v.weights for v in group] for name, group in groups.items()} == {
        "a": ["a", "a"],
        "b": ["b", "b"],
    }


def test_weights_measured_last_come_first_and_among_them_the_best(tmp_path: Path) -> None:
    lines = [
        validation_line(10, [0.001] * 3, "abandoned"),
        validation_line(20, AFTER, "good"),
        validation_line(20, BEFORE, "bad"),
        validation_line(20, AFTER, "broken") | {"mean": None},
    ]
    write_metrics(tmp_path, [lines[i] for i in (3, 0, 2, 1)])
    assert list(read_run(tmp_path).of_weights()) == ["good", "bad", "broken", "abandoned"]


def test_grids_are_sorted_by_images_seen(tmp_path: Path) -> None:
    for name in ("000000020.png", "9.png", "final.png", "1e3.png", "-5.png", "1" * 16 + ".png"):
        write_picture(tmp_path / "samples" / name, (0, 0, 0))
    assert [(seen, path.name) for seen, path in sample_grids(tmp_path)] == [
        (9, "9.png"),
        (20, "000000020.png"),
    ]
