"""What an environment may return costs nothing that nobody reads, means the same everywhere, and stays what it was."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformReward
from gymnasium.wrappers.vector import DictInfoToList

from worldmodel.envs import (
    ActionRepeat,
    EnvConfig,
    RecordEnvTrajectories,
    RecordTrajectories,
    Restart,
    make,
    make_vector,
    observation_specs,
)
from worldmodel.envs.contract.infos import INFO, final, said
from worldmodel.envs.wrappers.basic import FRAMES, CheckContract, Owned
from worldmodel.envs.wrappers.vector import SameStepVectorEnv
from worldmodel.specs import encode_observation
from worldmodel.training.evaluation.evaluation import _successes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Gymnasium, about what is tried here

LENGTH = 5
ID = "test-contract/Counts-v0"


class Counts(gym.Env[Any, Any]):
    """Observes its step, 0 to 5, in a buffer that it may fill again; rewards of 1 in a form of choice; odd infos."""

    def __init__(
        self, refills: bool = False, kind: str = "vector", reward: Any = float, flag: Any = bool, info: str = ""
    ) -> None:
        box = spaces.Box(-1, 9, (2,), np.float32)
        picture = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.kinds = {"vector": {"x": box}, "dict": {"x": box, "n": spaces.Discrete(9)}, "picture": {"x": picture}}[
            kind
        ]
        self.observation_space = spaces.Dict(self.kinds) if kind == "dict" else self.kinds["x"]
        self.action_space = spaces.Discrete(2)
        self.refills, self.kind, self.reward, self.flag, self.info = refills, kind, reward, flag, info
        self.told: dict[Any, Any] = {}
        self.time, self.buffer = 0, {key: np.zeros(each.shape, each.dtype) for key, each in self.kinds.items()}

    def observe(self) -> Any:
        if not self.refills:
            self.buffer = {key: value.copy() for key, value in self.buffer.items()}
        for value in self.buffer.values():
            value[...] = self.time
        return self.buffer if self.kind == "dict" else self.buffer["x"]

    def inform(self) -> dict[Any, Any]:
        t = self.time
        return {
            "": {},
            "grows": {"path": np.arange(t + 1)},
            "mixed": {"a": t if t % 2 else "text", "b": None if t % 2 else 2, "c": {"d": t} if t % 2 else t},
            "large": {"a": 2**80, "b": -(2**70)},
            "names": {"x": t, "_x": "under", "final_obs": 3, "final_info": {"a": 1}, 7: t, None: t},
            "objects": {"f": lambda: t, "e": RuntimeError("x"), "l": [1, [2]], "m": MappingProxyType({}), "s": {t}},
            "dtypes": {"a": np.zeros(2, [np.int8, np.float64, object][t % 3]), "b": np.str_("x") if t % 2 else 1j},
        }[self.info]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[Any, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), self.inform()

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[Any, Any]]:
        self.time += 1
        return self.observe(), self.reward(1.0), self.flag(self.time == LENGTH), self.flag(False), self.inform()


gym.register(ID, Counts)
INFOS = ("grows", "mixed", "large", "names", "objects", "dtypes")
FORMS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": int,
    "0-d": np.array,
    "(1,)": lambda value: np.array([value]),
    "(1, 1)": lambda value: np.array([[value]]),
    "list": lambda value: [value],
    "float32": np.float32,
}


def steps(recorded: Any, count: int = 12) -> Any:
    recorded.reset(seed=0)
    for _ in range(count):
        result = recorded.step(np.zeros(recorded.num_envs, int))
    return result


def times(rows: Any, env: int = 0, key: str = "observation") -> list[int]:
    return [int(row.obs[key][0]) for row in rows.of[env]]


# ----------------------------------------------------------------------------------------------- infos


@pytest.mark.parametrize("info", INFOS)
def test_an_info_that_nobody_reads_costs_nothing(info: str, rows: Any) -> None:
    """With two environments in different places of their episodes, in training and in evaluations."""
    for training in (True, False):
        envs = make_vector(EnvConfig(ID, kwargs={"info": info}, num_envs=2, restarts=0), training=training)
        recorded = RecordTrajectories(envs, rows.add)
        recorded.reset(seed=0)
        envs.envs[1].reset()
        envs.envs[1].step(0)  # one step ahead of the other
        for _ in range(12):
            recorded.step(np.zeros(2, int))
        assert recorded.faults == 0 and recorded.steps == 24
    assert times(rows)[:13] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]


def test_each_info_is_kept_as_it_was_given() -> None:
    envs = make_vector(EnvConfig(ID, kwargs={"info": "names"}, num_envs=2))
    _, infos = envs.reset(seed=0)
    assert infos[INFO][1]["_x"] == "under" and said(infos, "x", 2) == [0, 0]
    for _ in range(LENGTH):
        *_, infos = envs.step(np.zeros(2, int))
    assert said(infos, "x", 2) == [0, 0] and said(final(infos), "x", 2) == [LENGTH, LENGTH]
    assert infos[INFO][0][7] == 0 and infos["final_obs"][0].tolist() == [LENGTH, LENGTH]


class Judged(Counts):
    """Says of each episode whether it was a success, in its own way, in an info that it fills again."""

    def __init__(self, says: Any) -> None:
        super().__init__()
        self.says = says

    def inform(self) -> dict[Any, Any]:
        self.told.clear()
        if self.time == LENGTH and self.says is not None:
            self.told["is_success"] = self.says
        return self.told


def test_success_is_read_of_each_environment() -> None:
    """Their infos would not merge: two environments say it in different kinds, one not at all."""
    says = [True, np.array([0.0]), None, "yes", np.float32(1), np.zeros(3)]
    envs = SameStepVectorEnv([lambda each=each: CheckContract(Judged(each)) for each in says])  # type: ignore[misc]
    envs.reset(seed=0)
    for _ in range(LENGTH):
        *_, infos = envs.step(np.zeros(len(says), int))
    np.testing.assert_array_equal(_successes(final(infos), len(says)), [1, 0, np.nan, np.nan, 1, np.nan])


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_infos_as_a_list_are_read_too(ours: bool, kind: str, rows: Any) -> None:
    config = EnvConfig(ID, kwargs={"kind": kind}, num_envs=2, action_repeat=2)
    vector: Any = make_vector(config)
    if not ours:
        vector = SyncVectorEnv([lambda: make(config)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    recorded = RecordTrajectories(DictInfoToList(vector), rows.add)
    steps(recorded, 4)
    key = "x" if kind == "dict" else "observation"
    assert times(rows, 1, key) == [0, 2, 4, 5, 0, 2]
    assert recorded.frames == 2 * (2 + 2 + 1 + 2)  # each of them reported in an info


# ----------------------------------------------------------------------------------------------- tuples


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_tuple_is_recorded_under_its_numbers(mode: AutoresetMode, rows: Any) -> None:
    """By hand around Gymnasium's own vector, and as `make` makes it: the same sums of cards."""
    truth = gym.make("Blackjack-v1")
    hands = [truth.reset(seed=5)[0]]
    while hands[-1][0] <= 21:
        hands.append(truth.step(1)[0])
    for single in (False, True):
        rows.of.clear()
        if single:
            recorded: Any = RecordEnvTrajectories(make(EnvConfig("Blackjack-v1")), rows.add)
        else:
            recorded = RecordTrajectories(
                gym.make_vec("Blackjack-v1", 1, vector_kwargs={"autoreset_mode": mode}), rows.add
            )
        recorded.reset(seed=5)
        for _ in hands[1:]:
            recorded.step(1 if single else np.ones(1, int))
        assert set(rows.of[0][0].obs) == {"0", "1", "2"}
        found = [tuple(int(row.obs[key][0]) for key in "012") for row in rows.of[0][: len(hands)]]
        assert found == hands and bool(rows.of[0][len(hands) - 1].is_terminal)


