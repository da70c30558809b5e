"""Checkpoints are whole, known by their checksums, and few."""

import json
from pathlib import Path

import pytest

from worldmodel.training.run.checkpoint import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Checkpoint,
    find,
    new_checkpoint,
    numbers,
    prune,
)


def write(root: Path, mean_return: float | None = None, content: bytes = b"weights") -> Path:
    steps = 100 * (max(numbers(root), default=0) + 1)
    with new_checkpoint(root, steps, mean_return) as folder:
        (folder / "model").write_bytes(content)
        (folder / "rows").write_bytes(b"rows")
    return root / f"{steps // 100:05d}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint"


def test_what_a_manifest_says(root: Path) -> None:
    """The checksum is that of `printf weights | sha256sum`."""
    folder = write(root, -3.5)
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    found = json.loads((folder / MANIFEST_FILE).read_text())
    assert found["files"]["model"] == {"bytes": 7, "sha256": digest}
    assert (found["format"], found["env_steps"], found["mean_return"]) == (FORMAT_VERSION, 100, -3.5)
    assert {"worldmodel", "torch"} <= found.keys()
    assert Checkpoint.read(folder).files["model"] == (7, digest)


def test_the_latest_the_best_or_a_number(root: Path) -> None:
    for score in (-5.0, -1.0, None, -9.0, None):
        write(root, score)
    assert [find(root, which)[0].folder.name for which in ("latest", "best", "1")] == ["00005", "00002", "00001"]
    with pytest.raises(
        ValueError, match=r"no usable checkpoint '7'\. The run has the checkpoints latest, best, 1, 2, 3"
    ):
        find(root, "7")
    with pytest.raises(ValueError, match="holds no usable checkpoint 'worst'"):
        find(root, "worst")


def test_of_equals_the_newest_is_the_best_and_stays(root: Path) -> None:
    for score in (5.0, 5.0, 1.0, 1.0):
        write(root, score)
        prune(root, 1, ())
    assert (find(root, "best")[0].folder.name, numbers(root)) == ("00002", [2, 4])


def test_without_an_evaluation_there_is_no_best(root: Path) -> None:
    write(root)
    with pytest.raises(
        ValueError, match=r"holds no usable checkpoint with an evaluation\. The run has the checkpoints 1"
    ):
        find(root, "best")


def test_no_checkpoint_at_all(root: Path) -> None:
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        find(root)


def test_one_that_is_not_finished_is_not_there(root: Path) -> None:
    """Whatever ends the writing; the next one clears it away."""
    write(root)
    with pytest.raises(OSError), new_checkpoint(root, 200) as folder:
        (folder / "model").write_bytes(b"half")
        raise OSError("no space left on device")
    assert numbers(root) == [1] and find(root)[0].env_steps == 100
    for name in ("7", "١٢٣٤٥", "copy"):  # of somebody else
        (root / name).mkdir()
    write(root)
    assert sorted(path.name for path in root.iterdir() if path.name[0] == "0") == ["00001", "00002"]
    assert numbers(root) == [1, 2]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "manifest cut", "manifest missing", "manifest odd"])
def test_a_damaged_one_is_known_and_passed_over(root: Path, damage: str) -> None:
    write(root)
    newest = write(root)
    file = newest / (MANIFEST_FILE if damage.startswith("manifest") else "model")
    if damage == "changed":
        file.write_bytes(b"weightz")
    elif damage.endswith("missing"):
        file.unlink()
    elif damage.endswith("odd"):
        file.write_text("[1, 2]")
    else:
        file.write_bytes(file.read_bytes()[:-2])
    found, problems = find(root)
    assert found.env_steps == 100 and len(problems) == 1 and str(file) in problems[0]
    if file.name == "model":
        assert find(root, leave_out=["model"])[0].env_steps == 200  # where it is not needed
        for path in (root / "00001").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"holds no usable checkpoint\. .*model"):
            find(root)


def test_one_of_a_later_version_is_not_misread(root: Path) -> None:
    write(root)
    manifest = write(root) / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": FORMAT_VERSION + 1}))
    newer = (
        rf"has format {FORMAT_VERSION + 1} and was written by .*\. This version reads formats up to {FORMAT_VERSION}"
    )
    with pytest.raises(ValueError, match=newer):
        find(root)


def test_the_newest_and_the_best_are_kept(root: Path) -> None:
    for score in (-5.0, -1.0, None, -9.0, None):
        write(root, score)
        prune(root, keep=2, drop=["rows"])
    assert numbers(root) == [2, 4, 5]
    assert not (root / "00002/rows").exists() and (root / "00004/rows").exists()
    assert find(root, "best", leave_out=["rows"])[0].folder.name == "00002"
    write(root, 0.0)
    prune(root, keep=1, drop=["rows"])
    assert numbers(root) == [6]  # newest and best
