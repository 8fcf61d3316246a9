"""Combining shard sets: which samples, their bytes and labels, mixing, and what is refused."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipelines.building.combine import Source, combine
from data_pipelines.building.stream import BuildReport, Sample, write_shards
from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shards import RawSample, ShardReader
from data_pipelines.store import LocalStore
from data_pipelines.verify import verify
from tests.data_pipelines.samples import encode, flat_png, photo, write_tar


def make(
    root: Path,
    count: int,
    *,
    grey: int,
    classes: Sequence[str] | None = ("ape", "bee"),
    synthetic: bool = False,
    shard_samples: int = 7,
) -> Path:
    """A set whose sample n has key `s<n>`, class n % 2 and grey levels from `grey` on."""

    def samples() -> list[Sample]:
        return [
            Sample(
                f"s{n}",
                flat_png((grey + n) % 256),
                "png",
                8,
                8,
                classes[n % len(classes)] if classes else None,
                f"text {n}",
                synthetic,
            )
            for n in range(count)
        ]

    write_shards(
        samples,
        root,
        source=f"source of {root.name}",
        licence="CC0; MIT" if synthetic else "CC0",
        recipe={},
        classes=classes,
        shard_samples=shard_samples,
        progress=False,
    )
    return root


def join(sources: Sequence[Source], out: Path, **options: bool | int) -> BuildReport:
    return combine(sources, out, progress=False, **options)  # type: ignore[arg-type]


def read(root: Path) -> list[RawSample]:
    manifest = Manifest.load(root)
    reader = ShardReader(LocalStore(root, manifest))
    return [reader.read(s, i) for s, e in enumerate(manifest.shards) for i in range(e.samples)]


def images(root: Path) -> set[bytes]:
    return {sample.image for sample in read(root)}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return make(tmp_path / "real", 30, grey=0)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make(tmp_path / "made", 20, grey=100, synthetic=True)


def test_everything_of_both(real: Path, made: Path, tmp_path: Path) -> None:
    report = join([Source(real), Source(made)], tmp_path / "out", shard_samples=25)
    manifest = report.manifest
    assert Manifest.load(tmp_path / "out") == manifest
    assert (manifest.num_samples, manifest.synthetic) == (50, 20)
    assert (manifest.classes, manifest.class_counts) == (("ape", "bee"), (25, 25))
    assert manifest.source == "source of real + source of made"
    assert manifest.licence == "CC0; MIT"
    assert verify(tmp_path / "out", progress=False).sound
    before = {f"{n}/{old.key}": old for n, root in enumerate((real, made)) for old in read(root)}
    after = {new.key: new for new in read(tmp_path / "out")}
    assert after.keys() == before.keys()
    for key, new in after.items():
        old = before[key]
        assert new == RawSample(**{**vars(old), "key": key})
        assert new.synthetic == key.startswith("1/")


def test_a_set_combined_alone_is_a_copy(made: Path, tmp_path: Path) -> None:
    """Counts in the manifest are those of the samples, not sums of the sources' manifests."""
    path = made / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"synthetic": 3}))
    assert join([Source(made)], tmp_path / "out").manifest.synthetic == 20


def test_ranges_of_one_order_share_nothing(real: Path, tmp_path: Path) -> None:
    parts = []
    for first in (0, 12, 24):
        out = tmp_path / f"part{first}"
        num = min(12, 30 - first)
        assert join([Source(real, num, first)], out).manifest.num_samples == num
        parts.append(images(out))
    assert len(set.union(*parts)) == sum(map(len, parts)) == 30
    join([Source(real, None, 24)], tmp_path / "rest")
    assert images(tmp_path / "rest") == parts[2]
    join([Source(real, 24)], tmp_path / "first two")
    assert images(tmp_path / "first two") == parts[0] | parts[1]
    # neither the beginning of the set nor the same for every seed
    assert parts[0] != {flat_png(n) for n in range(12)}
    join([Source(real, 12, seed=1)], tmp_path / "other")
    assert images(tmp_path / "other") != parts[0]


