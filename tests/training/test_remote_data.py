"""Training from shards behind a URL: the same run as from the folder, each byte fetched once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.manifest import Manifest
from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.trainer import TrainingError
from tests.data_pipelines.remote.hostile_server import Fault, HostileServer
from tests.training.runs import metrics, train

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.integration
WriteConfig = Callable[..., Path]


def remote(server: HostileServer, root: Path, cache: Path) -> list[str]:
    """Overrides that read the set from the server."""
    return [
        f"--data.path={server.url}",
        f"--data.validation_path={root / 'validation'}",
        f"--data.cache.folder={cache}",
    ]


def set_bytes(root: Path) -> int:
    return sum(shard.bytes for shard in Manifest.load(root).shards)


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0)])
def test_as_from_the_folder(
    tiny_config: WriteConfig, tiny_shards: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    config = tiny_config(data={"workers": workers}, validation={"wiener_images": 0})
    local = train(config, f"--run_dir={tmp_path / 'local'}", processes=processes)
    assert local.code == 0, local.output
    with HostileServer(tiny_shards) as server:
        first = Manifest.load(tiny_shards).shards[0].path
        server.once[f"/{first}"] = [Fault(status=503), Fault(cut_after=5000)]
        run = train(
            config,
            f"--run_dir={tmp_path / 'remote'}",
            *remote(server, tiny_shards, tmp_path / "cache"),
            processes=processes,
        )
        assert run.code == 0, run.output
        # Three epochs, two ranks: every shard came over the line once.
        assert server.sent() <= 1.05 * set_bytes(tiny_shards)
    assert metrics(tmp_path / "local") == metrics(tmp_path / "remote")
    text = (tmp_path / "remote" / "metrics.jsonl").read_text()
    assert '"fetch_retries": 2' in text or text.count('"fetch_retries": 1') == 2
    assert '"shards_fetched"' in text


def test_a_dead_server_stops_the_run_with_a_checkpoint(
    tiny_config: WriteConfig, tiny_shards: Path, tmp_path: Path
) -> None:
    shards = Manifest.load(tiny_shards).shards
    config = tiny_config(data={"streams": 1, "window": 1})
    with HostileServer(tiny_shards) as server:
        overrides = [
            *remote(server, tiny_shards, tmp_path / "cache"),
            "--data.cache.stall_seconds=0.3",
            "--data.cache.give_up_seconds=1",
        ]
        trainer = assemble(load_config(config, overrides))
        batches = trainer.loader(0)
        needed = {batch.keys[0] for batch in batches}  # the whole set is cached now
        assert needed
        lost = next((tmp_path / "cache").rglob(f"{shards[-1].sha256}*.tar"))
        lost.unlink()
        server.always[f"/{shards[-1].path}"] = Fault(stall_after=100)
        with pytest.raises(TrainingError, match=rf"{shards[-1].path}.*saved at image \d+") as error:
            trainer.run()
        saved = trainer.images_seen
        assert f"saved at image {saved}" in str(error.value)
        if saved:
            assert max((tmp_path / "run" / "checkpoints").iterdir()).name == f"{saved:012d}"
        del server.always[f"/{shards[-1].path}"]
        again = assemble(load_config(config, overrides))
        again.run()
        assert again.images_seen == 160


def test_a_signal_is_heard_while_a_server_is_silent(
    tiny_config: WriteConfig, tiny_shards: Path, tmp_path: Path
) -> None:
    """Without workers the download runs in the process that gets the signal."""
    config = tiny_config(data={"streams": 1, "window": 1})
    with HostileServer(tiny_shards) as server:
        overrides = [
            *remote(server, tiny_shards, tmp_path / "cache"),
            "--data.cache.stall_seconds=60",
            "--data.cache.give_up_seconds=60",
        ]
        for shard in Manifest.load(tiny_shards).shards:
            server.always[f"/{shard.path}"] = Fault(stall_after=100)
        trainer = assemble(load_config(config, overrides))
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        begun = time.monotonic()
        assert trainer.run().received == signal.SIGTERM
        assert time.monotonic() - begun < 40  # not the 60 seconds of patience with the server
