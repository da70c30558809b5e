"""The sequence replay stores what it is given, forgets the oldest, and samples every stored step alike."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.diagnostics.windows import cut
from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch, TimeStep, join

OBS = {"x": ObservationSpec((1,)), "k": ObservationSpec((), classes=(7,), start=(0,))}
ACTION = ActionSpec((1,), low=(-1.0,), high=(1.0,))
EPISODE = 4  # rows


def add(replay: SequenceReplay, env: int, rows: int) -> None:
    """Append rows to one stream: x = 1000 env + index of the row, in episodes of `EPISODE` rows."""
    for _ in range(rows):
        index = int(replay.written[env])
        obs = {"x": np.array([[1000 * env + index]], np.float32), "k": np.array([[index % 7]])}
        first, last = np.array([index % EPISODE == 0]), np.array([index % EPISODE == EPISODE - 1])
        control = np.where(first, 0, index)[:, None].astype(np.float32)
        replay.add(TimeStep(obs, control, control[:, 0] / 2, first, last, last), np.array([env]))


def resident() -> int:
    """Bytes of memory that this process has now, where the system tells."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * mmap.PAGESIZE if file.is_file() else 0


def filled(rows: tuple[int, ...], capacity: int = 60) -> SequenceReplay:
    replay = SequenceReplay(OBS, ACTION, len(rows), capacity)
    for env, count in enumerate(rows):
        add(replay, env, count)
    return replay


class Enumerate:
    """In place of the random generator: every start once."""

    def integers(self, high: int, size: int) -> np.ndarray:
        assert size == high
        return np.arange(high)


def every_window(replay: SequenceReplay, window: int) -> Batch:
    replay.sampler.rng = Enumerate()  # type: ignore[assignment]
    return replay.sample(len(replay), window)


def stored(env: int, rows: int, length: int) -> set[int]:
    return {1000 * env + index for index in range(max(rows - length, 0), rows)}


@pytest.mark.parametrize("rows", [(5,), (20, 20, 20), (3, 50, 0), (21, 1, 47)])
@pytest.mark.parametrize("window", [1, 6, 30])
def test_every_stored_step_is_in_as_many_windows(rows: tuple[int, ...], window: int) -> None:
    """Exact: with every start equally likely, a step's chance is its number of places over all windows."""
    replay = filled(rows)
    batch = every_window(replay, window)
    values, counts = batch.obs["x"].flatten().unique(return_counts=True)
    expected = set().union(*(stored(env, count, replay.length) for env, count in enumerate(rows)))
    assert set(values.int().tolist()) == expected
    assert (counts == window).all() and len(expected) == len(replay)


