"""Environments of every kind that Gymnasium allows: what is recorded of them is what happened, or they are refused.

`pytest tests/faults -m slow -k fuzz_env -s` makes two thousand of them, and prints what they came to.
"""

import importlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodel.envs import (
    EnvConfig,
    RecordEnvTrajectories,
    RecordTrajectories,
    RepeatableEpisodes,
    action_spec,
    make,
    make_vector,
    observation_specs,
)
from worldmodel.envs.wrappers.episodes import episode_seed
from worldmodel.replay.replay import SequenceReplay
from worldmodel.training.evaluation.evaluation import evaluate, evaluation_seeds

QUICK, SLOW = 100, 2_000
LONG = 2_000  # characters of what a refusal says
PLACES = ("training", "training", "other", "single", "by hand", "evaluation")


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the environments."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "broken"))
    found = importlib.import_module("worlds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, of what it does not like
        yield found


class Row(NamedTuple):
    """What must have been recorded."""

    obs: dict[str, np.ndarray]
    action: Any
    reward: float
    first: bool
    last: bool
    terminal: bool


# ------------------------------------------------------------------------------------------- what is the truth


def expected(logs: list[Any], repeat: int, limit: int | None, cut: bool = True) -> list[Row]:
    """The rows of one environment, out of what it, and those that took its place, say that happened."""
    rows: list[Row] = []
    for log in logs:
        steps = frames = 0
        reward, action = 0.0, None
        for event in log:
            over = event.terminated or event.truncated
            unseen = event.failed in ("observation", "missing", "extra") and frames + 1 < repeat and not over
            if event.failed and not unseen:  # an observation between two decisions reaches nobody
                if cut and rows:
                    rows[-1] = rows[-1]._replace(last=True)
                break
            if event.action is None:
                rows.append(Row(event.observation, None, 0.0, True, False, False))
                steps = frames = 0
                reward = 0.0
                continue
            action = action if frames else event.action
            frames, reward = frames + 1, reward + event.reward
            if not over and frames < repeat:
                continue
            steps += 1
            last = over or steps == limit
            rows.append(Row(event.observation, action, reward, False, last, event.terminated))
            frames, reward = 0, 0.0
    return rows


def as_recorded(value: Any, space: spaces.Space[Any]) -> np.ndarray:
    """Told by hand, for one observation of one plain space."""
    value = np.asarray(value)
    if isinstance(space, spaces.Box) and 16 in space.shape:
        pixels = np.floor(value.astype(np.float64) * (255 / float(space.high.max())) + 0.5).astype(np.uint8)
        return (np.moveaxis(pixels, 0, -1) if pixels.shape[0] == 3 else pixels).ravel()
    if isinstance(space, spaces.Box):
        return value.astype(np.float32).ravel()
    return (value.astype(np.int64) - np.asarray(getattr(space, "start", 0))).ravel()


def as_control(action: Any, space: spaces.Space[Any]) -> np.ndarray:
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return (2 * (np.asarray(action, np.float64) - low) / (high - low) - 1).ravel()
    index = (np.asarray(action) - np.asarray(getattr(space, "start", 0))).ravel()
    sizes = getattr(space, "nvec", None) if not isinstance(space, spaces.Discrete) else [space.n]
    sizes = [2] * index.size if sizes is None else np.ravel(sizes)
    return np.concatenate([np.eye(int(n))[i] for i, n in zip(index, sizes, strict=True)])


def assert_recorded(replay: SequenceReplay, env: int, rows: list[Row], world: Any) -> int:
    """The stream of an environment is what happened in it, row by row; how many rows that are."""
    stream, space = replay.stream(env), world.action_space
    assert stream.reward.shape[1] == len(rows)
    for name, wanted in (("is_first", "first"), ("is_last", "last"), ("is_terminal", "terminal")):
        assert getattr(stream, name)[0].tolist() == [getattr(row, wanted) for row in rows], name
    for key, part in world.named.items():
        truth = np.array([as_recorded(row.obs[key], part) for row in rows])
        np.testing.assert_allclose(stream.obs[key][0].numpy(), truth, rtol=2e-7, atol=0, err_msg=key)
    np.testing.assert_array_equal(stream.reward[0].numpy(), np.array([row.reward for row in rows], np.float32))
    none = np.zeros(stream.prev_action.shape[-1])
    controls = np.array([none if row.first else as_control(row.action, space) for row in rows])
    fine = 1e-6
    if isinstance(space, spaces.Box):  # bounds are kept in single precision
        fine += (
            4
            * np.finfo(np.float32).eps
            * float((np.maximum(abs(space.low), abs(space.high)) / (space.high - space.low)).max())
        )
    np.testing.assert_allclose(stream.prev_action[0].numpy(), controls, atol=fine)
    return len(rows)


# ------------------------------------------------------------------------------------------- one environment


class Fuzz:
    """Makes environments by their numbers, and checks what came of them."""

    def __init__(self, worlds: Any, long: bool) -> None:
        self.worlds, self.long, self.counts = worlds, long, Counter[str]()

    def check(self, number: int) -> None:
        """Environment `number`, in one of the places where environments are stepped."""
        self.worlds.World.shown.clear()
        rng = np.random.default_rng([number, 2])
        place = PLACES[rng.integers(len(PLACES))]
        steps = 1_300 if self.long and rng.random() < 0.2 else 60
        try:
            self.tried(number, rng, place, steps)
        except ValueError as error:
            self.refused(number, place, str(error))

    def refused(self, number: int, place: str, said: str) -> None:
        """In one line, and only what may be."""
        shown = self.worlds.World.shown
        may = not shown or not shown[0].supported or shown[0].breaks or place in ("single", "by hand")
        assert may, f"world {number}, {place}: refused, and nothing is wrong: {said}"
        assert 0 < len(said) < LONG and all(letter.isprintable() for letter in said), f"world {number}: {said!r}"
        self.counts["refused"] += 1

    def config(self, number: int, rng: np.random.Generator) -> EnvConfig:
        world = self.worlds.World(number)
        pictures = any(16 in (part.shape or ()) for part in world.named.values())
        self.worlds.World.shown.clear()
        return EnvConfig(
            self.worlds.ID if rng.integers(2) else self.worlds.UNCHECKED,
            num_envs=int(rng.integers(1, 4)),
            kwargs={"number": number},
            action_repeat=int(rng.choice([1, 1, 2, 3])),
            time_limit=None if rng.integers(2) else int(rng.integers(1, 50)),
            restarts=10_000,
            **({"image_size": 16} if pictures else {}),
        )

    def tried(self, number: int, rng: np.random.Generator, place: str, steps: int) -> None:
        config = self.config(number, rng)
        if place == "evaluation":
            self.evaluated(config, rng)
        elif place in ("single", "by hand"):
            self.by_hand(number, config, rng, place, steps)
        else:
            self.vector(config, steps, training=place == "training")

    def vector(self, config: EnvConfig, steps: int, training: bool) -> None:
        envs = make_vector(config, training=training)
        specs, control = observation_specs(envs.single_observation_space), action_spec(envs.single_action_space)
        replay = SequenceReplay(specs, control, envs.num_envs, 100_000)
        recorded = RecordTrajectories(envs, replay.add, replay.cut)
        chains: list[list[Any]] = [[] for _ in range(envs.num_envs)]

        def look() -> None:
            for chain, env in zip(chains, envs.envs, strict=True):
                if not chain or chain[-1] is not env.unwrapped:
                    chain.append(env.unwrapped)

        recorded.action_space.seed(0)
        observation, _ = recorded.reset(seed=7)
        look()
        for _ in range(steps):
            observation, *_ = recorded.step(recorded.action_space.sample())
            look()
        world = chains[0][0]
        for env, chain in enumerate(chains):
            rows = expected([each.log for each in chain], config.action_repeat, config.time_limit)
            self.counts["rows"] += assert_recorded(replay, env, rows, world)
            if training and not world.breaks:
                seeds = [event.seed for event in chain[0].log if event.action is None]
                assert seeds == [episode_seed(7 + env, episode) for episode in range(len(seeds))]
        assert bool(recorded.faults) <= bool(world.breaks) and recorded.faults >= len(chains[0]) - 1
        assert all(text.isprintable() for text in recorded.pop_failures())
        self.counts["failures made up for"] += recorded.faults
        self.counts["recorded"] += 1
        if training and not world.breaks:
            self.taken_up(config, envs, observation)

    def taken_up(self, config: EnvConfig, envs: Any, observation: Any) -> None:
        """Another environment is brought to the step that the first of them stands at."""
        assert isinstance(envs.envs[0], RepeatableEpisodes)
        other = make(config, training=True)
        assert isinstance(other, RepeatableEpisodes)
        reached = other.go_to(envs.envs[0].position())
        many = observation if isinstance(observation, dict) else {"observation": observation}
        one = reached if isinstance(reached, dict) else {"observation": reached}
        for key, values in many.items():
            np.testing.assert_array_equal(one[key], values[0])

    def by_hand(self, number: int, config: EnvConfig, rng: np.random.Generator, place: str, steps: int) -> None:
        """By the recorders around environments that nothing of ours has made, or `make` has."""
        World, mode = self.worlds.World, AutoresetMode(rng.choice(list(AutoresetMode)))
        if place == "single":
            made = bool(rng.integers(2))
            env: Any = make(config) if made else World(number, usual=True)
        else:
            made, env = False, SyncVectorEnv([lambda: World(number, usual=True)] * 2, autoreset_mode=mode)
        single = place == "single"
        specs = observation_specs(env.observation_space if single else env.single_observation_space)
        control = action_spec(env.action_space if single else env.single_action_space)
        replay = SequenceReplay(specs, control, 1 if single else 2, 100_000)
        recorded: Any = (RecordEnvTrajectories if single else RecordTrajectories)(env, replay.add, replay.cut)
        recorded.action_space.seed(0)
        recorded.reset(seed=7)
        failed = ""
        for _ in range(steps):
            try:
                _, _, *ends, _ = recorded.step(recorded.action_space.sample())
                over = np.logical_or(*(np.asarray(end).ravel() for end in ends))
                if over.any() and (single or mode is AutoresetMode.DISABLED):
                    recorded.reset(**({} if single else {"options": {"reset_mask": over}}))
            except Exception as error:  # the environment's own, which nobody replaces here
                failed = str(error)
                break
        shown = World.shown if single else [each.unwrapped for each in env.envs]
        world = shown[-1]
        assert bool(failed) <= bool(world.breaks), f"world {number}: {failed}"
        repeat, limit = (config.action_repeat, config.time_limit) if made else (1, None)
        for at in range(replay.written.size):
            log = [shown[-1] if single else shown[at]][0].log
            self.counts["rows"] += assert_recorded(replay, at, expected([log], repeat, limit, cut=False), world)
        self.counts["recorded"] += 1

    def evaluated(self, config: EnvConfig, rng: np.random.Generator) -> None:
        """Returns, lengths and successes are those of the first episode of each environment."""
        episodes = int(rng.integers(1, 5))
        space = make(config).action_space
        self.worlds.World.shown.clear()

        def predict(observation: Any, state: Any, start: np.ndarray, deterministic: bool) -> Any:
            actions = np.stack([np.asarray(space.sample()) for _ in start])
            return actions, SimpleNamespace(sound=torch.ones(len(start), dtype=torch.bool))

        agent: Any = SimpleNamespace(device=torch.device("cpu"), predict=predict)
        result = evaluate(agent, config, episodes, 1)
        first = {world.log[0].seed: world for world in self.worlds.World.shown if world.log}
        world = next(iter(first.values()))
        assert len(result.returns) == episodes and bool(result.faults) <= bool(world.breaks)
        self.counts["evaluated"] += 1
        if world.breaks:
            return
        played = [first[seed] for seed in evaluation_seeds(episodes, 1)]
        for each, total, length in zip(played, result.returns, result.lengths, strict=True):
            rows = expected([each.log], config.action_repeat, config.time_limit)
            end = next(at for at, row in enumerate(rows) if row.last)
            assert length == end
            np.testing.assert_allclose(total, sum(row.reward for row in rows[: end + 1]), rtol=1e-9, atol=1e-9)
        told = [self.success(each) for each in played]
        assert list(result.successes) == [success for success in told if success is not None]

    def success(self, world: Any) -> bool | None:
        """What the first episode says of itself in its last step; nothing where a time limit ended it before."""
        for event in world.log:
            if event.terminated or event.truncated:
                return event.success
            if event.action is None and event is not world.log[0]:
                return None
        return None

    def report(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))


def test_a_hundred_environments_are_recorded_right_or_refused(worlds: Any) -> None:
    fuzz = Fuzz(worlds, long=False)
    for number in range(QUICK):
        fuzz.check(number)
    assert fuzz.counts["recorded"] > QUICK / 2 and fuzz.counts["refused"] and fuzz.counts["evaluated"]


@pytest.mark.slow
def test_fuzz_env_two_thousand_environments(worlds: Any) -> None:
    fuzz = Fuzz(worlds, long=True)
    for number in range(SLOW):
        fuzz.check(number)
    print(f"\n{SLOW} environments: {fuzz.report()}")
