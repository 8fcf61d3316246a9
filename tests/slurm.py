"""A real Slurm on this machine for tests: a controller and two nodes of one core, all in a folder.

Needs root and the Debian packages `slurm-wlm` and `munge`. Daemons are started on free ports, under
the folder that is given, and stopped at the end.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
START_S = 60.0
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MinJobAge=10
ReturnToService=2
SlurmdParameters=config_overrides
{nodes}
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What is missing to start one; None if nothing is."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting Slurm's daemons needs root"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and two slurmd; yields what to add to the environment.

    Partitions: ``low`` (the default; preempted with 20 seconds of grace) and ``high``.

    Raises:
        RuntimeError: it did not come up; the message has the end of the logs.
    """
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        socket_path = _start_munge(folder, daemons)
        conf = _write_conf(folder, socket_path)
        environment = {"SLURM_CONF": str(conf)}
        for words in (
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ):
            _start(words, folder, daemons, environment)
        _await_nodes(folder, daemons, environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _start_munge(folder: Path, daemons: list["subprocess.Popen[bytes]"]) -> Path:
    place = folder / "munge"
    place.mkdir(mode=0o711)
    key = place / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    socket_path = place / "socket"
    words = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}"]
    words += [f"--pid-file={place / 'pid'}", f"--log-file={place / 'log'}"]
    words += [f"--seed-file={place / 'seed'}"]
    _start(words, folder, daemons, {})
    deadline = time.monotonic() + START_S
    while not socket_path.exists():
        if time.monotonic() > deadline or daemons[0].poll() is not None:
            raise RuntimeError(f"munged did not start: {_tails(folder)}")
        time.sleep(0.1)
    return socket_path


def _write_conf(folder: Path, munge: Path) -> Path:
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(3)
    nodes = "\n".join(
        f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
        for number, port in enumerate(ports, start=1)
    )
    text = CONF.format(
        host=host,
        controller=controller,
        user=getpass.getuser(),
        munge=munge,
        folder=folder,
        nodes=nodes,
    )
    conf = folder / "slurm.conf"
    conf.write_text(text)
    return conf


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _start(
    words: list[str],
    folder: Path,
    daemons: list["subprocess.Popen[bytes]"],
    environment: dict[str, str],
) -> None:
    with (folder / f"{words[0]}-{len(daemons)}.out").open("wb") as output:
        daemons.append(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )
        )


def _await_nodes(
    folder: Path, daemons: list["subprocess.Popen[bytes]"], environment: dict[str, str]
) -> None:
    words = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
    deadline = time.monotonic() + START_S
    while True:
        answer = subprocess.run(
            words, capture_output=True, text=True, env=os.environ | environment, check=False
        )
        if answer.stdout.split() == ["idle", "idle"]:
            return
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            raise RuntimeError(f"no two idle nodes ({answer}, ended: {dead}): {_tails(folder)}")
        time.sleep(0.3)


def _tails(folder: Path) -> str:
    logs = [*folder.glob("*.out"), *folder.glob("*.log"), *folder.glob("munge/log")]
    return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
