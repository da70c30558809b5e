"""Nested state comes back as it was, and no file executes anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.training.run.tree import load_tree, save_tree


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.8, 0.9))
    net(torch.ones(3)).sum().backward()
    optimizer.step()
    save_tree(tmp_path / "tree", optimizer.state_dict())
    again = torch.optim.Adam(net.parameters())
    again.load_state_dict(load_tree(tmp_path / "tree"))
    assert again.param_groups[0]["lr"] == 0.01 and tuple(again.param_groups[0]["betas"]) == (0.8, 0.9)
    for one, two in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_leaves_keep_their_kind(tmp_path: Path) -> None:
    tree: dict[Any, Any] = {
        "tensor": torch.arange(6).reshape(2, 3).T,
        "array": np.array([[1.5, -0.0]]),
        "flags": np.array([True, False]),
        3: {"none": None, "list": [1, 2.5, "x", True], "empty": {}},
        "inf": float("inf"),
    }
    save_tree(tmp_path / "tree", tree)
    again = load_tree(tmp_path / "tree")
    assert torch.equal(again["tensor"], tree["tensor"]) and again[3] == tree[3] and again["inf"] == tree["inf"]
    for name in ("array", "flags"):
        assert isinstance(again[name], np.ndarray) and again[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(again[name], tree[name])


def test_what_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot write a set"):
        save_tree(tmp_path / "tree", {"a": {1, 2}})
    assert not (tmp_path / "tree").exists()
    (tmp_path / "text").write_text("{}")
    with pytest.raises(ValueError, match="text: not a readable training state"):
        load_tree(tmp_path / "text")
    save_tree(tmp_path / "tree", {"a": torch.ones(100)})
    (tmp_path / "cut").write_bytes((tmp_path / "tree").read_bytes()[:-9])
    with pytest.raises(ValueError, match="cut: not a readable"):
        load_tree(tmp_path / "cut")
