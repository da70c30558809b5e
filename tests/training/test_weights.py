"""Weights come back exactly, replaced in one step, and a file that is not ours is refused without running it."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from worldmodel.training.run import weights
from worldmodel.training.run.weights import load_module, load_tensors, save_module, save_tensors, write_text_atomic


def small_net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "transposed": base.T,
        "view": base[0],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "int": torch.tensor([2**40]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(1)),
    }
    save_tensors(tmp_path / "new" / "all.safetensors", tensors)
    loaded = load_tensors(tmp_path / "new" / "all.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_a_module_comes_back_with_buffers_and_tied_weights(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        net[2].weight = net[0].weight
        return net

    saved, loaded = tied(), tied()
    saved(torch.randn(8, 3))
    save_module(tmp_path / "net", saved)
    load_module(tmp_path / "net", loaded)
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert loaded[2].weight is loaded[0].weight


def test_another_shape_names_file_parameter_and_both_shapes(tmp_path: Path) -> None:
    save_module(tmp_path / "net", small_net(3))
    other = small_net(4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_module(tmp_path / "net", other)
    message = str(caught.value)
    assert str(tmp_path / "net") in message
    assert "0.weight: shape (3, 2) in the file, (4, 2) in the module" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_missing_and_unexpected_names_are_listed(tmp_path: Path) -> None:
    save_tensors(tmp_path / "net", {"weight": torch.ones(1, 2), "extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"bias: missing in the file\n  extra: in the file, but not in the module"):
        load_module(tmp_path / "net", nn.Linear(2, 1))


def test_many_misfits_are_cut_short(tmp_path: Path) -> None:
    save_tensors(tmp_path / "net", {f"p{index}": torch.ones(1) for index in range(12)})
    with pytest.raises(ValueError, match=r"and 2 more$"):
        load_module(tmp_path / "net", nn.Identity())


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("write", [lambda bad, path: path.write_bytes(pickle.dumps(bad)), torch.save])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, write: object) -> None:
    path, trace = tmp_path / "model.safetensors", tmp_path / "executed"
    write(Malicious(trace), path)  # type: ignore[operator]
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_module(path, small_net())
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # the trap itself works
    assert trace.exists()


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_file_cut_short_is_a_clear_error(tmp_path: Path, kept: int) -> None:
    save_module(tmp_path / "net", small_net())
    (tmp_path / "net").write_bytes((tmp_path / "net").read_bytes()[:kept])
    with pytest.raises(ValueError, match="incomplete"):
        load_module(tmp_path / "net", small_net())


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent"):
        load_tensors(tmp_path / "absent")


def test_a_crash_while_writing_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    write_text_atomic(path, "alt: ä\n")

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(weights.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new: b\n")
    assert path.read_text(encoding="utf-8") == "alt: ä\n"
    monkeypatch.undo()
    write_text_atomic(path, "new: b\n")
    assert path.read_text(encoding="utf-8") == "new: b\n"
    assert list(tmp_path.iterdir()) == [path]