def test_an_agent_takes_a_tuple_as_its_environment_gives_it() -> None:
    specs = observation_specs(gym.make("Blackjack-v1").observation_space)
    encoded = encode_observation(specs, (np.array([3, 4]), np.array([1, 2]), np.array([0, 1])))
    assert {key: values[:, 0].tolist() for key, values in encoded.items()} == {"0": [3, 4], "1": [1, 2], "2": [0, 1]}


# --------------------------------------------------------------------------- an array of one number is it


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", ["reward", "flag"])
def test_an_array_that_holds_one_number_is_that_number(of: str, form: str, rows: Any) -> None:
    """In every way that an environment is stepped, its frames repeated or not."""
    kwargs = {of: FORMS[form]}
    for repeat, expected in ((1, [1.0] * 5), (2, [2.0, 2.0, 1.0])):
        config = EnvConfig(ID, kwargs=kwargs, num_envs=2, action_repeat=repeat, restarts=0)
        for vector in (make_vector(config, training=True), make_vector(config)):
            rows.of.clear()
            recorded = RecordTrajectories(vector, rows.add)
            steps(recorded, len(expected))
            assert [float(row.reward) for row in rows.of[1]] == [0, *expected, 0]
            assert [bool(row.is_terminal) for row in rows.of[1]] == [False] * len(expected) + [True, False]
            assert recorded.pop_episodes()[0].total_reward == LENGTH
        rows.of.clear()
        single = RecordEnvTrajectories(make(config), rows.add)
        single.reset(seed=0)
        results = [single.step(0) for _ in expected]
        assert [type(value) for value in results[-1][1:4]] == [float, bool, bool]
        assert [float(row.reward) for row in rows.of[0]] == [0, *expected]
        assert bool(rows.of[0][-1].is_terminal)


