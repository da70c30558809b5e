"""Windows of recordings are known again by what they hold."""

import pytest
import torch

from worldmodel.training.data.overlap import fingerprints, unseen


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_windows_are_known_by_all_of_their_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stream = {"a": torch.randint(0, 2, (1, 200, 3)).to(dtype), "b": torch.randint(0, 200, (1, 200, 1)).to(dtype)}
    known = fingerprints(stream, 5).ravel()
    assert known.shape == (196,) and len(set(known.tolist())) == 196
    windows = {key: torch.stack([value[0, i : i + 5] for i in (0, 77, 195)]) for key, value in stream.items()}
    assert unseen(windows, known).tolist() == [False] * 3
    windows["a"][1, 4, 2] = 1 - windows["a"][1, 4, 2]
    windows["b"][2] = windows["b"][2].flip(0)  # the same rows in another order
    assert unseen(windows, known).tolist() == [False, True, True]
    assert fingerprints(stream, 201).shape == (1, 0)


def test_a_zero_is_one_number_whatever_its_sign() -> None:
    assert (fingerprints({"a": torch.zeros(1, 3, 2)}, 2) == fingerprints({"a": -torch.zeros(1, 3, 2)}, 2)).all()
