"""`worldmodel play`: act in the imagination of a model, one action for every key."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from worldmodel.agents.acting.behaviour import Memory
from worldmodel.envs import ImaginedEnv, ReplayedStarts, make
from worldmodel.envs.imagined.starts import Starts
from worldmodel.training.logging.logger import MEDIA_FOLDER
from worldmodel.training.report.keyboard import AGENT, NEW, QUIT, Keyboard, blocks
from worldmodel.training.report.video import IMAGINED, SEEN, check_webm, marked, write_webm
from worldmodel.training.run.run import Run
from worldmodel.types import State

CLEAR = "\x1b[H\x1b[2J"
STATUS = "step {step:>4}  reward {reward:+8.3f}  return {total:+9.2f}"


class Dream:
    """Imagined episodes, each from a state that is inferred from records.

    Args:
        seed: seed of the starts and of the imagination.
        start: the recorded step from which all episodes begin; 0 is the oldest. By default it is random.
    Raises:
        ValueError: if there are no records to begin from, or no such step.
    """

    def __init__(self, run: Run, seed: int, start: int | None = None) -> None:
        real = make(run.config.env)
        window = run.config.replay.window
        begin: Starts = ReplayedStarts(run.model, run.replay, window, pool=1)
        if start is not None:
            state = state_at(run, start)
            begin = lambda count: type(state)(*(field.expand(count, *field.shape[1:]) for field in state))  # noqa: E731
        self.run, shown = run, visible(run, real.observation_space)
        self.env = ImaginedEnv(
            run.model, real.action_space, begin, sys.maxsize, render_mode="rgb_array", rendered=shown
        )
        real.close()
        self.env.reset(seed=seed)
        self.frames = list[np.ndarray]()
        self._begin()

    def _begin(self) -> None:
        """Start the counts of an episode and film its first picture."""
        self.step, self.reward, self.total, self.over = 0, 0.0, 0.0, False
        self.memory: Memory = self.run.behaviour.initial(1)
        self._film(SEEN)

    def _film(self, colour: tuple[int, int, int]) -> None:
        """Add the present picture to the video."""
        picture = self.env.render()
        assert picture is not None
        self.frames.append(marked(picture, colour))

    def anew(self) -> None:
        """Begin another episode."""
        self.env.reset()
        self._begin()

    def agent(self) -> np.ndarray:
        """Return the action that the behaviour of the run chooses here."""
        state = self.env.many.state
        assert state is not None
        decision = self.run.behaviour.act(self.run.model, state, self.memory, True)
        self.memory = decision.memory
        return self.run.action_spec.decode(decision.control.cpu().numpy())[0]

    def act(self, action: np.ndarray) -> None:
        """Take one imagined step."""
        _, self.reward, self.over, _, _ = self.env.step(action)
        self.step, self.total = self.step + 1, self.total + self.reward
        self._film(IMAGINED)

    @property
    def status(self) -> str:
        """A line of text about the episode."""
        line = STATUS.format(step=self.step, reward=self.reward, total=self.total)
        return f"{line}  The episode has ended." if self.over else line


def visible(run: Run, space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space of the observations that the model decodes and that can be shown.

    Raises:
        ValueError: if it decodes none.
    """
    if not run.model.keys:
        raise ValueError(
            f"The model has no decoder for its observations (model.images: {run.config.model.images}), so there is "
            "nothing to see. Train a model with model.images: reconstruction."
        )
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict({key: space[key] for key in run.model.keys})


@torch.no_grad()
def state_at(run: Run, step: int) -> State:
    """Return the state (1, ...) that is inferred from the steps up to a recorded step."""
    places = run.replay.history(step, run.config.replay.window)
    states = run.model.observe(run.replay.gather(places, run.agent.device)).states
    return type(states)(*(field[:, -1] for field in states))


def play(
    run: Run,
    keys: Iterable[str],
    seed: int = 0,
    show: Callable[[Dream, str], None] | None = None,
    start: int | None = None,
) -> Path:
    """Play a model until the keys end or quit. Return the path of a video of it, RUN/media/play.webm.

    Args:
        keys: see :class:`worldmodel.training.report.keyboard.Keyboard`. Keys without a meaning are ignored.
        seed, start: see :class:`Dream`.
        show: called at the start and after every step, with a line that explains the keys.
    """
    check_webm()
    keyboard, dream = Keyboard(run.action_spec), Dream(run, seed, start)
    show = show or draw
    path = run.folder / MEDIA_FOLDER / "play.webm"
    show(dream, keyboard.help())
    try:
        for key in keys:
            if key == QUIT:
                break
            if struck(dream, keyboard, key):
                show(dream, keyboard.help())
    finally:  # after Ctrl-C as well
        write_webm(path, dream.frames)
    return path


def struck(dream: Dream, keyboard: Keyboard, key: str) -> bool:
    """Do what a key means; return False if it means nothing."""
    action = dream.agent() if key == AGENT else keyboard.action(key)
    if key == NEW or (dream.over and action is not None):
        dream.anew()
    elif action is not None:
        dream.act(action)
    return key == NEW or action is not None


def draw(dream: Dream, keys: str) -> None:
    """Show the picture and the rewards on a terminal; elsewhere print one line for each step."""
    if sys.stdout.isatty():
        print(f"{CLEAR}{blocks(dream.frames[-1])}\n{dream.status}\n{keys}", flush=True)
    else:
        print(dream.status if dream.step else keys, flush=True)
