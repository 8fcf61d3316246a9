"""Tables: what they list is what is stored; bad rows are told by line; paths stay inside."""

import csv
import json
import pickle
from pathlib import Path

import pytest

from data_pipelines.sources.rows import read_rows
from data_pipelines.sources.storage import Filters, Storage
from data_pipelines.sources.table import TableSource
from tests.data_pipelines.samples import encode, photo
from tests.data_pipelines.sources.sets import build, listed, read_all, refused, tree_bytes

ROWS = [
    {"path": "b/1.png", "class": "dog", "caption": "a dog, sitting", "by": "ann"},
    {"path": "a/2.jpg", "class": "cat", "caption": "", "by": "bob"},
    {"path": "a/3.png", "class": "", "caption": 'the "third"\nof them', "by": "ann"},
]
IMAGES = {
    "b/1.png": encode(photo(20, 30, 1)),
    "a/2.jpg": encode(photo(20, 30, 2), "JPEG"),
    "a/3.png": encode(photo(30, 20, 3)),
}


def write_images(root: Path, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes a table by the libraries that people write tables with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_what_is_listed_is_stored(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, IMAGES)
    table = write_table(tmp_path / f"table{suffix}", ROWS)
    report = build(TableSource(table, licence="mine"), tmp_path / "out")
    samples = read_all(report)
    assert list(samples) == ["b/1", "a/2", "a/3"]  # the table's order
    for row, sample in zip(ROWS, samples.values(), strict=True):
        assert sample.image == IMAGES[str(row["path"])]
        assert sample.class_ == (row["class"] or None)
        assert sample.caption == (row["caption"] or None)
    assert report.manifest.classes == ("cat", "dog")
    assert report.manifest.licence == "mine"
    assert report.manifest.source == f"images of the table table{suffix}"
    assert build(TableSource(table, licence="mine"), tmp_path / "out").reused


def test_all_kinds_of_tables_give_the_same_samples(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    tars = []
    for number, suffix in enumerate([".csv", ".jsonl", ".parquet"]):
        table = write_table(tmp_path / f"table{suffix}", ROWS)
        build(TableSource(table, storage=Storage(10)), tmp_path / f"out{number}")
        tars.append(tree_bytes(tmp_path / f"out{number}")["shard-000000.tar"])
    assert tars[0] == tars[1] == tars[2]


def test_columns_root_and_group(tmp_path: Path) -> None:
    write_images(tmp_path / "images", IMAGES)
    rows = [{"file": r["path"], "kind": r["class"], "alt": r["caption"], **r} for r in ROWS]
    for row in rows:
        row["path"] = row["class"] = row["caption"] = "wrong"
    table = write_table(tmp_path / "tables" / "t.csv", rows)
    source = TableSource(
        table, tmp_path / "images", path="file", class_="kind", caption="alt", group="by"
    )
    assert [item.group for item in listed(source)] == ["ann", "bob", "ann"]
    samples = read_all(build(source, tmp_path / "out")).values()
    assert [s.class_ for s in samples] == ["dog", "cat", None]
    assert [s.caption for s in samples] == ["a dog, sitting", None, 'the "third"\nof them']
    # Kept, so that `data split --field by` can split by it later.
    assert [s.value("by") for s in samples] == ["ann", "bob", "ann"]


def test_class_numbers_stay_the_labels(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    write_images(tmp_path, {name: encode(photo(8, 8, 1)) for name in names})
    rows = [{"path": n, "class": c} for n, c in zip(names, [10, 9, 2, 10], strict=True)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        source = TableSource(write_table(tmp_path / f"t{suffix}", rows))
        manifest = build(source, tmp_path / f"out{suffix[1:]}").manifest
        assert manifest.classes == tuple(str(number) for number in range(11))
        assert manifest.class_counts == (0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2)
    rows[0]["class"] = "ten"
    source = TableSource(write_table(tmp_path / "named.csv", rows))
    assert build(source, tmp_path / "named").manifest.classes == ("10", "2", "9", "ten")


def test_bad_rows_are_told_by_line(tmp_path: Path) -> None:
    write_images(tmp_path, {**IMAGES, "broken.png": IMAGES["b/1.png"][:100], "empty.png": b""})
    (tmp_path / "t.csv").write_text(
        "path,class,caption\n"
        "b/1.png,dog,fine\n"
        "b/1.png,dog,again\n"
        "a/2.jpg,cat\n"
        "\n"
        ",cat,nothing\n"
        'a/3.png,cat,"two\nlines"\n'
        "gone.png,cat,\n"
        "broken.png,cat,\n"
        "empty.png,cat,\n"
        "a,cat,a folder\n"
    )
    source = TableSource(tmp_path / "t.csv")
    assert refused(source) == {
        "t.csv, line 3 (b/1.png)": "listed twice: as line 2 is",
        "t.csv, line 4": "bad row: 2 cells under 3 columns",
        "t.csv, line 6": "bad path: empty, or with a zero byte",
    }
    kept = listed(source)
    assert [item.key for item in kept] == ["b/1", "a/3", "gone", "broken", "empty", "a"]
    results = [source.sample(item) for item in kept[2:]]
    reasons = {result.name: result.reason for result in results}  # type: ignore[union-attr]
    assert list(reasons) == [
        "t.csv, line 9 (gone.png)",
        "t.csv, line 10 (broken.png)",
        "t.csv, line 11 (empty.png)",
        "t.csv, line 12 (a)",
    ]
    kinds = ["unreadable file: No such", "unreadable image: damaged PNG", "unreadable image: the"]
    for reason, start in zip(
        reasons.values(), [*kinds, "unreadable image: it is not"], strict=True
    ):
        assert reason.startswith(start)
    report = build(source, tmp_path / "out")
    assert list(read_all(report)) == ["b/1", "a/3"]


def test_bad_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"path": "b/1.png", "class": "dog"}',
        "{",
        "[1]",
        '{"path": 7}',
        '{"path": "a.png", "class": ["dog"]}',
        '{"path": "a.png", "class": true}',
        '{"path": "a.png", "caption": "\\ud800"}',
        '{"path": "\\ud800.png"}',
        '{"path": "a\\u0000.png"}',
        '{"class": "dog"}',
        '{"path": "a.png", "caption": "' + "x" * 300_000 + '"}',
        '{"path": "a.png", "caption": "' + "x" * 2_000_000 + '"}',
        "[" * 100_000,
        '{"path": "last.png", "class": 12}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = TableSource(tmp_path / "t.jsonl")
    assert [(i.key, i.class_) for i in listed(source)] == [("b/1", "dog"), ("last", "12")]
    reasons = refused(source)
    assert list(reasons) == [f"t.jsonl, line {number}" for number in range(2, 14)]
    expected = [
        "bad row: not valid JSON",
        "bad row: a list, not a JSON object",
        "bad path: no text",
        "bad text: its class is a list",
        "bad text: its class is a bool",
        "bad text: its caption holds half a surrogate",
        "bad path: not valid text",
        "bad path: empty, or with a zero byte",
        "bad path: no text",
        "bad text: its caption is longer than 262144 bytes",
        "bad row: longer than 1048576 characters",
        "bad row: not valid JSON",
    ]
    for reason, start in zip(reasons.values(), expected, strict=True):
        assert reason.startswith(start)


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "..", "/secret.png"])
def test_no_path_leaves_the_root(tmp_path: Path, path: str) -> None:
    write_images(tmp_path, {"secret.png": IMAGES["b/1.png"], "root/x.png": IMAGES["b/1.png"]})
    named = path.replace("/secret", str(tmp_path / "secret")) if path[0] == "/" else path
    table = write_table(tmp_path / "root" / "t.jsonl", [{"path": named}, {"path": "./x.png"}])
    source = TableSource(table)
    assert [item.key for item in listed(source)] == ["x"]
    assert refused(source)["t.jsonl, line 1"].startswith("outside path: ")


def test_absolute_paths_if_allowed(tmp_path: Path) -> None:
    write_images(tmp_path, {"elsewhere/x.png": IMAGES["b/1.png"]})
    rows = [{"path": str(tmp_path / "elsewhere" / "x.png")}, {"path": "../elsewhere/x.png"}]
    table = write_table(tmp_path / "root" / "t.csv", rows)
    source = TableSource(table, allow_absolute=True)
    (sample,) = read_all(build(source, tmp_path / "out")).values()
    assert sample.image == IMAGES["b/1.png"]
    assert sample.key.endswith("x-" + sample.key[-10:])
    assert not sample.key.startswith("/")
    assert list(refused(source)) == ["t.csv, line 3"]


def test_captions_and_sizes_are_filtered(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    table = write_table(tmp_path / "t.csv", ROWS)
    source = TableSource(table, filters=Filters(min_caption=1, min_aspect=1.0))
    assert refused(source) == {"t.csv, line 3": "caption too short: 0 characters"}
    report = build(source, tmp_path / "out")
    assert list(read_all(report)) == ["b/1"]
    assert report.tally.rejected == {"caption too short": 1, "too tall": 1}


def test_duplicates_the_first_in_order_stays(tmp_path: Path) -> None:
    same, other = encode(photo(9, 9, 1)), encode(photo(9, 9, 2))
    write_images(tmp_path, {"z.png": same, "y.png": other, "x.png": same, "w.png": same})
    rows = [{"path": f"{name}.png"} for name in ("z", "y", "x", "gone", "w")]
    table = write_table(tmp_path / "t.csv", rows)
    source = TableSource(table, drop_duplicates=True)
    assert [item.key for item in listed(source)] == ["z", "y", "gone"]
    reason = "duplicate: the same bytes as t.csv, line 2 (z.png)"
    assert refused(source) == {"t.csv, line 4 (x.png)": reason, "t.csv, line 6 (w.png)": reason}
    scan = tmp_path / "scan"
    prepared = source.prepared(scan, workers=1, progress=False)
    assert list(scan.iterdir())
    assert list(pickle.loads(pickle.dumps(prepared)).items()) == list(source.items())
    assert list(read_all(build(source, tmp_path / "out", workers=2))) == ["z", "y"]


def test_same_stems_get_different_keys(tmp_path: Path) -> None:
    names = ["a.png", "a.jpg", "A.webp", "b.png", "c d.png", "./b.png"]
    table = write_table(tmp_path / "t.jsonl", [{"path": name} for name in names])
    keys = [item.key for item in listed(TableSource(table))]
    assert len({key.lower() for key in keys}) == 5
    assert keys[3] == "b"
    assert all("." not in key and key.isascii() for key in keys)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,class\na,b\n", r"no column 'path' among 'class', 'file'"),
        ("t.csv", "", r"no column 'path' among its columns: it is empty"),
        ("t.csv", "path,path\na,b\n", "line 1: two columns have one name"),
        ("t.csv", 'path,class\na,b\n"c', "line 3: not a table"),
        ("t.csv", 'path\na\n"' + "x" * 200_000 + '"\n', "line 3: not a table .*field larger"),
        ("t.csv", "path\na\n" + "x" * 2_000_000, "line 3: not a table .*longer than 1048576"),
        ("t.csv", "path\n\xff\n", "not a table in UTF-8"),
        ("t.jsonl", "\xff\n", "not a table in UTF-8"),
        ("t.jsonl", '{"file": "a"}\n', "no column 'path'"),
        ("t.parquet", "PAR1", "not a Parquet file"),
        ("t.txt", "path\n", "not the name of a table; known are .csv"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message) as caught:
        list(TableSource(tmp_path / name).items())
    assert name in str(caught.value)


def test_columns_that_are_asked_for_have_to_be_there(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"path": "a.png", "class": "x"}])
    for option in ("class_", "caption", "group"):
        with pytest.raises(ValueError, match="no column 'kind' among 'class', 'path'"):
            list(TableSource(table, **{option: "kind"}).items())
    with pytest.raises(ValueError, match="there is no such table"):
        TableSource(tmp_path / "gone.csv").recipe()