def test_choice_does_not_depend_on_the_shards(real: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", 30, grey=0, shard_samples=3)
    for root in (real, again):
        join([Source(root, 11, 5)], tmp_path / f"of {root.name}")
    assert images(tmp_path / "of real") == images(tmp_path / "of again")


def test_choice_is_even(tmp_path: Path) -> None:
    """Of 400 samples, 100 ranks hold about half of either class, and about half of each half."""
    big = make(tmp_path / "big", 400, grey=0, shard_samples=400)
    join([Source(big, 100)], tmp_path / "out")
    numbers = [int(sample.key.removeprefix("0/s")) for sample in read(tmp_path / "out")]
    assert numbers == sorted(numbers)
    for half in (sum(n < 200 for n in numbers), sum(n % 2 for n in numbers)):
        assert 25 < half < 75  # six standard deviations of a fair draw are 26


def test_order_of_the_sources_decides_the_keys_alone(
    real: Path, made: Path, tmp_path: Path
) -> None:
    sources = [Source(real, 30), Source(made, 10, seed=3)]  # some fall on equal places
    join(sources, tmp_path / "one")
    join(sources[::-1], tmp_path / "two")
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert [(s.image, s.class_, s.caption) for s in one] == [
        (s.image, s.class_, s.caption) for s in two
    ]
    swap = {"0": "1", "1": "0"}
    assert [s.key for s in one] == [swap[s.key[0]] + s.key[1:] for s in two]


def test_sources_are_mixed_evenly(real: Path, made: Path, tmp_path: Path) -> None:
    join([Source(real, 30), Source(made, 15)], tmp_path / "out")
    flags = [sample.synthetic for sample in read(tmp_path / "out")]
    for start in range(len(flags) - 9):
        assert 2 <= sum(flags[start : start + 9]) <= 4


def test_same_bytes_again(real: Path, made: Path, tmp_path: Path) -> None:
    sources = [Source(real, 20), Source(made)]
    for name in ("one", "two"):
        assert not join(sources, tmp_path / name, shard_samples=8).reused
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 11  # a manifest, and five shards with their indices
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert join(sources, tmp_path / "one", shard_samples=8).reused
    with pytest.raises(ShardSetError, match=r"built otherwise.*--overwrite"):
        join([Source(real, 20), Source(made, seed=1)], tmp_path / "one", shard_samples=8)
    join([Source(real)], tmp_path / "one", overwrite=True)
    assert Manifest.load(tmp_path / "one").num_samples == 30


class TestClasses:
    def test_first_source_keeps_its_labels(self, tmp_path: Path) -> None:
        one = make(tmp_path / "one", 4, grey=0, classes=("cow", "ape"))
        two = make(tmp_path / "two", 6, grey=10, classes=("bee", "ape", "cow"))
        manifest = join([Source(one), Source(two)], tmp_path / "out").manifest
        assert manifest.classes == ("cow", "ape", "bee")
        assert manifest.class_counts == (2 + 2, 2 + 2, 2)
        manifest = join([Source(two), Source(one)], tmp_path / "other").manifest
        assert manifest.classes == ("bee", "ape", "cow")

    def test_classes_without_samples_stay(self, real: Path, tmp_path: Path) -> None:
        rare = make(tmp_path / "rare", 3, grey=50, classes=("ape", "bee", "cow", "dog"))
        manifest = join([Source(rare, 1), Source(real)], tmp_path / "out").manifest
        assert manifest.classes == ("ape", "bee", "cow", "dog")
        assert sum(manifest.class_counts) == 31

    def test_without_any(self, real: Path, tmp_path: Path) -> None:
        plain = make(tmp_path / "plain", 3, grey=50, classes=None)
        manifest = join([Source(plain), Source(real)], tmp_path / "out").manifest
        assert (manifest.classes, sum(manifest.class_counts)) == (("ape", "bee"), 30)
        assert Counter(s.class_ for s in read(tmp_path / "out"))[None] == 3

    def test_numbers_must_stay_labels(self, real: Path, tmp_path: Path) -> None:
        for name, labels in (("two", (0, 1)), ("three", (0, 2))):
            members = [
                (f"{n}.{ext}", data)
                for n in labels
                for ext, data in (("png", flat_png(n)), ("cls", b"%d" % n))
            ]
            write_tar(tmp_path / name / "a.tar", members)
            index_shards(tmp_path / name, progress=False)
        numbers = [Source(tmp_path / name) for name in ("two", "three")]
        manifest = join(numbers, tmp_path / "out").manifest
        assert (manifest.classes, manifest.class_counts) == (("0", "1", "2"), (2, 1, 1))
        with pytest.raises(ValueError, match=r"two: its classes are numbers.* of .*real"):
            join([Source(real), numbers[0]], tmp_path / "mixed")
        assert not (tmp_path / "mixed").exists()


class TestForeignSets:
    def test_what_is_missing_is_measured(self, tmp_path: Path) -> None:
        png = encode(photo(5, 9))
        write_tar(
            tmp_path / "set" / "a.tar", [("a.png", png), ("b.JPEG", encode(photo(4, 6), "JPEG"))]
        )
        index_shards(tmp_path / "set", progress=False)
        join([Source(tmp_path / "set")], tmp_path / "out")
        one, two = read(tmp_path / "out")
        assert (one.image, one.extension, one.width, one.height) == (png, "png", 9, 5)
        assert (two.extension, two.width, two.height) == ("jpeg", 6, 4)

    def test_keys_that_every_shard_starts_anew(self, tmp_path: Path) -> None:
        for shard in range(3):
            members = [(f"{n:03d}.png", flat_png(10 * shard + n)) for n in range(4)]
            write_tar(tmp_path / "set" / f"{shard}.tar", members)
        index_shards(tmp_path / "set", progress=False)
        report = join([Source(tmp_path / "set")], tmp_path / "out")
        assert report.rejected == ()
        assert len(images(tmp_path / "out")) == 12
        assert read(tmp_path / "out")[5].key == "0/000001/001"

    def test_bad_samples_are_left_out_and_named(self, tmp_path: Path) -> None:
        members = [
            ("good.png", flat_png(1)),
            ("none.json", b"{}"),
            ("text.png", b"text"),
            ("word.png", flat_png(2)), ("word.json", b'{"caption": "\\ud800"}'),
            ("new.png", flat_png(3)), ("new.json", b'{"class": "unknown"}'),
        ]  # fmt: skip
        write_tar(tmp_path / "set" / "a.tar", members)
        index_shards(tmp_path / "set", progress=False)
        path = tmp_path / "set" / "manifest.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"classes": [], "class_counts": []})
        )
        report = join([Source(tmp_path / "set")], tmp_path / "out")
        assert report.manifest.num_samples == 1
        assert [item.name.rpartition(": ")[2] for item in report.rejected] == [
            "none", "text", "word", "new",
        ]  # fmt: skip
        assert "a.tar: new: class 'unknown' is not in the manifest" in str(report)


