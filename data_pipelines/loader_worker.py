"""How a DataLoader's worker process behaves: it leaves signals to the main process."""

import os
import signal
import threading


def start_worker(worker: int) -> None:
    """Leaves signals to the main process: a worker that they kill would take the run with it.

    Schedulers and terminals signal the whole process group. SIGTERM must not simply be ignored,
    though: it is how the main process ends its workers when it exits, and it waits for them.
    """
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_when_the_parent_says_so, daemon=True).start()


def _exit_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
