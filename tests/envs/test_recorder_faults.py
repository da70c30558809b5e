"""A broken environment or a misused recorder is told so at once; what was sound is kept."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodel import envs
from worldmodel.envs.testing.probes import Counter
from worldmodel.envs.wrappers.basic import CheckContract

FAULTS = {
    "nan": "observation 'x' of environment 0 at step 2 is not finite",
    "overflow": "observation 'x' of environment 0 at step 2 is not finite",
    "shape": r"observation 'x' of environment 0 at step 2 has shape \(3,\), but its space has shape \(2,\)",
    "category": "observation 'phase' of environment 0 at step 2 is outside its space",
    "extra": "observation 'y' of environment 0 at step 2 is not in the observation space",
    "text": "observation 'x' of environment 0 at step 2 has dtype <U1, which is not numeric",
    "missing": "observation 'x' of environment 0 at step 2 is missing",
    "reward overflow": "the reward of environment 0 at step 2 is not finite",
    "reward": "the reward of environment 0 at step 2 is not finite",
    "reward shape": r"the reward of environment 0 at step 2 has shape \(2,\) .*",
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("what", FAULTS)
def test_fault_of_a_single_environment(what: str, faulty: Any, rows: Any) -> None:
    env = envs.RecordEnvTrajectories(faulty(what, at=2), rows.add)
    env.reset()
    env.step(0)
    with pytest.raises(envs.EnvironmentFault, match=FAULTS[what]):
        env.step(0)
    assert len(rows.of[0]) == 2  # what came before
    with pytest.raises(ValueError, match="reset"):  # a row is missing: what follows would not be aligned
        env.step(0)
    env.reset()
    env.step(0)
    assert [bool(row.is_first) for row in rows.of[0]] == [True, False, True, False]


def test_fault_at_reset(faulty: Any, rows: Any) -> None:
    env = envs.RecordEnvTrajectories(faulty("nan", at=0), rows.add)
    with pytest.raises(envs.EnvironmentFault, match="'x' of environment 0 at step 0 is not finite"):
        env.reset()
    assert not rows.of


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("what", ["nan", "reward"])
@pytest.mark.parametrize("at", [2, 3])
def test_fault_in_a_vector_environment(mode: AutoresetMode, what: str, at: int, faulty: Any, rows: Any) -> None:
    """At time 3 the episodes end, and SAME_STEP shows the fault in final_obs alone."""
    makers = [partial(faulty, kind, at) for kind in ("none", "none", what, "none")]
    recorded = envs.RecordTrajectories(SyncVectorEnv(makers, autoreset_mode=mode), rows.add)
    recorded.reset()
    for _ in range(at - 1):
        recorded.step(np.zeros(4, int))
    name = "observation 'x'" if what == "nan" else "the reward"
    with pytest.raises(envs.EnvironmentFault, match=f"{name} of environment 2 at step {at} is not finite"):
        recorded.step(np.zeros(4, int))
    restarted = int(mode is AutoresetMode.SAME_STEP and at == 3)
    assert [len(rows.of[env]) for env in range(4)] == [at + 1 + restarted] * 2 + [at + restarted, at + 1 + restarted]
    assert not any(row.is_last for row in rows.of[2])
    assert {episode.env for episode in recorded.pop_episodes()} == ({0, 1, 3} if at == 3 else set())


def test_faults_of_several_environments(faulty: Any, rows: Any) -> None:
    makers = [partial(faulty, kind, at=1) for kind in ("nan", "category", "reward", "none")]
    recorded = envs.RecordTrajectories(SyncVectorEnv(makers, autoreset_mode="SameStep"), rows.add)
    recorded.reset()
    with pytest.raises(envs.EnvironmentFault, match="'x' of environment 0"):
        recorded.step(np.zeros(4, int))
    assert [len(rows.of[env]) for env in range(4)] == [1, 1, 1, 2]


def test_wrong_shape_in_a_final_observation(faulty: Any, rows: Any) -> None:
    makers = [partial(faulty, kind, at=3) for kind in ("none", "shape")]
    recorded = envs.RecordTrajectories(SyncVectorEnv(makers, autoreset_mode="SameStep"), rows.add)
    recorded.reset()
    for _ in range(2):
        recorded.step(np.zeros(2, int))
    with pytest.raises(envs.EnvironmentFault, match=r"'x' of environment 1 at step 3 has shape \(3,\), "):
        recorded.step(np.zeros(2, int))
    assert [bool(row.is_last) for row in rows.of[0]] == [False, False, False, True, False]


@pytest.mark.parametrize(("what", "problem"), [("shape", "has shape"), ("missing", "is missing")])
def test_what_cannot_be_stacked_names_its_environment(what: str, problem: str, faulty: Any, rows: Any) -> None:
    makers = [lambda i=i, kind=kind: CheckContract(faulty(kind, 2), i) for i, kind in enumerate(("none", what))]
    recorded = envs.RecordTrajectories(SyncVectorEnv(makers, autoreset_mode="SameStep"), rows.add)
    recorded.reset()
    recorded.step(np.zeros(2, int))
    with pytest.raises(envs.EnvironmentFault, match=f"'x' of environment 1 at step 2 {problem}"):
        recorded.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="reset"):
        recorded.step(np.zeros(2, int))


@pytest.mark.parametrize("continuous", [False, True])
def test_misuse(continuous: bool, rows: Any) -> None:
    env = envs.RecordEnvTrajectories(Counter(length=2, continuous=continuous), rows.add)
    good, bad = (np.zeros(1, np.float32), np.array([np.nan], np.float32)) if continuous else (0, 3)
    with pytest.raises(ValueError, match="call reset"):
        env.step(good)
    env.reset()
    with pytest.raises(ValueError, match=r"action .* of environment 0 is not in the action space"):
        env.step(bad)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(2))
    env.step(good)
    env.step(good)
    with pytest.raises(ValueError, match=r"episodes of environments \[0\] have ended"):
        env.step(good)
    assert len(rows.of[0]) == 3
