"""The model as an environment: against true dynamics, against Gymnasium's own checks, in every autoreset mode."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldmodel import ModelConfig, SequenceReplay, WorldModel
from worldmodel.envs import RecordTrajectories, action_spec, observation_specs
from worldmodel.envs.imagined.starts import PriorStarts, ReplayedStarts
from worldmodel.envs.imagined.vector import ImaginedEnv, ImaginedVectorEnv, decoded
from worldmodel.envs.rendering.charts import SIZE, chart
from worldmodel.envs.testing.exact import ExactCartPole, ExactPendulum, ExactState
from worldmodel.specs import ActionSpec, ObservationSpec

TORQUE = spaces.Box(-2, 2, (1,), np.float32)
PUSH = spaces.Discrete(2)
DICT = spaces.Dict(
    {
        "x": spaces.Box(-1, 1, (2,), np.float64),
        "k": spaces.Discrete(3, start=5),
        "on": spaces.MultiBinary(2),
    }
)


def hanging(count: int) -> ExactState:
    """The pendulum at rest, at angles 0, 0.1, 0.2, ..."""
    angle = 0.1 * torch.arange(count)
    x = torch.stack([angle, torch.zeros(count)], -1)
    return ExactState(x, torch.zeros(count, 1), torch.ones(count, 1))


def upright(count: int) -> ExactState:
    return ExactState(torch.zeros(count, 4), torch.zeros(count, 1), torch.ones(count, 1))


def untrained() -> WorldModel:
    torch.manual_seed(0)
    specs = observation_specs(DICT)
    return WorldModel.build(ModelConfig(hidden=16, continuation=False), specs, action_spec(TORQUE))


def untrained_with_replay() -> tuple[WorldModel, SequenceReplay]:
    """Random steps of CartPole."""
    specs, control = {"observation": ObservationSpec((4,))}, ActionSpec((), classes=(2,), start=(0,))
    replay = SequenceReplay(specs, control, 2, 500)
    real = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    recorded = RecordTrajectories(real, replay.add)
    recorded.reset(seed=0)
    recorded.action_space.seed(0)
    for _ in range(200):
        recorded.step(recorded.action_space.sample())
    torch.manual_seed(0)
    model = WorldModel.build(ModelConfig(hidden=16), specs, control)
    model.fit_normalizers(replay.everything())
    return model, replay


def test_imagined_steps_are_those_of_the_world() -> None:
    """With the true dynamics: the rewards and states of `Pendulum-v1`, for all episodes at once."""
    envs = ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 5, horizon=30)
    observation, _ = envs.reset(seed=0)
    worlds = [gym.make("Pendulum-v1").unwrapped for _ in range(5)]
    for world, angle in zip(worlds, observation[:, 0], strict=True):
        world.reset()
        world.state = np.array([angle, 0.0])  # type: ignore[attr-defined]
    actions = np.random.default_rng(0).uniform(-2, 2, (20, 5, 1)).astype(np.float32)
    for step in actions:
        observation, reward, terminated, truncated, _ = envs.step(step)
        for k, world in enumerate(worlds):
            _, expected, *_ = world.step(step[k])
            assert reward[k] == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
            np.testing.assert_allclose(observation[k, :2], world.state, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]
        assert not terminated.any() and not truncated.any()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_ends_are_reset_as_gymnasium_resets_them(mode: AutoresetMode) -> None:
    """Beside `SyncVectorEnv` in the same mode: the pole falls, the horizon truncates, what follows is the same."""
    envs = ImaginedVectorEnv(ExactCartPole(), PUSH, upright, 2, horizon=12, autoreset_mode=mode)

    class Fallen(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            self.env.reset(**kwargs)
            self.unwrapped.state = np.zeros(4)  # type: ignore[attr-defined]
            return np.zeros(4, np.float32), {}

    real = SyncVectorEnv(
        [lambda: Fallen(gym.make("CartPole-v1", max_episode_steps=12)) for _ in range(2)], autoreset_mode=mode
    )
    first, _ = envs.reset(seed=0)
    np.testing.assert_allclose(first[:, :4], real.reset(seed=0)[0], atol=1e-6)
    over = 0
    for step in range(40):
        actions = np.array([1, step % 2])  # one falls, one does not
        ours, truth = envs.step(actions), real.step(actions)
        for mine, theirs in zip(ours[1:4], truth[1:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_allclose(ours[0][:, :4], truth[0], atol=1e-4)
        ended = ours[2] | ours[3]
        over += int(ended.sum())
        if mode == AutoresetMode.SAME_STEP and ended.any():
            np.testing.assert_array_equal(ours[4]["_final_obs"], truth[4]["_final_obs"])
            for env in np.flatnonzero(ended):
                np.testing.assert_allclose(ours[4]["final_obs"][env][:4], truth[4]["final_obs"][env], atol=1e-4)
        if mode == AutoresetMode.DISABLED and ended.any():
            with pytest.raises(RuntimeError, match="have ended"):
                envs.step(actions)
            for each in (envs, real):
                each.reset(options={"reset_mask": ended.copy()})
    assert over >= 6


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_a_decoded_integer_is_the_nearest_one_in_the_space(dtype: Any) -> None:
    mean = np.array([[3.9, 0.4, 1.5, 9.2, -4.0, 6.51]], np.float32)
    found = decoded(ObservationSpec((2, 3)), spaces.Box(0, 7, (2, 3), dtype), mean)
    assert found.dtype == dtype and found.tolist() == [[[4, 0, 2], [7, 0, 7]]]


def test_a_decoded_integer_stays_in_a_space_as_wide_as_its_dtype() -> None:
    for dtype in (np.int8, np.int64, np.uint64):
        bounds = np.iinfo(dtype)
        space = spaces.Box(bounds.min, bounds.max, (3,), dtype)
        low, middle, high = decoded(ObservationSpec((3,)), space, np.array([[-1e30, -2.6, 1e30]], np.float32))[0]
        assert low == bounds.min and middle == max(-3, bounds.min)
        assert high > 0.99 * bounds.max and space.contains(np.array([low, middle, high], dtype))


def test_the_same_seed_gives_the_same_episodes_and_leaves_torch_alone() -> None:
    model = untrained()

    def run(seed: int | list[int]) -> np.ndarray:
        envs = ImaginedVectorEnv(model, TORQUE, PriorStarts(model, 1), 3, horizon=4)
        seen = [envs.reset(seed=seed)[0]]
        for _ in range(10):
            seen.append(envs.step(np.zeros((3, 1), np.float32))[0])
        return np.stack(seen)

    torch.manual_seed(5)
    first = run(1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    np.testing.assert_array_equal(first, run(1))
    np.testing.assert_array_equal(run([1, 2, 3]), run([1, 2, 3]))
    assert not np.array_equal(first, run(2)) and not np.array_equal(run([1, 2, 3]), run([1, 2, 4]))


def test_an_episode_goes_on_with_the_probability_that_the_model_says() -> None:
    class Coin(ExactPendulum):
        discount = 0.9  # that the continuation holds, and no chance of an end

        def predict(self, feature: torch.Tensor, decode: bool = True) -> Any:
            return super().predict(feature, decode)._replace(cont=torch.full((len(feature),), 0.9 * 0.75))

    envs = ImaginedVectorEnv(Coin(), TORQUE, hanging, 4000)
    envs.reset(seed=0)
    *_, terminated, truncated, _ = envs.step(np.zeros((4000, 1), np.float32))
    assert terminated.mean() == pytest.approx(0.25, abs=0.04) and not truncated.any()


@pytest.mark.parametrize("observations", ["feature", DICT], ids=["feature", "decoded"])
def test_gymnasium_accepts_it(observations: Any) -> None:
    model = untrained()
    check_env(ImaginedEnv(model, TORQUE, PriorStarts(model, 1), 20, observations))
    envs = ImaginedVectorEnv(model, TORQUE, PriorStarts(model, 1), 3, 5, observations)
    counted = RecordEpisodeStatistics(envs)
    observation, _ = counted.reset(seed=0)
    for step in range(11):
        assert envs.observation_space.contains(observation) and envs.single_observation_space.contains(
            {k: v[0] for k, v in observation.items()} if isinstance(observation, dict) else observation[0]
        )
        observation, _, _, truncated, infos = counted.step(counted.action_space.sample())
        assert truncated.all() == (step % 5 == 4)
        if step % 5 == 4:
            assert infos["episode"]["l"].tolist() == [5, 5, 5]


def test_episodes_begin_from_recorded_states_that_something_can_follow() -> None:
    model, replay = untrained_with_replay()
    begin = ReplayedStarts(model, replay, pool=300)
    states = begin(250)
    assert len(states[0]) == 250 and len({tuple(row) for row in states[0].tolist()}) > 100
    assert begin.used == 250 and len(begin(100)[0]) == 100 and begin.used == 100  # a new pool
    begin.refresh()
    assert begin.states is None
    replay.storage.array("is_terminal")[:] = True
    with pytest.raises(ValueError, match="every recorded step is terminal"):
        begin(3)


def test_what_cannot_be_is_named() -> None:
    model = ExactPendulum()
    with pytest.raises(ValueError, match="at least 1, got 0 and 50"):
        ImaginedVectorEnv(model, TORQUE, hanging, 0)
    with pytest.raises(
        ValueError, match=r"has the widths {'k': 3, 'on': 2, 'x': 2}, but the model decodes {'observation': 2}"
    ):
        ImaginedVectorEnv(model, TORQUE, hanging, 1, observations=DICT)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
        ImaginedVectorEnv(model, TORQUE, hanging, 1).step(np.zeros((1, 1)))


def test_what_is_rendered_is_what_was_decoded_since_each_episode_began() -> None:
    envs = ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 3, horizon=4, render_mode="rgb_array")
    assert envs.render() is None
    begun, _ = envs.reset(seed=0)
    seen = [begun]
    for _ in range(2):
        seen.append(envs.step(np.full((3, 1), 2.0, np.float32))[0])
    assert envs.screen is not None
    np.testing.assert_allclose(np.stack(envs.screen.trace), np.stack(seen)[:, :, :2])
    frames = envs.render()
    assert frames is not None and len(frames) == 3 and frames[0].shape == (*SIZE, 3) and frames[0].dtype == np.uint8
    assert (frames[1] != frames[0]).any()
    for _ in range(2):
        envs.step(np.zeros((3, 1), np.float32))  # the horizon: all begin anew
    np.testing.assert_allclose(envs.screen.trace, [begun[:, :2]])
    assert ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 3).render() is None
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array' or None, got 'human'"):
        ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 3, render_mode="human")


def test_a_line_of_a_chart_goes_from_the_lower_to_the_upper_edge() -> None:
    trace = np.array([[0.0], [1.0], [2.0], [np.nan]])
    frame = chart(trace, np.zeros(1), np.full(1, 2.0))
    rows, columns = np.nonzero((frame == (31, 119, 180)).all(-1))
    assert rows[columns.argmin()] > SIZE[0] - 20 and rows[columns.argmax()] < 20
    assert columns.max() < SIZE[1] * 0.75  # what is not known is not drawn


def test_a_constant_is_drawn_in_the_middle_and_what_is_not_one_off_it() -> None:
    low = high = np.array([3.0])
    for values, rows in ((3.0, SIZE[0] / 2), (3.25, SIZE[0] / 2 - (SIZE[0] - 16) / 4)):
        frame = chart(np.full((5, 1), values), low, high)
        drawn, _ = np.nonzero((frame == (31, 119, 180)).all(-1))
        assert np.median(drawn) == pytest.approx(rows, abs=1.5)


def test_indices_stand_over_several_lines() -> None:
    flat = np.zeros((5, 3))
    top = chart(flat, flat[0] - 1, flat[0] + 3)[9:40]  # the lines are far below
    for colour in ((31, 119, 180), (214, 39, 40), (44, 160, 44)):
        assert (np.abs(top.astype(int) - colour).sum(-1) < 60).any()
    alone = chart(flat[:, :1], flat[0, :1] - 1, flat[0, :1] + 3)[9:40]
    assert (alone[:, 9:-9] == 255).all()


def test_a_decoded_image_is_rendered_as_it_is_seen() -> None:
    eye = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    torch.manual_seed(0)
    model = WorldModel.build(ModelConfig(hidden=8, image_depth=2), observation_specs(eye), action_spec(TORQUE))
    for observations in (eye, "feature"):
        envs = ImaginedVectorEnv(
            model, TORQUE, PriorStarts(model, 1), 2, 5, observations, render_mode="rgb_array", rendered=eye
        )
        first, _ = envs.reset(seed=0)
        frames = envs.render()
        assert frames is not None and frames[0].shape == (96, 96, 3)
        if observations is eye:
            np.testing.assert_array_equal(frames[1][::6, ::6], first[1])


@pytest.mark.parametrize(
    "asked",
    [
        {"observations": spaces.Box(0, 255, (16, 16, 3), np.uint8)},
        {"render_mode": "rgb_array", "rendered": spaces.Box(0, 255, (16, 16, 3), np.uint8)},
        {"render_mode": "rgb_array"},
    ],
)
def test_images_without_a_decoder_are_dreamt_of_but_not_shown(asked: dict[str, Any]) -> None:
    eye = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    config = ModelConfig(hidden=8, image_depth=2, images="redundancy")
    model = WorldModel.build(config, observation_specs(eye), action_spec(TORQUE))
    begin = PriorStarts(model, 1)
    with pytest.raises(
        ValueError, match=r"decodes \[\], but not the images .*observations='feature' and no render_mode"
    ):
        ImaginedVectorEnv(model, TORQUE, begin, 2, **asked)
    seen, _ = ImaginedVectorEnv(model, TORQUE, begin, 2).reset(seed=0)
    assert seen.shape == (2, model.feature_size)


def test_recorded_starts_depend_on_the_seed_alone_and_leave_the_replay_as_it_is() -> None:
    model, replay = untrained_with_replay()
    before = replay.sampler.rng.bit_generator.state
    check_env(ImaginedEnv(model, PUSH, ReplayedStarts(model, replay), 20), skip_render_check=True)
    envs = [ImaginedVectorEnv(model, PUSH, ReplayedStarts(model, replay, pool=20), 4, 3) for _ in range(2)]

    def walk(env: ImaginedVectorEnv) -> list[np.ndarray]:
        return [env.reset(seed=3)[0], *(env.step(np.array([0, 1, 1, 0]))[0] for _ in range(20))]

    one, again, other = walk(envs[0]), walk(envs[0]), walk(envs[1])
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, other)
    assert replay.sampler.rng.bit_generator.state == before


def test_without_a_seed_no_two_dreams_are_the_same() -> None:
    model = untrained()
    one, two = (ImaginedVectorEnv(model, TORQUE, PriorStarts(model, 1), 3).reset()[0] for _ in range(2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": "decoded"}, "observations must be 'feature' or a space, got 'decoded'"),
        ({"observations": spaces.Box(-1, 1, (5,))}, "has the widths .*5.*, but the model decodes"),
        ({"action_space": spaces.Box(-1, 1, (2,))}, "does not accept actions of width 2"),
        ({"num_envs": 0}, "num_envs and horizon must be at least 1"),
    ],
)
def test_what_is_not_the_models_is_refused(changes: dict[str, Any], message: str) -> None:
    model = untrained()
    given = {"model": model, "action_space": TORQUE, "begin": PriorStarts(model, 1), "num_envs": 2, **changes}
    with pytest.raises(ValueError, match=message):
        ImaginedVectorEnv(**given)


@pytest.mark.parametrize("wrong", [np.zeros((3, 1)), np.full((2, 1), np.nan)])
def test_actions_that_are_none_are_refused(wrong: np.ndarray) -> None:
    envs = ImaginedVectorEnv(ExactPendulum(), TORQUE, hanging, 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions"):
        envs.step(wrong)
    poles = ImaginedVectorEnv(ExactCartPole(), PUSH, upright, 2)
    poles.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        poles.step(np.array([0, -1]))
