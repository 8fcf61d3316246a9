import hashlib
from pathlib import Path

import pytest
import torch

from eval.extractors import download, inception
from eval.extractors.base import WeightsMissingError, file_sha256
from eval.features import Extractor, open_extractor
from tests.eval.extractors.filled import fill, picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as the true one, of tensors filled by arithmetic."""
    path = tmp_path_factory.mktemp("inception") / "filled.pth"
    torch.save(fill(inception.Inception()).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(filled: Path) -> Extractor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", file_sha256(filled))
        return open_extractor("inception", weights=filled, device=CPU)


def test_what_it_states(extractor: Extractor) -> None:
    facts = extractor.facts
    assert facts.name == "inception"
    assert (facts.dim, facts.classes, facts.input_size) == (2048, 1008, 299)


def test_tensors_are_named_and_shaped_as_in_the_published_file() -> None:
    """The digest is of torch-fidelity 0.4.0's network, which loads that file strictly."""
    state = inception.Inception().state_dict()
    lines = [
        f"{name} {tuple(value.shape)}"
        for name, value in sorted(state.items())
        if not name.endswith("num_batches_tracked")
    ]
    assert len(lines) == 472
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "d84f693f2abd7fea61cb31c87d3b2f268bf707c1bae1db219afdad3363959cb0"


# Of torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with the same filled tensors, given the
# same uint8 pictures: features "2048", and the softmax of "logits_unbiased".
GOLDEN = {
    (40, 56): (
        [7.26347, 4.89689, 5.80618, 6.53927, 5.53603, 6.35324, 7.40221, 9.66853],
        0.961547,
        {341: 0.245812, 649: 0.046099, 61: 0.035662, 271: 0.031824},
    ),
    (320, 310): (
        [7.82544, 5.307, 6.33783, 7.09727, 5.89107, 6.77782, 8.01865, 10.38678],
        1.037434,
        {341: 0.282362, 649: 0.05345, 61: 0.035009, 271: 0.033204},
    ),
}
ROWS = [26, 462, 563, 807, 1275, 1331, 1744, 1921]  # over all branches of the last block


@pytest.mark.parametrize("size", GOLDEN)
def test_it_sees_what_torch_fidelity_sees(size: tuple[int, int], extractor: Extractor) -> None:
    rows, mean, probabilities = GOLDEN[size]
    found = extractor(picture(*size))
    assert found.features[0, ROWS].tolist() == pytest.approx(rows, rel=5e-5)
    assert found.features.mean().item() == pytest.approx(mean, rel=5e-5)
    assert found.probabilities is not None
    for row, value in probabilities.items():
        assert found.probabilities[0, row].item() == pytest.approx(value, rel=1e-3)


def test_an_image_does_not_depend_on_its_batch(extractor: Extractor) -> None:
    images = torch.cat([picture(48, 48, key) for key in range(2)])
    together = extractor(images).features
    alone = extractor(images[1:]).features
    assert (alone - together[1:]).abs().max() < 1e-5 * together.abs().max()
    assert (together[0] - together[1]).abs().max() > 0.1  # they do differ


@pytest.mark.parametrize("length", [1, 2, 32, 299, 700])
def test_a_ramp_is_read_at_pixel_corners(length: int) -> None:
    """Value i * length / 299 at output i, in both directions, until the last pixel is reached."""
    ramp = torch.arange(float(length))
    expected = (torch.arange(299.0).double() * length / 299).clamp_max(length - 1).float()
    across = inception.resize_like_tensorflow(ramp.expand(1, 1, 3, length), 299)
    down = inception.resize_like_tensorflow(ramp[:, None].expand(1, 1, length, 3), 299)
    assert across.shape == down.shape == (1, 1, 299, 299)
    torch.testing.assert_close(across, expected.expand(1, 1, 299, 299), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(down, expected[:, None].expand_as(down), rtol=1e-6, atol=1e-4)


def test_input_keeps_the_levels_of_an_image_of_the_right_size() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(1050)[: 3 * 299 * 299]
    images = images.view(1, 3, 299, 299)
    assert torch.equal(inception.prepare(images), (images.float() - 128) / 128)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache on a machine that may not download."""
    monkeypatch.setenv(download.OFFLINE, "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_without_a_network_the_remedy_is_told(cache: Path) -> None:
    with pytest.raises(WeightsMissingError) as caught:
        open_extractor("inception", device=CPU)
    message = str(caught.value)
    assert inception.URL in message
    assert str(cache) in message
    assert "lite0" in message


@pytest.mark.parametrize("name", [inception.FILE, inception.OTHER_FILE])
def test_a_file_in_the_cache_is_found_by_either_name(
    name: str, cache: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / name).symlink_to(filled)
    with pytest.raises(WeightsMissingError, match=f"{name} is not the file meant"):
        open_extractor("inception", device=CPU)
    monkeypatch.setattr(inception, "SHA256", file_sha256(filled))
    assert open_extractor("inception", device=CPU).facts.dim == 2048


def test_the_file_is_downloaded_once(
    cache: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(download.OFFLINE)
    monkeypatch.setattr(inception, "SHA256", file_sha256(filled))
    monkeypatch.setattr(inception, "URL", filled.as_uri())
    open_extractor("inception", device=CPU)
    monkeypatch.setattr(inception, "URL", "file:///nowhere")
    open_extractor("inception", device=CPU)
    assert [path.name for path in cache.iterdir()] == [inception.FILE]


def test_the_published_file_opens() -> None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    present = [folder / name for name in (inception.FILE, inception.OTHER_FILE)]
    if not any(path.is_file() for path in present):
        pytest.skip(f"no {inception.FILE} in {folder}")
    extractor = open_extractor("inception", device=CPU)
    found = extractor(picture(64, 64))
    assert found.probabilities is not None
    # pool features of real pictures are non-negative and of the order of 0.4
    assert 0.1 < found.features.mean() < 1