@pytest.mark.parametrize("of", ["reward", "flag"])
def test_the_same_of_environments_that_nothing_of_ours_has_made(of: str, rows: Any) -> None:
    kwargs: dict[str, Any] = {of: FORMS["(1,)"]}
    recorded = RecordTrajectories(SyncVectorEnv([lambda: Counts(**kwargs)] * 2, autoreset_mode="SameStep"), rows.add)
    steps(recorded, 6)
    assert [float(row.reward) for row in rows.of[1]] == [0, 1, 1, 1, 1, 1, 0, 1]
    rows.of.clear()
    single = RecordEnvTrajectories(TransformReward(Counts(**kwargs), lambda reward: reward * np.ones(1)), rows.add)
    single.reset(seed=0)
    single.step(0)
    assert rows.of[0][1].reward == 1


def test_a_vector_whose_rewards_are_columns(rows: Any) -> None:
    """As Gymnasium's `AsyncVectorEnv` passes them through."""

    class Columns(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
        def step(self, actions: Any) -> Any:
            observation, *outcome, infos = super().step(actions)
            return observation, *(each[:, None] for each in outcome), infos

    recorded = RecordTrajectories(Columns(make_vector(EnvConfig(ID), 3)), rows.add)
    steps(recorded, 6)
    assert [float(row.reward) for row in rows.of[2]] == [0, 1, 1, 1, 1, 1, 0, 1]
    assert [bool(row.is_terminal) for row in rows.of[2]] == [False] * 5 + [True, False, False]


@pytest.mark.parametrize("reward", [np.ones(2), np.zeros(0), "1", None, 1j, [1, [2]], np.nan, 1e39])
@pytest.mark.parametrize("repeat", [1, 2])
def test_what_is_no_number_is_refused_in_one_line(reward: Any, repeat: int) -> None:
    env = make(EnvConfig(ID, kwargs={"reward": lambda _: reward}, action_repeat=repeat))
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"^the reward (of environment 0 at step \d+ )?(has shape .* must be a number|is not finite)"
    ):
        env.step(0)


@pytest.mark.parametrize("flag", [np.zeros(2, bool), None, "no", np.nan])
def test_a_flag_that_is_neither_true_nor_false_is_refused(flag: Any) -> None:
    for env in (make(EnvConfig(ID, kwargs={"flag": lambda _: flag})), ActionRepeat(Counts(flag=lambda _: flag), 2)):
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"^'terminated' .*must be True or False"):
            env.step(0)


# ------------------------------------------------------------------------------ what is seen stays what it was


