"""An environment in a separate process. If the process hangs or dies, the main process continues."""

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

START = 300.0  # seconds to import the modules and make the environment
PATIENCE = 5.0  # seconds to close an environment
ORPHAN = 2.0  # a process ends itself if an answer takes this many times its timeout: its owner may be dead
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
UNBEGUN = 'the reason is printed above. A script that trains must do so under `if __name__ == "__main__"`'
PLAIN = (bool, int, float, str)


class ProcessEnv(gym.Env[Any, Any]):
    """Run one environment in a separate process with one torch thread, and limit the time of each call.

    The same seeds and actions lead to the same episodes as in the main process. Only numbers, strings and arrays of
    an `info` are transferred. The process ignores interrupts, and ends when its owner ends; so do processes that the
    environment has started. As always with processes in Python, a script must use it under
    `if __name__ == "__main__"`.

    Args:
        factory: a function that makes the environment and can be pickled.
        timeout: the time limit of one step or reset in seconds.
    Raises:
        ValueError: if the factory cannot be pickled.
        EnvironmentFault: if there is no answer in time, if the process has died, or if the environment has raised an
            exception (the message contains its text). After the first two, the environment cannot be used any more.
    """

    def __init__(self, factory: Callable[[], gym.Env[Any, Any]], timeout: float) -> None:
        self.timeout = timeout
        self.begun: Any = None  # the action of the step that is running
        try:
            pickle.dumps(factory)
        except Exception as error:  # pickling calls code of the user
            raise ValueError(
                f"the environment cannot be sent to a separate process: {error}. Use only numbers, strings and "
                "functions of a module in env.kwargs, or set env.timeout to null"
            ) from error
        context = cast(Any, multiprocessing.get_context(METHOD))
        if METHOD == "forkserver":  # new processes then need not import these modules again
            context.set_forkserver_preload(["__main__", "worldmodel.envs.make"])
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, factory, timeout))
        # The process is not a daemon: an environment may start processes, and a daemon may not.
        # The finalizer ends it when this object is closed or deleted, and before Python waits for it at exit.
        self._end = util.Finalize(self, ended, (self.process, self.connection, PATIENCE), exitpriority=10)
        self.process.start()
        theirs.close()
        self.observation_space, self.action_space, self.metadata, self.spec = self._answer("start", START)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._ask("reset", seed, options)

    def begin(self, action: Any) -> None:
        """Start a step without waiting for its result. The next :meth:`step` must have the same action."""
        self._forget()
        with suppress(OSError):  # if the process has died, `step` raises the error
            self.connection.send(("step", (action,)))
            self.begun = action

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.begun is None:
            return self._ask("step", action)
        if not np.array_equal(action, self.begun, equal_nan=True):
            raise ValueError(f"a step with action {self.begun} was begun, but step() was called with {action}")
        self.begun = None
        return self._answer("step", self.timeout)

    def _ask(self, what: str, *given: Any) -> Any:
        if self.connection.closed:
            raise EnvironmentFault("the environment has been closed. Make a new one")
        self._forget()
        try:
            self.connection.send((what, given))
        except OSError:
            raise self._death(what) from None
        return self._answer(what, self.timeout)

    def _forget(self) -> None:
        """Wait for a step that has begun, and discard its result."""
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
            if self.connection not in ready:  # a process that the environment started holds the pipe open
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
            hint = ", which the system sends if the memory is full" if name == "SIGKILL" else ""
            return EnvironmentFault(f"its process died in {what} by {name}{hint}")
        hint = f": {UNBEGUN}" if what == "start" else ""
        return EnvironmentFault(f"its process died in {what} with exit code {code}{hint}")

    def _kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Close the environment and end its process. The process is killed if it does not end in time."""
        self._end()


def begin(envs: SyncVectorEnv, actions: Any) -> None:
    """Start the next step in all environments with separate processes. `envs.step(actions)` must follow."""
    for env, action in zip(envs.envs, iterate(envs.action_space, actions), strict=True):
        while isinstance(env, gym.Wrapper):
            env = env.env
        if isinstance(env, ProcessEnv):
            env.begin(action)


def ended(process: BaseProcess, connection: Connection, patience: float) -> None:
    """Close the pipe and wait for the process to end. Kill it if it does not end in time.

    Also kill the processes that the environment has started, which belong to the same process group.
    """
    connection.close()
    if process.pid is None:  # the process never started
        return
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
    process.close()


def serve(connection: Connection, factory: Callable[[], gym.Env[Any, Any]], timeout: float) -> None:
    """The main function of the process: make the environment, then answer calls until the pipe is closed."""
    import torch

    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are sent to all processes of a run; the owner handles them
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    made: list[gym.Env[Any, Any]] = []

    def build() -> Any:
        made.append(factory())
        return spaces_of(made[0])

    with suppress(EOFError, OSError):  # errors of the pipe; an error of the environment is sent as an answer
        connection.send_bytes(attempt(build, START))
        while made:
            what, given = connection.recv()
            connection.send_bytes(attempt(partial(act, made[0], what, given), timeout))
    if hasattr(signal, "setitimer"):  # close() may hang, also because of processes that it waits for
        signal.setitimer(signal.ITIMER_REAL, ORPHAN * PATIENCE)
    for env in made:
        env.close()


def spaces_of(env: gym.Env[Any, Any]) -> tuple[Any, ...]:
    """Return the spaces, metadata and spec of an environment. The spec is None if it cannot be pickled."""
    try:
        pickle.dumps(spec := env.spec)
    except Exception:  # pickling calls code of the user
        spec = None
    return env.observation_space, env.action_space, env.metadata, spec


def act(env: gym.Env[Any, Any], what: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Call reset or step, and return the result with those entries of `info` that can be transferred."""
    if what == "reset":
        seed, options = given
        *found, info = env.reset(seed=seed, options=options)
    else:
        *found, info = env.step(*given)
    if (problem := info_fault(info)) is not None:
        raise EnvironmentFault(problem)
    return *found, {key: value for key, value in info.items() if type(key) is str and plain(value)}


def plain(value: Any) -> bool:
    """Return True if a value is a number, a string or an array of them, which can always be pickled."""
    if isinstance(value, np.ndarray | np.generic):
        return not value.dtype.hasobject and type(value).__module__ == "numpy"
    return type(value) in PLAIN


def attempt(function: Callable[[], Any], timeout: float) -> bytes:
    """Return (True, result) or (False, description of the error), pickled.

    The system ends this process if the call takes much longer than `timeout`, since its owner must then be dead.
    """
    with alarm(ORPHAN * timeout):
        try:
            return pickle.dumps((True, function()))
        except Exception as error:
            return pickle.dumps((False, described(error)))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Let the system end this process after a number of seconds. This has no effect on Windows."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
