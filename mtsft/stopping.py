"""Requests to stop: Ctrl-C from a person, SIGTERM, SIGHUP and SIGUSR1 from schedulers, terminals and machines.

Signals are noticed by a thread, which Python wakes from within its handler in C: so that an answer comes at once, also
while the main thread waits for a device or for a compiler. This file imports nothing but the standard library, so that
a program can call `notice_signals` first of all.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

# A person's terminal, schedulers and machines, a terminal that closes, and what SLURM sends before a limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# The exit status of a run that was asked to stop before its end: EX_TEMPFAIL of sysexits.h. The same command goes on.
UNFINISHED = 75
# A variable with the id of the process that started this one, where this one is to stop when that ends.
PARENT = "MTSFT_PARENT"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Stopped(BaseException):
    """A request to stop that came where there was nothing to save. No Exception, so that nobody takes it for an error.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class _Requests:
    """The requests of this process."""

    def __init__(self) -> None:
        self.asked = 0  # the first signal that came; 0 for none
        self.saving = False  # whether a request waits for the end of a step and for its checkpoint
        self.forward = False  # whether requests are passed on as SIGTERM, on which several processes agree
        self._interrupts, self._said, self._saying = 0, False, threading.Lock()
        self._previous: dict[int, object] = {}
        self._pipe = -1
        self.status: int | None = None  # with which the program ends, from where all that remains is to end
        self._terminals: list[int] = []

    def notice(self, signals: Sequence[int] = SIGNALS) -> bool:
        """Begins to notice; returns whether it is this call that did. What nohup hands down ignored stays so."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return False
        self.asked, self._interrupts, self._said, self.status = 0, 0, False, None
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            signals = [number for number in signals if number != signal.SIGHUP]
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in signals}
        threading.Thread(target=self._watch, args=(read,), name="signals", daemon=True).start()
        return True

    def ignore(self) -> None:
        """Ends to notice: every signal does again what it did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        signal.set_wakeup_fd(-1)
        os.close(self._pipe)  # which ends the thread

    def _handle(self, number: int, _) -> None:
        """In the main thread, as soon as it runs Python."""
        if self.status is not None:
            return
        self.asked = self.asked or number
        if not self.saving:
            raise Stopped(number)

    def _watch(self, pipe: int) -> None:
        """In a thread of its own, at once. The numbers of signals come as bytes."""
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._answer(number)
        os.close(pipe)

    def _answer(self, number: int) -> None:
        if self.status is not None:
            flush_and_exit(self.status)
        if number == signal.SIGHUP:
            self._leave_terminals()
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _say("stopped at once; what was not saved yet is lost")
            os._exit(128 + signal.SIGINT)
        self.say(number)
        if self.forward and self.saving and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def say(self, number: int) -> None:
        """Says what is done about the first request; nothing for later ones."""
        with self._saying:
            if self._said:
                return
            self._said = True
        doing = "saving" if self.saving else "stopping"
        _say(f"{signal.Signals(number).name}: {doing}" + "; again to stop now" * (number == signal.SIGINT))

    def _leave_terminals(self) -> None:
        """Writes nowhere what would go to a terminal that is gone, where every write is an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)


def _say(line: str) -> None:
    """Writes a line from any thread, whatever the main thread is doing."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


_requests = _Requests()


def notice_signals() -> None:
    """Notices requests to stop from here to the end of the program, which then ends with the status UNFINISHED.

    Where there is something to save (see `Saving`) it is saved first; elsewhere `Stopped` is raised.
    """
    usual, unraisable = sys.excepthook, sys.unraisablehook

    def end_if_stopped(error: BaseException | None) -> None:
        if isinstance(error, Stopped):
            _requests.say(error.number)  # where the thread did not yet
            flush_and_exit(UNFINISHED)

    def hook(kind, error, trace):
        end_if_stopped(error)
        usual(kind, error, trace)

    def hook_of_callbacks(said):  # of garbage collection and the like, out of which no error comes
        end_if_stopped(said.exc_value)
        unraisable(said)

    sys.excepthook, sys.unraisablehook = hook, hook_of_callbacks  # before a signal can come
    if not _requests.notice():
        sys.excepthook, sys.unraisablehook = usual, unraisable
        return
    atexit.register(_ignore_signals)  # first of all, so that it is called last
    if parent := os.environ.pop(PARENT, ""):
        _stop_after(parent)


def finish(status: int) -> None:
    """All is done but to end the program: a request to stop that comes from here on ends it at once, with `status`."""
    _requests.status = status


def _ignore_signals() -> None:
    """While Python takes itself apart, which gives signals back to the system, that would kill a finished program."""
    if _requests.status is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _stop_after(parent: str) -> None:
    """SIGTERM comes when the parent ends, even by SIGKILL (Linux alone: elsewhere the process goes on)."""
    import ctypes  # for those alone who need it

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if str(os.getppid()) != parent:  # it ended before
            os.kill(os.getpid(), signal.SIGTERM)


class Saving:
    """While a run takes steps: a request to stop is kept until the run asks for it, and saves.

    A second Ctrl-C ends the process at once, with status 130. SIGTERM may come more than once, from a machine and from
    a supervisor: it stays one request. Outside of the main thread nothing is noticed.

    Args:
        several: whether several processes have to agree on the step to stop at. JAX's own service does so, on SIGTERM,
            which it handles: all other requests become one.
    """

    def __init__(self, several: bool):
        self._several = several

    def __enter__(self) -> "Saving":
        signals = [number for number in SIGNALS if not self._several or number != signal.SIGTERM]
        self._notices = _requests.notice(signals)
        _requests.forward = self._several
        _requests.saving = True
        return self

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(_requests.asked)

    def __exit__(self, *_) -> None:
        _requests.saving = False
        if self._notices:
            _requests.ignore()


class PassedOn:
    """While other processes do the work: requests to stop are passed on to them, as they come.

    The processes are to be in sessions of their own: what a terminal sends to all of its processes would otherwise
    reach them twice.
    """

    def __init__(self) -> None:
        self.asked = 0  # the first signal that came; 0 for none
        self.interrupts = 0  # how often Ctrl-C did
        self._processes: list[subprocess.Popen] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "PassedOn":
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def to(self, process: subprocess.Popen) -> None:
        """Passes on what comes to this process, too, and what came already."""
        self._processes.append(process)
        if self.asked:
            self._send(process, self.asked)

    def _handle(self, number: int, _) -> None:
        self.interrupts += number == signal.SIGINT
        if not self.asked:
            self.asked = number
            again = "; again to stop now" * (number == signal.SIGINT)
            _say(f"{signal.Signals(number).name}: passed on, to save and to stop{again}")
        for process in self._processes:
            self._send(process, number)

    @staticmethod
    def _send(process: subprocess.Popen, number: int) -> None:
        with contextlib.suppress(OSError):
            process.send_signal(number)

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def flush_and_exit(status: int) -> None:
    """Ends the process without its exit handlers, some of which wait for other processes or for devices."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