@pytest.mark.parametrize("rows", [(7, 9, 3), (33, 20, 100)])
def test_windows_are_consecutive_except_at_seams(rows: tuple[int, ...]) -> None:
    replay = filled(rows)
    batch = every_window(replay, 25)
    x = batch.obs["x"][..., 0]
    assert ((x // 1000) == (x[:, :1] // 1000)).all()
    follows = x[:, 1:] == x[:, :-1] + 1
    env = (x // 1000).long()
    oldest = torch.tensor([1000 * e + max(count - replay.length, 0) for e, count in enumerate(rows)])[env]
    assert torch.equal(follows, (x != oldest)[:, 1:])  # a window goes on, or starts over at the oldest
    index = (x % 1000).long()
    assert torch.equal(batch.is_first, (index % EPISODE == 0) | (x == oldest))
    assert torch.equal(batch.is_terminal, index % EPISODE == EPISODE - 1)
    assert torch.equal(batch.is_last, batch.is_terminal)
    acted = ~batch.is_first
    assert torch.equal(batch.prev_action[..., 0], torch.where(acted, index, 0).float())
    assert torch.equal(batch.reward, torch.where(acted, index, 0) / 2)
    assert torch.equal(batch.obs["k"][..., 0], index % 7)
    assert batch.mask.all()


def test_oldest_steps_are_forgotten_first() -> None:
    replay = filled((25, 10), capacity=20)
    assert len(replay) == 20
    assert replay.stream(0).obs["x"].flatten().tolist() == list(range(15, 25))
    assert replay.stream(1).obs["x"].flatten().tolist() == list(range(1000, 1010))


def test_a_step_of_several_environments_at_once() -> None:
    replay = SequenceReplay(OBS, ACTION, 3, 30)
    obs = {"x": np.array([[1.0], [2.0]], np.float32), "k": np.array([[1], [2]])}
    flags = np.array([True, False])
    replay.add(
        TimeStep(obs, np.ones((2, 1), np.float32), np.ones(2, np.float32), flags, ~flags, flags), np.array([2, 0])
    )
    assert replay.stream(2).obs["x"].tolist() == [[[1.0]]]
    assert replay.stream(0).is_last.tolist() == [[True]]
    assert replay.stream(1).reward.shape == (1, 0)


def test_shapes_and_types() -> None:
    batch = filled((9, 9)).sample(4, 5)
    assert batch.obs["x"].shape == (4, 5, 1) and batch.obs["x"].dtype == torch.float32
    assert batch.obs["k"].shape == (4, 5, 1) and batch.obs["k"].dtype == torch.int64
    assert batch.prev_action.shape == (4, 5, 1)
    for field in (batch.is_first, batch.is_last, batch.is_terminal):
        assert field.shape == (4, 5) and field.dtype == torch.bool
    assert batch.reward.shape == batch.mask.shape == (4, 5)


def test_same_seed_samples_the_same() -> None:
    first, second = (filled((20, 20)).sample(8, 5).obs["x"] for _ in range(2))
    assert torch.equal(first, second)


def content(replay: SequenceReplay, env: int) -> list[float]:
    return replay.stream(env).obs["x"].flatten().tolist()


@pytest.mark.parametrize("rows", [(7, 3), (45, 12)])
@pytest.mark.parametrize("capacity", [20, 40, 60])
def test_save_and_load(rows: tuple[int, ...], capacity: int, tmp_path: Path) -> None:
    """A replay of another size keeps what it can; all go on from there."""
    replay, copy = filled(rows, capacity=40), SequenceReplay(OBS, ACTION, 2, capacity)
    replay.save(str(tmp_path / "replay.npz"))
    copy.load(tmp_path / "replay.npz")
    for env in range(2):
        assert content(copy, env) == content(replay, env)[-capacity // 2 :]
        ours, theirs = replay.stream(env), copy.stream(env)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert torch.equal(a[:, -len(content(copy, env)) :][:, 1:], b[:, 1:])
        before = content(copy, env)
        add(copy, env, 1)
        assert content(copy, env)[:-1] in (before, before[1:])


@pytest.mark.parametrize(
    "other",
    [
        lambda: SequenceReplay(OBS, ACTION, 3, 40),
        lambda: SequenceReplay(OBS | {"y": ObservationSpec((1,))}, ACTION, 2, 40),
        lambda: SequenceReplay(OBS, ActionSpec((), classes=(3,)), 2, 40),
    ],
    ids=["environments", "observations", "actions"],
)
def test_load_of_another_replay_is_refused(other: Any, tmp_path: Path) -> None:
    filled((45, 12), capacity=40).save(tmp_path / "replay.npz")
    with pytest.raises(ValueError, match="replay"):
        other().load(tmp_path / "replay.npz")


@pytest.mark.parametrize("rows", [(7, 9, 3), (33, 20, 100), (0, 2, 0)])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
def test_windows_within_episodes_are_those_cut_from_the_streams(rows: tuple[int, ...], window: int) -> None:
    replay = filled(rows)
    found = replay.gather(replay.within_episodes(window))
    expected = join([cut(replay.stream(env), window, window) for env in range(len(rows))], 0)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.shape == theirs.shape and torch.equal(ours, theirs)
    assert torch.equal(found.obs["x"], expected.obs["x"]) and (len(found.mask) > 0) == (
        window <= max(rows) and window < 5
    )


def test_everything_is_one_stream_after_the_other() -> None:
    replay = filled((33, 0, 7))
    whole, streams = replay.everything(), join([replay.stream(env) for env in range(3)], 1)
    assert torch.equal(whole.obs["x"], streams.obs["x"]) and torch.equal(whole.reward, streams.reward)
    assert torch.equal(whole.is_first, streams.is_first)
    some = replay.everything(["k"], 3)
    assert set(some.obs) == {"k"} and torch.equal(some.obs["k"], whole.obs["k"][:, ::3])
    assert torch.equal(some.prev_action, whole.prev_action[:, ::3])


def test_errors() -> None:
    with pytest.raises(ValueError, match="capacity is 2, but there are 3 environments"):
        SequenceReplay(OBS, ACTION, 3, 2)
    with pytest.raises(ValueError, match="environments is 0"):
        SequenceReplay(OBS, ACTION, 0, 10)
    with pytest.raises(ValueError, match="empty"):
        SequenceReplay(OBS, ACTION, 1, 10).sample(1, 1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"obs": {"x": np.zeros((1, 1), np.float32)}}, r"obs/k is missing$"),
        (
            {"obs": {"x": np.zeros((1, 1)), "k": np.zeros((1, 1)), "y": np.zeros((1, 1))}},
            r"obs/y is not a column of the replay$",
        ),
        (
            {"obs": {"x": np.zeros((1, 3), np.float32), "k": np.zeros((1, 1), np.int64)}},
            r"obs/x has the shape \(1, 3\) instead of \(1, 1\)$",
        ),
        ({"prev_action": np.zeros(1, np.float32)}, r"prev_action has the shape \(1,\) instead of \(1, 1\)$"),
        ({"reward": np.float32(0)}, r"reward has the shape \(\) instead of \(1,\)$"),
    ],
    ids=["missing", "unknown", "wide", "flat", "scalar"],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_has_changed(wrong: dict[str, Any], told: str) -> None:
    """Not broadcast, and no column keeps what another lap has left there."""
    replay = filled((12,), capacity=8)
    before, row = replay.everything(), np.zeros(1, np.float32)
    obs = {"x": np.zeros((1, 1), np.float32), "k": np.zeros((1, 1), np.int64)}
    rows = TimeStep(obs, row[:, None], row, row > 0, row > 0, row > 0)
    with pytest.raises(ValueError, match=told):
        replay.add(rows._replace(**wrong), np.array([0]))
    after = replay.everything()
    assert replay.written.tolist() == [12] and torch.equal(after.obs["x"], before.obs["x"])
    replay.add(rows, np.array([0]))
    assert replay.written.tolist() == [13]


# The queue of new windows, and stored latent states.


def test_the_queue_hands_out_every_new_window_once_before_others() -> None:
    replay = SequenceReplay(OBS, ACTION, 2, 60, online=True)
    add(replay, 0, 7)
    add(replay, 1, 11)
    batch = replay.sample(5, 3)
    begins = batch.obs["x"][:, 0, 0].tolist()
    assert begins[:5] == [0, 1000, 3, 1003, 1006]
    assert torch.equal(batch.obs["x"][:, :, 0], batch.obs["x"][:, :1, 0] + torch.arange(3))
    assert replay.sample(8, 3).obs["x"].shape == (8, 3, 1)  # what has been handed out comes by chance alone
    assert replay.sampler.served.tolist() == [6, 9]
    add(replay, 0, 2)
    assert replay.sample(2, 3).obs["x"][0, :, 0].tolist() == [6, 7, 8]


def test_the_queue_leaves_no_environment_waiting() -> None:
    """Where as many windows come as are handed out."""
    replay = SequenceReplay(OBS, ACTION, 2, 1000, online=True)
    for _ in range(50):
        for env in (0, 1):
            add(replay, env, 4)
        replay.sample(1, 4)
    assert replay.sampler.served.tolist() == [100, 100]


def test_what_it_remembers_of_few_steps_is_saved_with_all(tmp_path: Path) -> None:
    """Also where memory for the others has not been taken yet."""
    replay = filled((3000, 5), capacity=8000)
    places = replay.rest_of_episode(1000)
    values = replay.gather(places).obs["x"]
    replay.remember(places, values)
    again = filled((3000, 5), capacity=8000)
    assert again.load_training_state(replay.training_state())
    assert int(again.latents.known.sum()) == int(replay.latents.known.sum()) == places.env.shape[1]
    after = replay.rest_of_episode(1001)
    latent, known = again.context(after) or (torch.empty(0), torch.empty(0))
    assert bool(known) and float(latent) == float(values[0, 0])


def test_nothing_is_cut_where_nothing_is_stored() -> None:
    replay = filled((0, 5))
    replay.cut(np.array([0, 1]))
    assert replay.stream(1).is_last[0].tolist() == [False, False, False, True, True] and not len(
        replay.stream(0).reward[0]
    )


def test_the_queue_takes_what_fits_and_forgets_what_the_ring_forgets() -> None:
    replay = SequenceReplay(OBS, ACTION, 1, 10, online=True)
    add(replay, 0, 6)
    assert replay.sample(1, 2).obs["x"][0, :, 0].tolist() == [0, 1]
    assert replay.sample(1, 2).obs["x"][0, :, 0].tolist() == [2, 3]
    add(replay, 0, 14)  # of which the ring keeps 10 to 19
    begins = replay.sample(5, 2).obs["x"][:, 0, 0].tolist()
    assert begins == [10, 12, 14, 16, 18]


def test_windows_begin_from_what_was_stored_of_the_step_before() -> None:
    replay = filled((20, 9), capacity=24)  # of the first ring, steps 8 to 19
    assert replay.context(replay.draw(4, 3)) is None
    places = replay.draw(64, 5)
    values = torch.from_numpy(replay.gather(places).obs["x"].numpy())  # the latent of a step is its own number
    replay.remember(places, values)
    later = replay.draw(200, 4)
    stored = replay.context(later)
    assert stored is not None
    latent, known = stored
    batch = replay.gather(later)
    seen = set(values.flatten().tolist())
    for row in range(200):
        now = float(batch.obs["x"][row, 0, 0])
        assert bool(known[row]) == (now not in (8, 1000) and now - 1 in seen)
        if known[row]:
            assert float(latent[row, 0]) == now - 1
    assert known.any() and not known.all()


def test_a_new_step_is_not_taken_for_the_one_it_replaced() -> None:
    replay = filled((6,), capacity=6)
    places = replay.draw(64, 6)
    replay.remember(places, torch.ones(64, 6, 2))
    assert replay.latents.known.all()
    add(replay, 0, 1)
    assert replay.latents.known.sum() == 5
    replay.remember(replay.newest(), torch.full((1, 1, 2), 7.0))
    assert replay.latents.array is not None and replay.latents.array[0, 0].tolist() == [
        7,
        7,
    ]  # step 6 lies where step 0 lay
    assert replay.latents.known.all()


def test_latent_states_take_room_only_as_steps_are_stored() -> None:
    """A ring of five million wide states would not fit into memory; what is stored of it does."""
    replay = SequenceReplay(OBS, ACTION, 1, 5_000_000)
    before = resident()
    for count in (1, 1100, 2000):
        add(replay, 0, count)
        replay.remember(replay.newest(), torch.full((1, 1, 2560), float(count)))
    assert resident() - before < 5e6 and replay.latents.array is not None
    assert [float(replay.latents.array[0, slot, 0]) for slot in (0, 1100, 3100)] == [1, 1100, 2000]
    latent, known = replay.context(replay.timeline.places(np.zeros((1, 1), int), np.array([[1101]])))  # type: ignore[misc]
    assert known.all() and bool((latent == 1100).all())


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e6])
def test_latent_states_that_are_not_finite_are_not_remembered(broken: float) -> None:
    """Nor those that are not as float16: a window that began from them would spread it."""
    replay = filled((6,), capacity=6)
    replay.remember(replay.draw(64, 6), torch.ones(64, 6, 2))
    newest = replay.newest()
    replay.remember(newest, torch.tensor([[[1.0, broken]]]))
    assert replay.latents.known.sum() == 5 and not replay.latents.known[newest.env, newest.slot].any()
