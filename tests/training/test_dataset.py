"""Rows, borders, windows, padding, parts and units of recorded sequences."""

import numpy as np
import pytest
import torch

from worldmodel.specs import ObservationSpec
from worldmodel.training.data.dataset import Dataset, control_normalizer, matching, recorded
from worldmodel.training.data.split import apportioned, split

LENGTHS = (5, 9, 3)


def rows(sequence: int, length: int) -> dict[str, np.ndarray]:
    """Observations that say where they belong: (sequence, t)."""
    return {"x": np.stack([np.full(length, sequence), np.arange(length)], 1).astype(np.float32)}


def dataset(lengths: tuple[int, ...] = LENGTHS, width: int = 1) -> Dataset:
    """Sequences whose control u_{t-1} is 10 sequence + t at every t but the first."""
    sequences = [
        recorded(rows(s, n), np.repeat(10.0 * s + np.arange(n)[:, None], width, 1), np.full(n, 7.0))
        for s, n in enumerate(lengths)
    ]
    return Dataset.of({"x": ObservationSpec((2,))}, sequences, [f"sequence {s}" for s in range(len(lengths))])


def test_a_sequence_begins_with_a_reset() -> None:
    batch = recorded(rows(0, 4), np.ones((4, 2)), np.ones(4), np.array([False, False, False, True]))
    assert batch.prev_action[0].tolist() == [[0, 0]] + [[1, 1]] * 3
    assert batch.reward[0].tolist() == [0, 1, 1, 1]
    assert batch.is_first[0].tolist() == [True, False, False, False]
    assert batch.is_last[0].tolist() == batch.is_terminal[0].tolist() == [False, False, False, True]
    assert batch.mask.sum() == 4


def test_windows_are_whole_and_stay_within_their_sequence() -> None:
    batch = dataset((5, 9, 4)).windows(500, 4, np.random.default_rng(0))
    sequence, time = batch.obs["x"].unbind(-1)
    assert time.shape == (500, 4)
    assert (sequence == sequence[:, :1]).all() and (time.diff(dim=1) == 1).all()
    assert torch.equal(batch.is_first, time == 0)
    expected = torch.where(time == 0, 0, 10 * sequence + time)
    assert torch.equal(batch.prev_action.squeeze(-1), expected) and (batch.mask == 1).all()


def test_rows_near_a_border_are_drawn_as_often_as_those_in_the_middle() -> None:
    batch = dataset((30,)).windows(20_000, 6, np.random.default_rng(0))
    drawn = np.bincount(batch.obs["x"][..., 1].flatten().int().numpy(), minlength=30)
    middle = drawn[10:20].mean()
    assert (drawn > 0.9 * middle).all()
    assert np.abs(drawn[10:20] / middle - 1).max() < 0.1


def test_a_window_as_long_as_the_sequence() -> None:
    batch = dataset((4,)).windows(3, 4, np.random.default_rng(0))
    assert batch.obs["x"][..., 1].tolist() == [[0, 1, 2, 3]] * 3


def test_longer_sequences_give_more_windows() -> None:
    batch = dataset((40, 10)).windows(4000, 5, np.random.default_rng(0))
    share = (batch.obs["x"][:, 0, 0] == 0).float().mean()
    assert share == pytest.approx(44 / 58, abs=0.03)


def test_padding_is_masked_and_carries_nothing() -> None:
    batch = dataset().padded([2, 1])
    assert batch.mask.tolist() == [[1] * 3 + [0] * 6, [1] * 9]
    assert batch.is_first.tolist() == [[True, False, False] + [True] * 6, [True] + [False] * 8]
    assert batch.is_last.tolist() == [[False, False, True] + [False] * 6, [False] * 8 + [True]]
    assert batch.prev_action[0, :, 0].tolist() == [0, 21, 22] + [0] * 6
    assert batch.reward[0].tolist() == [0, 7, 7] + [0] * 6
    assert batch.obs["x"][0, :3].tolist() == [[2, 0], [2, 1], [2, 2]]
    assert batch.obs["x"].isfinite().all()


def test_a_part_of_a_sequence_is_a_sequence() -> None:
    part = dataset().part(1, 3, 6)
    assert part.obs["x"][0, :, 1].tolist() == [3, 4, 5]
    assert part.is_first[0].tolist() == [True, False, False] and part.is_last[0].tolist() == [False, False, True]
    assert part.prev_action[0, :, 0].tolist() == [0, 14, 15] and part.reward[0].tolist() == [0, 7, 7]


def test_everything_is_all_rows() -> None:
    everything = dataset().everything()
    assert everything.mask.shape == (1, sum(LENGTHS)) and everything.is_first.sum() == 3


# -------------------------------------------------------------------------------------------------- units


def test_controls_are_standardised_and_null_ones_stay_null() -> None:
    ours = dataset()
    units = control_normalizer(ours)
    rows = ours.normalized(units).everything()
    given = rows.prev_action[~rows.is_first]
    assert given.mean().item() == pytest.approx(0, abs=1e-5)
    assert given.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (rows.prev_action[rows.is_first] == 0).all()
    raw = [10 * s + t for s, n in enumerate(LENGTHS) for t in range(1, n)]
    other = dataset((4,)).normalized(units).everything().prev_action[0, 1:, 0]
    np.testing.assert_allclose(other, (np.array([1, 2, 3]) - np.mean(raw)) / np.std(raw), rtol=1e-5)


