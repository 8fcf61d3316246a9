"""`simple-diffusion data`: the exact forms that scripts rely on."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.manifest import Manifest
from simple_diffusion.cli.data import add_parser
from tests.data_pipelines.samples import encode, photo, write_numbered_tars


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="simple-diffusion")
    add_parser(top.add_subparsers(required=True))
    return top


def run(*arguments: str | Path) -> int:
    args = parser().parse_args(["data", *map(str, arguments)])
    code = args.func(args)
    assert isinstance(code, int)
    return code


def test_folder_verify_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src" / "cats").mkdir(parents=True)
    for number in range(12):
        (tmp_path / "src" / "cats" / f"{number}.png").write_bytes(encode(photo(20, 30, number)))
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class\n" + "".join(f"cats/{n}.png,c{n % 2}\n" for n in range(12)))
    out = tmp_path / "out"
    form = ("build", "folder", tmp_path / "src", out, "--size", "16", "--labels", labels)
    assert run(*form, "--validation", "0.4", "--licence", "CC0") == 0
    assert Manifest.load(out).classes == ("c0", "c1")
    assert Manifest.load(out).licence == "CC0"
    assert run(*form, "--validation", "0.4", "--licence", "CC0") == 0
    assert "complete already" in capsys.readouterr().out
    assert run("verify", out) == 0
    assert capsys.readouterr().out.count("sound") == 2  # the held-out part as well
    assert run("show", out, "--out", tmp_path / "s.png", "--num", "4", "--size", "32") == 0
    assert Image.open(tmp_path / "s.png").size == (88, 148)
    shard = out / "validation" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run("verify", out) == 1
    assert "1 problem(s)" in capsys.readouterr().out


def test_build_table_split_and_verify_with_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,class,who"]
    for number in range(24):
        (tmp_path / f"{number}.jpg").write_bytes(encode(photo(20, 30, number), "JPEG"))
        rows.append(f"{number}.jpg,c{number % 2},p{number % 9}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    build = ("build", "table", tmp_path / "t.csv")
    form = (*build, tmp_path / "out", "--keep_bytes", "--shard_samples", "4")
    assert run(*form, "--validation", "0.4", "--split_by", "who", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert "width to height: 4:3 to 2:1 24 (100%)" in printed
    assert run("verify", tmp_path / "out", "--workers", "2") == 0
    assert Manifest.load(tmp_path / "out").num_samples < 24
    assert run(*build, tmp_path / "all", "--size", "10", "--shard_bytes", "20000") == 0
    assert len(Manifest.load(tmp_path / "all").shards) > 1
    split = ("split", tmp_path / "all", tmp_path / "two", "--validation", "0.4")
    assert run(*split, "--shard_samples", "5") == 0
    held = Manifest.load(tmp_path / "two" / "validation")
    assert 0 < held.num_samples < 24
    assert [shard.samples for shard in held.shards][:-1] == [5] * (len(held.shards) - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say how images are stored: --size"),
        (["--keep_bytes", "--size", "8"], "--keep_bytes and --size exclude each other"),
        (["--keep_bytes", "--quality", "8"], "--keep_bytes and --quality exclude"),
        (["--size", "8", "--slurm", "partition=a"], "'partition' is of no use with"),
        (["--size", "8", "--slurm", "partition"], "must be KEY=VALUE"),
        (["--size", "8", "--slurm", "a=1", "a=2"], "--slurm a is given twice"),
        (["--size", "8", "--workers", "0"], "workers is 0"),
        (["--size", "8", "--shard_samples", "0"], "shard_samples is 0"),
    ],
)
def test_bad_build_options(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(ValueError, match=message):
        run("build", "tars", tmp_path / "src", tmp_path / "out", *options)


def test_shards_have_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("build", "icons", "OUT", "--size", "8", "--shard_samples", "8", "--shard_bytes", "9")
    assert "not allowed with" in capsys.readouterr().err


def test_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_numbered_tars(tmp_path, [2, 3])
    assert run("index", tmp_path, "--workers", "2") == 0
    assert "5 samples in 2 shards" in capsys.readouterr().out
    assert Manifest.load(tmp_path).num_samples == 5


def test_combine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_numbered_tars(tmp_path / "one", [6, 6])
    write_numbered_tars(tmp_path / "two", [9])
    for name in ("one", "two"):
        assert run("index", tmp_path / name) == 0
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))

    def ranges() -> list[tuple[object, ...]]:
        entries = Manifest.load(out).recipe["sources"]
        return [tuple(e[key] for key in ("name", "num", "first", "seed")) for e in entries]

    assert run("combine", out, one, f"{two}:4:5", f"{one}:3") == 0
    assert ranges() == [("one", 12, 0, 0), ("two", 4, 5, 0), ("one", 3, 0, 0)]
    assert "19 images in 1 shard(s)" in capsys.readouterr().out
    again = ("combine", out, f"{two}:4", "--seed", "7", "--shard_samples", "3")
    with pytest.raises(ValueError, match="--overwrite"):
        run(*again)
    assert run(*again, "--overwrite") == 0
    assert ranges() == [("two", 4, 0, 7)]
    assert [shard.samples for shard in Manifest.load(out).shards] == [3, 1]
    assert run("verify", out) == 0
    with pytest.raises(ValueError, match="rank 9 to 9 are asked for, but it has 9"):
        run("combine", tmp_path / "new", f"{two}:1:9")


def test_icons_options() -> None:
    form = ["data", "build", "icons", "OUT", "--size", "64", "--sets", "material,octicons"]
    args = parser().parse_args([*form, "--min_class", "5", "--validation", "0.05", "--overwrite"])
    assert (args.out, args.size, args.sets) == ("OUT", 64, "material,octicons")
    assert (args.min_class, args.validation, args.overwrite) == (5, 0.05, True)


def test_no_samples_in_a_shard_are_refused_where_there_is_a_default(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_samples is 0"):
        run("build", "icons", tmp_path / "out", "--size", "64", "--shard_samples", "0")


def test_icons_reach_the_builder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="icon sets are material, nope; choose"):
        run("build", "icons", tmp_path / "out", "--size", "64", "--sets", "material, nope")


@pytest.mark.parametrize(
    "verb",
    [
        *("", "build", "build icons", "build folder", "build table", "build hf", "build tars"),
        *("build imagenet", "combine", "split", "index", "verify", "show", "bench"),
    ],
)
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["data", *verb.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    example = text.split("example:\n  simple-diffusion ")[1].splitlines()[0].split()
    args = parser().parse_args(example)  # the example is itself valid
    assert callable(args.func)


def test_the_parser_is_light() -> None:
    code = (
        "import sys, argparse; from simple_diffusion.cli.data import add_parser; "
        "add_parser(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'data_pipelines'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