class TestRefusals:
    @pytest.mark.parametrize(
        ("num", "first", "message"),
        [
            (31, 0, "rank 0 to 30 are asked for, but it has 30"),
            (5, 26, "rank 26 to 30 are asked for"),
            (None, 30, "it has 30"),
        ],
    )
    def test_too_many(
        self, real: Path, tmp_path: Path, num: int | None, first: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            join([Source(real, num, first)], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_impossible_ranges(self) -> None:
        with pytest.raises(ValueError, match="take at least 1"):
            Source(Path("set"), 0)
        with pytest.raises(ValueError, match="starts at 0"):
            Source(Path("set"), 3, -1)

    def test_sources(self, real: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nothing to combine"):
            join([], tmp_path / "out")
        with pytest.raises(ShardSetError, match="no such folder"):
            join([Source(tmp_path / "nowhere")], tmp_path / "out")

    @pytest.mark.parametrize("source", ["set", "set/validation"])
    def test_a_source_is_never_overwritten(self, tmp_path: Path, source: str) -> None:
        make(tmp_path / source, 5, grey=0)
        with pytest.raises(ValueError, match="is, holds or lies in the source"):
            join([Source(tmp_path / source)], tmp_path / "set", overwrite=True)
        assert len(read(tmp_path / source)) == 5