def test_controls_of_an_environment_keep_their_unit() -> None:
    ours = Dataset.of(dataset().obs_specs, [dataset().part(1)], ["one"], from_env=True)
    assert torch.equal(
        ours.normalized(control_normalizer(ours)).everything().prev_action, ours.everything().prev_action
    )


@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1)])
def test_no_controls_have_no_units(lengths: tuple[int, ...]) -> None:
    ours = dataset(lengths, width=0)
    assert ours.control_width == 0
    assert ours.normalized(control_normalizer(ours)).padded([0]).prev_action.shape == (1, lengths[0], 0)


# -------------------------------------------------------------------------------------------------- parts


SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def origins(part: Dataset) -> set[int]:
    return set(part.everything().obs["x"][0, :, 0].int().tolist())


def test_sequences_go_to_one_part_each() -> None:
    ours = dataset((2, 3, 4) * 10)
    parts = split(ours, SHARES, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 24, "validation": 3, "test": 3}
    found = [origins(part) for part in parts.values()]
    assert set.union(*found) == set(range(30)) and sum(map(len, found)) == 30
    for part in parts.values():
        assert [part.names[i] for i in range(len(part))] == [f"sequence {s}" for s in sorted(origins(part))]


def test_a_seed_decides_which() -> None:
    ours = dataset((2,) * 30)
    first, again, other = (origins(split(ours, SHARES, seed)["test"]) for seed in (1, 1, 2))
    assert first == again != other


def test_one_sequence_is_cut_into_blocks_of_time() -> None:
    parts = split(dataset((20,)), SHARES, seed=0)
    times = {name: part.everything().obs["x"][0, :, 1].int().tolist() for name, part in parts.items()}
    assert times == {"train": list(range(16)), "validation": [16, 17], "test": [18, 19]}
    assert all(part.everything().is_first[0, 0] and part.everything().prev_action[0, 0] == 0 for part in parts.values())
    assert parts["validation"].names == ["sequence 0, steps 17-18"]


def test_a_part_without_a_share_is_left_out() -> None:
    assert set(split(dataset(), {"train": 1, "validation": 1, "test": 0}, 0)) == {"train", "validation"}


@pytest.mark.parametrize("lengths", [(5, 6), (2,)])
def test_too_few_to_divide(lengths: tuple[int, ...]) -> None:
    what = "2 rows" if len(lengths) == 1 else "2 sequences"
    with pytest.raises(ValueError, match=rf"sequence 0: {what} cannot be divided into train, validation, test"):
        split(dataset(lengths), SHARES, 0)


@pytest.mark.parametrize(
    ("whole", "shares", "counts"),
    [(10, (8, 1, 1), [8, 1, 1]), (3, (8, 1, 1), [1, 1, 1]), (7, (1, 1), [4, 3]), (100, (0.001, 1), [1, 99])],
)
def test_shares(whole: int, shares: tuple[float, ...], counts: list[int]) -> None:
    assert apportioned(whole, np.array(shares, float)).tolist() == counts


# ----------------------------------------------------------------------------------------------- matching


def with_spec(spec: ObservationSpec, key: str = "y") -> Dataset:
    values = np.zeros((4, spec.width), spec.dtype)
    return Dataset.of({key: spec}, [recorded({key: values}, np.zeros((4, 1)))], ["theirs"])


def test_a_part_from_elsewhere_takes_the_names_of_the_training_data() -> None:
    found = matching(with_spec(ObservationSpec((2,))), dataset().obs_specs, dataset().control_width, "data.test")
    assert list(found.obs_specs) == list(found.rows.obs) == ["x"]


def test_fewer_classes_fit_into_more() -> None:
    train = with_spec(ObservationSpec((1,), (4,), (0,)))
    found = matching(with_spec(ObservationSpec((1,), (2,), (0,))), train.obs_specs, train.control_width, "data.test")
    assert found.obs_specs == train.obs_specs
    with pytest.raises(
        ValueError, match=r"data.test: theirs: 'y' has classes \(4,\), but the training data has \(2,\)"
    ):
        matching(train, with_spec(ObservationSpec((1,), (2,), (0,))).obs_specs, train.control_width, "data.test")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (with_spec(ObservationSpec((3,))), r"'y' \(3 values\), but the training data observes 'x' \(2 values\)"),
        (with_spec(ObservationSpec((2,), (3, 3), (0, 0))), r"'y' \(2 discrete values\)"),
        (dataset(width=2), "2 controls, but the training data has 1"),
    ],
)
def test_a_part_from_elsewhere_must_fit(other: Dataset, said: str) -> None:
    with pytest.raises(ValueError, match=rf"data.validation: .*{said}"):
        matching(other, dataset().obs_specs, dataset().control_width, "data.validation")


def test_parts_with_the_same_keys_in_another_order_are_matched_by_name() -> None:
    rows = {"a": np.zeros((4, 1), np.float32), "b": np.ones((4, 1), np.float32)}
    specs = {key: ObservationSpec((1,)) for key in rows}

    def of(order: str) -> Dataset:
        sequence = recorded({key: rows[key] for key in order}, np.zeros((4, 0), np.float32))
        return Dataset.of({key: specs[key] for key in order}, [sequence], [order])

    found = matching(of("ba"), of("ab").obs_specs, 0, "data.test")
    assert list(found.rows.obs) == ["a", "b"]
    assert float(found.rows.obs["a"].sum()) == 0 and float(found.rows.obs["b"].sum()) == 4
