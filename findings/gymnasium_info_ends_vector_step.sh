#!/usr/bin/env bash
# gymnasium 1.4.0: an info that nobody reads ends a step of SyncVectorEnv.
#
# An environment may put anything into its info. The one below, which check_env accepts, reports the path it has
# walked: an array that is one longer after every step.
# Expected: the infos of several environments are handed on, as they are by a single environment.
# Seen: once two environments are at different steps, `step` raises "could not broadcast input array from shape ...".
# The infos are merged into one array, whose shape is that of the first. The message names neither the key nor the
# environment. A number in one environment and a text in the other fails the same way ("could not convert").
# Who is hurt: whoever trains on an environment with a rich info in a vector: it runs alone, and ends in a batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gymnasium==1.4.0 numpy==2.4.6 2>/dev/null
cat > "$folder/seen.py" <<'PY'
import warnings

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Walker(gym.Env):
    observation_space = gym.spaces.Box(0, 99, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length, tells):
        self.length, self.tells = length, tells

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), self.tells(self)

    def step(self, action):
        self.time += 1
        return np.array([self.time], np.float32), 0.0, self.time == self.length, False, self.tells(self)


def path(env):
    return {"path": np.arange(env.time + 1)}


def mixed(env):
    return {"note": 1.0 if env.length == 3 else "far"}


def raised(tells):
    envs = SyncVectorEnv([lambda: Walker(3, tells), lambda: Walker(4, tells)], autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        envs.reset(seed=0)
        for _ in range(8):
            envs.step(np.zeros(2, np.int64))
    except ValueError as error:
        return str(error)
    return None


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    check_env(Walker(3, path), skip_render_check=True)
seen = {"path": raised(path), "mixed": raised(mixed)}
print("gymnasium", gym.__version__, seen)
assert seen["path"] and "could not broadcast" in seen["path"] and "path" not in seen["path"], "this has changed"
assert seen["mixed"] and "could not convert" in seen["mixed"], "this has changed"
PY
"$folder/venv/bin/python" "$folder/seen.py"
