"""What a run does to the process around it: nothing that stays, and no more than it needs."""

import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.training.test_fit import TINY as FIT
from tests.training.test_fit import system
from tests.training.test_train import TINY
from worldmodel.training import Run, WorldModelAgent, fit, train
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import merge
from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
from worldmodel.training.start import resume

PICTURES = 2_000  # steps that a run of pictures takes: 12,288 bytes each, and some more
SHORT = {"every": 1000, "episodes": 1, "final_episodes": 1}  # evaluation
ENOUGH = 25_000_000  # bytes for them


class Pictures(gym.Env[Any, Any]):
    """Grey ones."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full((64, 64, 3), 99, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full((64, 64, 3), 99, np.uint8), 0.0, False, False, {}


gym.register("Pictures-v0", Pictures, max_episode_steps=50)


class Found:
    """What a caller has set of the process."""

    def __init__(self) -> None:
        self.threads, self.filters = torch.get_num_threads(), list(warnings.filters)
        self.drawn = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]

    def is_left(self) -> bool:
        now = Found()
        return (self.threads, self.filters, self.drawn) == (now.threads, now.filters, now.drawn)


def test_library_calls_leave_the_process_as_they_found_it(tmp_path: Path) -> None:
    y, u = system(30)
    (tmp_path / "system.csv").write_text("y,u\n" + "\n".join(f"{a},{b}" for a, b in zip(y, u, strict=True)))
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ImportWarning)
            random.seed(5)
            np.random.seed(5)
            torch.manual_seed(5)
            found = Found()
            train(merge(TINY, {"training": {"steps": 150}, "evaluation": SHORT}), run=tmp_path / "run")
            assert found.is_left(), "train"
            resume(tmp_path / "run", steps=160)
            assert found.is_left(), "resume"
            fit(FIT, str(tmp_path / "system.csv"), run=tmp_path / "fit")
            assert found.is_left(), "fit"
            diagnose(tmp_path / "run", config=DiagnoseConfig(2, 2, 4))
            assert found.is_left(), "diagnose"
            agent = WorldModelAgent(TINY, run=tmp_path / "agent")
            assert found.is_left(), "an agent that is made"
            agent.learn(40)
            assert found.is_left(), "an agent that learns"
    finally:
        torch.set_num_threads(1)


def test_a_run_whose_rows_do_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of min(capacity, steps) rows; a ring that is never full may be larger than the memory."""
    changes: dict[str, Any] = {"env": {"id": "Pictures-v0"}, "training": {"steps": PICTURES, "prefill": 24}}
    config = merge(TINY, changes | {"replay": {"capacity": 10**8}})
    monkeypatch.setattr("worldmodel.validation.memory", lambda: ENOUGH)
    Run.create(tmp_path / "fits", load_config(config))
    more = merge(config, {"training": {"steps": 2 * PICTURES}})
    with pytest.raises(ValueError, match=r"the rows of the replay take at least 0.* set replay.disk: true, or lower"):
        Run.create(tmp_path / "more", load_config(more))
    Run.create(tmp_path / "few", load_config(merge(more, {"replay": {"capacity": PICTURES}})))
    assert not list(tmp_path.iterdir())


def test_states_beside_the_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of Pendulum has 23 bytes, and its state 20 numbers at least, in float16."""
    rows, states = (Run(tmp_path, load_config(TINY, replay={"context": context})) for context in (False, True))
    monkeypatch.setattr("worldmodel.validation.memory", lambda: 30_000)
    rows.check_rows(1000)
    states.check_rows(400)
    with pytest.raises(ValueError, match="the rows of the replay take"):
        states.check_rows(1000)


def test_more_steps_than_the_memory_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for them: a run that goes on, or an agent that is to learn."""
    config = merge(TINY, {"replay": {"capacity": 10**8}})
    made = train(merge(config, {"evaluation": SHORT}), run=tmp_path / "run")
    agent = WorldModelAgent(config, run=tmp_path / "agent")
    monkeypatch.setattr("worldmodel.validation.memory", lambda: 10**8)
    with pytest.raises(ValueError, match="the rows of the replay take"):
        resume(made.folder, steps=10**8)
    with pytest.raises(ValueError, match="the rows of the replay take"):
        agent.learn(10**8)


IMPORTED = """
import sys
import worldmodel.types
assert not [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules], "types"
import worldmodel.training.start, worldmodel.training.fitting.fit, worldmodel.training.report.diagnose
assert not [name for name in ("torch._dynamo", "stable_baselines3", "wandb", "matplotlib") if name in sys.modules]
"""


def test_what_a_run_may_not_need_is_not_imported() -> None:
    """Torch's compiler takes as long to import as torch itself; the first update is to come soon."""
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)


def test_a_run_does_without_stable_baselines3(tmp_path: Path) -> None:
    """But where an algorithm of it is to learn."""
    folder = str(tmp_path / "run")
    code = f"import sys; from worldmodel.training import train; train({TINY!r}, run={folder!r})"
    code += "; sys.exit('stable_baselines3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