def test_parquet_is_read_safely(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # One text of 2 MiB that a dictionary repeats a million times: 2 TiB if taken literally.
    bomb = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1_000_000, pyarrow.int32()), ["x" * 2**21]
    )
    paths = pyarrow.array(["a.png"] * 1_000_000)
    parquet.write_table(pyarrow.table({"path": paths, "caption": bomb}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**22
    with pytest.raises(ValueError, match="a text in the column 'caption' has 2097152 bytes"):
        list(TableSource(tmp_path / "bomb.parquet").items())
    lists = pyarrow.table({"path": ["a.png"], "class": [["x"]]})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match=r"column 'class' holds list.*, not text or integers"):
        list(TableSource(tmp_path / "lists.parquet").items())
    whole = write_table(tmp_path / "t.parquet", ROWS).read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:40] + bytes(40) + whole[80:])
    with pytest.raises(ValueError, match=r"t\.parquet"):
        list(read_rows(tmp_path / "t.parquet", ["path", "class", "caption"]))


def test_a_dictionary_column_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "path": pyarrow.array(["a.png", "b.png", None], pyarrow.large_string()),
            "class": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "caption": pyarrow.nulls(3),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    source = TableSource(tmp_path / "t.parquet")
    assert [(i.key, i.class_, i.caption) for i in listed(source)] == [
        ("a", "x", None),
        ("b", "y", None),
    ]
    assert list(refused(source)) == ["t.parquet, row 3"]


def test_the_images_are_part_of_the_recipe(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_images(tmp_path / name, IMAGES)
    table = write_table(tmp_path / "t.csv", ROWS)

    def recipe(root: str) -> object:
        return TableSource(table, root=tmp_path / root).recipe()

    first = recipe("one")
    assert recipe("two") == first  # of the same files in another place
    write_images(tmp_path / "two", {"a/2.jpg": b"other bytes"})
    changed = recipe("two")
    assert changed != first
    (tmp_path / "two" / "a" / "2.jpg").unlink()
    assert recipe("two") not in (first, changed)
    build(TableSource(table, root=tmp_path / "one"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"listing: .*--overwrite"):
        build(TableSource(table, root=tmp_path / "two"), tmp_path / "out")
