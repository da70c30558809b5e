"""Every suite's config trains for a moment in its own environment, in small sizes; skipped where an extra is absent."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import make
from worldmodel.training import Run, train
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import load_yaml
from worldmodel.training.logging.logger import REPOSITORY

SUITES = REPOSITORY / "configs" / "suites"
BASE = load_yaml(SUITES.parent / "dream.yaml")
README = (REPOSITORY / "README.md").read_text()
NEEDS = {  # config: (what must be importable, the extra that installs it, the keys that are images, frames per step)
    "atari": ("ale_py", "atari", {"observation"}, 4),
    "minigrid": ("minigrid", "minigrid", set(), 1),
    "crafter": ("crafter", "crafter", {"observation"}, 1),
    "carracing": ("Box2D", "box2d", {"observation"}, 4),
    "halfcheetah": ("mujoco", "mujoco", set(), 1),
    "dmc": ("dm_control", "dmc", set(), 2),
    "dmc_pixels": ("dm_control", "dmc", {"observation"}, 4),
}
STEPS = 30
SMALL: dict[str, Any] = {
    "env": {"time_limit": 10},
    "model": {
        "hidden": 16,
        "image_depth": 2,
        "latent": {"size": 4},
        "dynamics": {"rssm": {"deter": 16, "hidden": 16}},
    },
    "behaviour": {
        "actor_critic": {"hidden": 16, "starts": 8, "horizon": 3},
        "exploration": {"ensemble": {"members": 2, "hidden": 8}},
    },
    "replay": {"batch_size": 2, "window": 4, "capacity": 100},
    "training": {"steps": STEPS, "prefill": 20, "pretrain": 2, "replay_ratio": 4},
    "evaluation": {"every": 1000, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


def needed(suite: str) -> None:
    """Skip a test of a suite that is not here, by the name of its extra."""
    module, extra, _, _ = NEEDS[suite]
    if find_spec(module) is None or (extra == "mujoco" and find_spec("imageio") is None):  # Gymnasium's need it too
        pytest.skip(f"needs the extra: pip install 'worldmodel[{extra}]'")


def test_every_config_of_a_suite_is_tested_and_tells_how_it_is_run() -> None:
    files = {file.stem: file.read_text() for file in SUITES.glob("*.yaml")}
    assert files.keys() - {"pixels"} == NEEDS.keys()
    for name in NEEDS:
        first = files[name].splitlines()[0]
        assert f"worldmodel train configs/suites/{name}.yaml" in first and f".[{NEEDS[name][1]}]" in first
        assert load_yaml(SUITES / f"{name}.yaml")["model"]["dynamics"] == BASE["model"]["dynamics"]  # it is shared


@pytest.mark.parametrize("suite", NEEDS)
def test_a_suite_trains(suite: str, tmp_path: Path) -> None:
    needed(suite)
    _, _, images, frames = NEEDS[suite]
    run = train(load_yaml(SUITES / f"{suite}.yaml"), run=tmp_path / suite, **SMALL)
    assert {key for key, spec in run.obs_specs.items() if spec.image} == images
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    logged = {key: value for row in rows for key, value in row.items()}
    assert logged["time/frames"] == frames * STEPS
    assert all(np.isfinite(logged[name]) for name in ("world_model/elbo", "final/mean_reward"))
    everything = run.replay.everything()
    assert int((~everything.is_first * everything.mask.bool()).sum()) == STEPS
    env = make(run.config.env)
    observation, _ = env.reset(seed=1)
    action, _ = Run.load(run.folder).agent.predict(observation)
    assert env.action_space.contains(np.asarray(action, env.action_space.dtype)[()])
    env.close()


@pytest.mark.parametrize("suite", [suite for suite, (_, _, images, _) in NEEDS.items() if not images])
def test_what_a_suite_draws_can_be_observed(suite: str) -> None:
    needed(suite)
    config = load_config(SUITES / f"{suite}.yaml", ["--env.pixels", "true"]).env
    env = make(config)
    seen, _ = env.reset(seed=0)
    assert seen.shape == (64, 64, 3) and seen.dtype == np.uint8 and seen.std() > 5
    later = [env.step(env.action_space.sample())[0] for _ in range(10)]
    assert any((picture != seen).any() for picture in later)
    env.close()


def test_the_state_of_a_simulator_is_recorded() -> None:
    needed("halfcheetah")
    config = load_config(SUITES / "halfcheetah.yaml", ["--env.record_state", "true"]).env
    env = make(config)
    seen, _ = env.reset(seed=0)
    np.testing.assert_allclose(seen["state/simulator"][1:], seen["observation"])  # all of it but the way travelled
    env.close()


def test_the_readme_lists_every_suite_with_its_extra() -> None:
    rows = re.findall(r"^\|.*\| `(\w+)` \| \[\w+\.yaml\]\(configs/suites/(\w+)\.yaml\) \|$", README, re.MULTILINE)
    assert {(config, extra) for extra, config in rows} == {(name, extra) for name, (_, extra, _, _) in NEEDS.items()}
