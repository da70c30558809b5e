"""The tables of docs/spaces.md, row by row: what is supported is recorded, learned and decoded; the rest is refused."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.envs import EnvConfig, make
from worldmodel.envs.contract.spaces import layout
from worldmodel.specs import keyed
from worldmodel.training import Run, train
from worldmodel.training.logging.logger import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "spaces.md").read_text()
WORDS = {"np": np, "inf": np.inf, **{name: getattr(spaces, name) for name in spaces.__all__}}
SIDE, STEPS = 32, 40
SMALL: dict[str, Any] = {
    "model": {
        "hidden": 8,
        "image_depth": 2,
        "latent": {"size": 4},
        "dynamics": {"rssm": {"deter": 8, "hidden": 8}},
    },
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4, "capacity": 100},
    "training": {"steps": STEPS, "prefill": 30, "pretrain": 2, "replay_ratio": 2},
    "evaluation": {"every": 1000, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


def table(title: str) -> list[tuple[str, ...]]:
    """The rows under a heading, without the head; the cells without backticks."""
    section = DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip().strip("`") for cell in row) for row in rows[2:]]


def space(code: str) -> spaces.Space[Any]:
    return eval(code, dict(WORDS))


OBSERVATIONS, ACTIONS, REFUSED = table("Observations"), table("Actions"), table("Refused")


class Said(gym.Env[Any, Any]):
    """Shows samples of a space, remembers them, and ends after seven steps."""

    log: list[Any]

    def __init__(self, seen: spaces.Space[Any], acted: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space, self.time = seen, acted, 0
        seen.seed(0)

    def say(self) -> Any:
        self.log.append(self.observation_space.sample())
        return self.log[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.say(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)[()])
        self.time += 1
        return self.say(), 1.0, self.time == 7, False, {}


ID = "test-spaces/Said-v0"


def register(seen: spaces.Space[Any], acted: spaces.Space[Any]) -> None:
    """Let :data:`ID` be an environment with these spaces, that has said nothing yet."""
    Said.log = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it replaces the one of another row
        gym.register(ID, Said, disable_env_checker=True, kwargs={"seen": seen, "acted": acted})


def trained(seen: spaces.Space[Any], acted: spaces.Space[Any], folder: Path) -> tuple[Run, list[Any]]:
    """A run on an environment with these spaces, and what that said."""
    register(seen, acted)
    size = {"image_size": SIDE} if any(map(layout, named_spaces(seen).values())) else {}
    return train({"env": {"id": ID, **size}}, run=folder, **SMALL), Said.log


def as_recorded(value: np.ndarray, of: spaces.Space[Any]) -> np.ndarray:
    """Told by hand, for one observation of one space."""
    if isinstance(of, spaces.Box) and max(of.shape) >= 16 and of.shape != (20, 16):
        low, high = float(of.low.min()), float(of.high.max())
        value = np.uint8(np.round((value - low) / (high - low) * 255))
        value = np.transpose(value, (1, 2, 0)) if value.ndim == 3 and value.shape[0] in (1, 3) else value
        return cv2.resize(value, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    start = getattr(of, "start", 0)
    return np.asarray(value - np.asarray(start) if isinstance(of, spaces.MultiDiscrete) else value - start).ravel()


@pytest.mark.parametrize("row", OBSERVATIONS, ids=lambda row: row[0])
def test_an_observation_space_is_recorded_learned_and_decoded(row: tuple[str, ...], tmp_path: Path) -> None:
    seen = space(row[0])
    run, said = trained(seen, spaces.Discrete(2), tmp_path / "run")
    kinds = dict(zip(run.obs_specs, zip(row[1].split("; "), row[2].split("; "), strict=True), strict=True))
    rows = run.replay.everything()
    feature = run.model.feature(run.model.observe(rows).states)
    decoded = run.model.predict(feature).obs
    for (key, decoder), each in zip(run.model._decoders(), named_spaces(seen).values(), strict=True):
        recorded, (stored, emitted) = rows.obs[key][0], kinds[key]
        width = recorded.shape[-1]
        assert (f"{str(recorded.dtype).removeprefix('torch.')} ({width},)", type(decoder.output).__name__) == (
            stored,
            emitted,
        )
        expected = [as_recorded(keyed(run.obs_specs, value)[key], each) for value in said[: len(recorded)]]
        np.testing.assert_allclose(recorded.numpy().astype(float), np.array(expected, float), atol=1.001)
        if not run.obs_specs[key].image:
            np.testing.assert_allclose(recorded.numpy().astype(float), np.array(expected, float), rtol=1e-6)
        classes = run.obs_specs[key].classes
        assert decoded[key].shape[-1] == (sum(classes) if emitted == "Categorical" else width)
        assert decoded[key].isfinite().all()


def named_spaces(of: spaces.Space[Any]) -> Mapping[str, spaces.Space[Any]]:
    if isinstance(of, spaces.Tuple):
        return dict(zip(("0", "1"), of.spaces, strict=True))
    return of.spaces if isinstance(of, spaces.Dict) else {"observation": of}


@pytest.mark.parametrize("row", ACTIONS, ids=lambda row: row[0])
def test_an_action_space_is_acted_in_and_learned_from(row: tuple[str, ...], tmp_path: Path) -> None:
    acted = space(row[0])
    run, _ = trained(spaces.Box(-1, 1, (2,)), acted, tmp_path / "run")
    rows = run.replay.everything()
    controls = rows.prev_action[~rows.is_first]
    assert controls.shape == (STEPS, int(row[1]))
    if row[2] == "score":
        assert set(controls.unique().tolist()) == {0.0, 1.0}
    else:
        assert controls.abs().max() <= 1 and len(controls.unique()) > STEPS / 2
    assert run.behaviour.pathwise == (row[2] == "pathwise")  # type: ignore[union-attr]
    assert all(torch.isfinite(parameter).all() for parameter in run.behaviour.parameters())
    for deterministic in (True, False):
        action, _ = run.agent.predict(np.zeros(2, np.float32), deterministic=deterministic)
        assert acted.contains(np.asarray(action, acted.dtype)[()])


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[1]} {row[0]}")
def test_what_is_not_supported_is_refused_with_the_remedy(row: tuple[str, ...], tmp_path: Path) -> None:
    usual = {"observation": spaces.Box(-1, 1, (2,)), "action": spaces.Discrete(2)}
    assert row[1] in usual
    given = {**usual, row[1]: space(row[0])}
    with pytest.raises(ValueError, match=re.escape(row[2])):
        trained(given["observation"], given["action"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_tables_name_every_space_of_gymnasium() -> None:
    supported = {"Box", "Dict", "Tuple", "Discrete", "MultiDiscrete", "MultiBinary"}
    assert {name for row in OBSERVATIONS for name in re.findall(r"(\w+)\(", row[0])} == supported
    assert {name for row in ACTIONS for name in re.findall(r"^(\w+)\(", row[0])} == supported - {"Dict", "Tuple"}
    assert {"Text", "Tuple", "Sequence", "Graph"} <= {row[0].split("(")[0] for row in REFUSED}
    mixed = space(OBSERVATIONS[-1][0])
    assert isinstance(mixed, spaces.Dict)
    assert [type(each) for each in mixed.spaces.values()] == [spaces.Box, spaces.Box, spaces.Discrete]


def test_images_of_one_observation_may_differ_in_size_and_order() -> None:
    register(space(OBSERVATIONS[-2][0]), spaces.Discrete(2))
    observation, _ = make(EnvConfig(ID, image_size=SIDE)).reset(seed=0)
    assert {key: value.shape for key, value in observation.items()} == {"eye": (32, 32, 3), "hand": (32, 32, 1)}
