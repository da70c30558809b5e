"""An environment in a process of its own, whose hang or death its owner outlives."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import iterate

from worldmodel.envs.contract.faults import EnvironmentFault, described, info_fault

START = 300.0  # seconds to import, to build, and to begin
PATIENCE = 5.0  # seconds to close an environment
ORPHAN = 2.0  # times its timeout that a process works on an answer which nobody may be waiting for any more
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
UNBEGUN = 'see above why; a script that trains must do so under `if __name__ == "__main__"`'
PLAIN = (bool, int, float, str)


class ProcessEnv(gym.Env[Any, Any]):
    """Runs one environment in a process of its own, with one torch thread, and waits only so long for it.

    The same seeds and actions lead to the same episodes as in this process. Of an `info` only numbers, strings and
    arrays come over. The process leaves signals to its owner, and ends with it, and so do processes that the
    environment has started. As always where Python starts
    processes, a script that makes one does so under `if __name__ == "__main__"`.

    Args:
        factory: makes the environment there: a function that can be pickled.
        timeout: seconds for one step or reset.
    Raises:
        ValueError: if the factory cannot be pickled.
        EnvironmentFault: if there is no answer in time, the process has died, or the environment has raised an
            exception, with its text. After the first two it is of no more use.
    """

    def __init__(self, factory: Callable[[], gym.Env[Any, Any]], timeout: float) -> None:
        self.timeout = timeout
        self.begun: Any = None  # the action of a step that is being taken
        try:
            pickle.dumps(factory)
        except Exception as error:  # of whatever the environment is given
            raise ValueError(
                f"an environment cannot be sent to a process of its own: {error}. Give env.kwargs numbers, strings and "
                "functions of a module, or leave env.timeout at null"
            ) from error
        context = cast(Any, multiprocessing.get_context(METHOD))
        if METHOD == "forkserver":  # no effect once it runs; a new process then takes no time to import
            context.set_forkserver_preload(["__main__", "worldmodel.envs.make"])
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, factory, timeout))
        # No daemon, which may not have processes of its own: an environment may.
        # When it is closed or forgotten, and before Python waits for its processes at its exit.
        self._end = util.Finalize(self, ended, (self.process, self.connection, PATIENCE), exitpriority=10)
        self.process.start()
        theirs.close()
        self.observation_space, self.action_space, self.metadata, self.spec = self._answer("start", START)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._ask("reset", seed, options)

    def begin(self, action: Any) -> None:
        """Let the step be taken, while its owner does other things, that :meth:`step` is asked for next."""
        self._forget()
        with suppress(OSError):  # of a process that has died, of which `step` will tell
            self.connection.send(("step", (action,)))
            self.begun = action

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.begun is None:
            return self._ask("step", action)
        if not np.array_equal(action, self.begun, equal_nan=True):
            raise ValueError(f"a step with action {self.begun} has begun, and one with {action} is asked for")
        self.begun = None
        return self._answer("step", self.timeout)

    def _ask(self, what: str, *given: Any) -> Any:
        if self.connection.closed:
            raise EnvironmentFault("the environment has been closed: make a new one")
        self._forget()
        try:
            self.connection.send((what, given))
        except OSError:
            raise self._death(what) from None
        return self._answer(what, self.timeout)

    def _forget(self) -> None:
        """Wait for a step that has begun, and that nobody will ask for."""
        if self.begun is not None:
            self.begun = None
            with suppress(EnvironmentFault):
                self._answer("step", self.timeout)

    def _answer(self, what: str, timeout: float) -> Any:
        try:
            ready = wait([self.connection, self.process.sentinel], timeout)
            if not ready:
                self._kill()
                raise EnvironmentFault(f"no answer to {what} within {timeout:g} s: its process was ended")
            if self.connection not in ready:  # a process that it had started holds the pipe open
                raise self._death(what)
            sound, answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._death(what) from None
        if not sound:
            raise EnvironmentFault(answer)
        return answer

    def _death(self, what: str) -> EnvironmentFault:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        self._kill()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", as it does where memory runs out" if name == "SIGKILL" else ""
            return EnvironmentFault(f"its process died in {what} by {name}{hint}")
        hint = f": {UNBEGUN}" if what == "start" else ""
        return EnvironmentFault(f"its process died in {what} with exit code {code}{hint}")

    def _kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let the environment close, and its process end; one that does not in time is ended."""
        self._end()


def begin(envs: SyncVectorEnv, actions: Any) -> None:
    """Let environments that have processes of their own begin the step that `envs.step(actions)` is asked for next."""
    for env, action in zip(envs.envs, iterate(envs.action_space, actions), strict=True):
        while isinstance(env, gym.Wrapper):
            env = env.env
        if isinstance(env, ProcessEnv):
            env.begin(action)


def ended(process: BaseProcess, connection: Connection, patience: float) -> None:
    """Close the pipe, at which the process ends by itself, or is ended; nothing of it is left in the system.

    Nor of the processes that the environment has started, which are of the same group.
    """
    connection.close()
    if process.pid is None:  # it never began
        return
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # nobody is left of it
            os.killpg(process.pid, signal.SIGKILL)
    process.close()


def serve(connection: Connection, factory: Callable[[], gym.Env[Any, Any]], timeout: float) -> None:
    """What the process does: build, then answer until the pipe is closed, by its owner or by its owner's death."""
    import torch

    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # which systems send to all processes of a run at once
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    made: list[gym.Env[Any, Any]] = []

    def build() -> Any:
        made.append(factory())
        return spaces_of(made[0])

    with suppress(EOFError, OSError):  # of the pipe: what the environment raises is an answer
        connection.send_bytes(attempt(build, START))
        while made:
            what, given = connection.recv()
            connection.send_bytes(attempt(partial(act, made[0], what, given), timeout))
    if hasattr(signal, "setitimer"):  # until it has ended: closing may hang, and so may processes that it waits for
        signal.setitimer(signal.ITIMER_REAL, ORPHAN * PATIENCE)
    for env in made:
        env.close()


def spaces_of(env: gym.Env[Any, Any]) -> tuple[Any, ...]:
    """What an owner has to know of an environment; its spec is None where it cannot be pickled."""
    try:
        pickle.dumps(spec := env.spec)
    except Exception:  # whatever the environment was registered with
        spec = None
    return env.observation_space, env.action_space, env.metadata, spec


def act(env: gym.Env[Any, Any], what: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A reset or a step, with what comes over of its `info`."""
    if what == "reset":
        seed, options = given
        *found, info = env.reset(seed=seed, options=options)
    else:
        *found, info = env.step(*given)
    if (problem := info_fault(info)) is not None:
        raise EnvironmentFault(problem)
    return *found, {key: value for key, value in info.items() if type(key) is str and plain(value)}


def plain(value: Any) -> bool:
    """Whether a value is a number, a text or an array of them, which every process can be sent."""
    if isinstance(value, np.ndarray | np.generic):
        return not value.dtype.hasobject and type(value).__module__ == "numpy"
    return type(value) in PLAIN


def attempt(function: Callable[[], Any], timeout: float) -> bytes:
    """(True, what a function returns) or (False, what went wrong in it), pickled.

    The system ends this process where it takes much longer than its owner waits: then the owner is dead.
    """
    with alarm(ORPHAN * timeout):
        try:
            return pickle.dumps((True, function()))
        except Exception as error:
            return pickle.dumps((False, described(error)))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Let the system end this process after so long, whatever it is doing; not on Windows, which has no such clock."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