@pytest.mark.parametrize("kind", ["vector", "dict", "picture"])
def test_an_environment_may_fill_one_buffer_again(kind: str, rows: Any) -> None:
    """Gymnasium keeps the last observation of an episode while it resets the environment."""
    kwargs = {"refills": True, "kind": kind}
    config = EnvConfig(ID, kwargs=kwargs, num_envs=2, **({"image_size": 16} if kind == "picture" else {}))
    plain = SyncVectorEnv([lambda: Counts(**kwargs)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    made = (make_vector(config, training=True), make_vector(config), plain)
    for vector in made:
        rows.of.clear()
        steps(RecordTrajectories(vector, rows.add), 7)
        for env in range(2):
            assert times(rows, env, "x" if kind == "dict" else "observation") == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_environments_may_share_one_buffer(rows: Any) -> None:
    """The observation of the first stays what it was while the second is stepped."""
    buffer = {"x": np.zeros(2, np.float32)}

    class Shares(Counts):
        def observe(self) -> Any:
            self.buffer = buffer
            return super().observe()

    factories = [lambda: CheckContract(Shares(refills=True)), lambda: CheckContract(Shares(refills=True))]
    envs = SameStepVectorEnv(factories)
    recorded = RecordTrajectories(envs, rows.add)
    recorded.reset(seed=0)
    envs.envs[1].step(0)
    recorded.step(np.zeros(2, int))
    assert times(rows)[1] == 1 and times(rows, 1)[1] == 2


def test_what_stays_of_an_environment_that_fails_is_what_was_seen_last() -> None:
    class Fails(Counts):
        def step(self, action: Any) -> Any:
            result = super().step(action)
            if self.time == 3:
                raise RuntimeError("died after it had filled its buffer")
            return result

    env = Restart(lambda: Owned(Fails(refills=True)), limit=1)
    env.reset(seed=0)
    assert [env.step(0)[0][0] for _ in range(3)] == [1, 2, 2]


def test_dictionaries_that_are_filled_again_are_copied() -> None:
    env = make(EnvConfig(ID, kwargs={"refills": True, "kind": "dict"}))
    first, _ = env.reset(seed=0)
    second, *_ = env.step(0)
    assert first is not second and (first["x"][0], second["x"][0]) == (0, 1) and (first["n"], second["n"]) == (0, 1)


@pytest.mark.parametrize(
    ("space", "value", "problem"),
    [
        (spaces.Box(0, 255, (2,), np.uint8), np.array([3, 300]), "holds 300, which cannot be stored as uint8"),
        (spaces.Box(0, 9, (2,), np.int64), np.array([3, 3.5]), "holds 3.5, which cannot be stored as int64"),
        (spaces.Box(-9, 9, (2,), np.int8), np.array([-200, 1]), "holds -200, which cannot be stored as int8"),
        (spaces.Discrete(3), 1.7, "holds 1.7, which cannot be stored as int64"),
        (spaces.MultiBinary(2), np.array([0.0, 0.5]), "holds 0.5, which cannot be stored as int"),
        (spaces.Box(-9, 9, (2,), np.float16), np.array([1.0, 1e5]), "is not finite"),
        (spaces.Box(-9, 9, (2,)), [[1], [2, 3]], "has dtype object, which is not numeric"),
    ],
)
def test_numbers_that_their_space_would_change_are_refused(space: Any, value: Any, problem: str) -> None:
    """Gymnasium rounds or wraps them without a word where it stacks them, or fails."""

    class Says(Counts):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = space

        def observe(self) -> Any:
            return value

    with pytest.raises(ValueError, match=f"^observation 'observation' of environment 0 at step 0 {problem}"):
        CheckContract(Says()).reset(seed=0)


def test_whole_numbers_of_another_kind_are_taken(rows: Any) -> None:
    class Says(Counts):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict(a=spaces.Box(0, 255, (2,), np.uint8), b=spaces.Discrete(300))

        def observe(self) -> Any:
            return {"a": np.array([self.time, 200.0]), "b": np.float64(self.time)}

    steps(RecordTrajectories(SameStepVectorEnv([lambda: CheckContract(Says())]), rows.add), 3)
    assert times(rows, 0, "a") == times(rows, 0, "b") == [0, 1, 2, 3]


def test_frames_are_counted_of_infos_in_every_form() -> None:
    assert said({FRAMES: np.array([4, 0]), "_" + FRAMES: np.array([True, False])}, FRAMES, 2) == [4, None]
    assert said([{FRAMES: 4}, None], FRAMES, 2) == [4, None] and said({}, FRAMES, 2) == [None, None]
