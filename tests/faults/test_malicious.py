"""No file that is read can execute anything, or make anything be written elsewhere."""

import ast
import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from worldmodel.replay.disk import Disk, file_name
from worldmodel.replay.storage import Column
from worldmodel.training import FitRun, Run, WorldModelAgent, cli
from worldmodel.training.data import minari_export
from worldmodel.training.logging.logger import REPOSITORY
from worldmodel.training.report.diagnose import diagnose
from worldmodel.training.start import resume

COMMAND = "touch {}"
LATEST = "checkpoint/00001"  # of the finished run


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (COMMAND.format(self.marker),)


def sealed(files: dict[str, bytes]) -> bytes:
    """The manifest of a checkpoint as whoever changed its files would change it: no checksum gives them away."""
    manifest = json.loads(files[f"{LATEST}/manifest.json"])
    for name in manifest["files"]:
        content = files[f"{LATEST}/{name}"]
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(manifest).encode()


def reseal(run: Path) -> None:
    """Let the manifest of a run's checkpoint say what its files are now, where it can be read."""
    files = {f"{LATEST}/{path.name}": path.read_bytes() for path in (run / LATEST).iterdir()}
    with suppress(ValueError):
        (run / LATEST / "manifest.json").write_bytes(sealed(files))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What must never be there."""
    return tmp_path / "executed"


def test_the_file_would_do_it(marker: Path) -> None:
    """Else none of the tests below could fail."""
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()


def pickled(marker: Path) -> bytes:
    return pickle.dumps({"model": Evil(marker)})


def of_torch(marker: Path, folder: Path) -> bytes:
    """What `torch.save` writes: a zip with a pickle in it."""
    torch.save({"weight": torch.zeros(1), "evil": Evil(marker)}, folder / "made.pt")
    content = (folder / "made.pt").read_bytes()
    (folder / "made.pt").unlink()
    return content


def archive(marker: Path, folder: Path) -> bytes:
    """An `.npz` of arrays of objects, under the names that are looked for."""
    names = ("stored", "prev_action", "reward", "is_first", "is_last", "is_terminal", "obs/observation", "y", "u")
    with (folder / "made.npz").open("wb") as file:
        np.savez(file, **{name: np.array([[Evil(marker)]], object) for name in names})
    content = (folder / "made.npz").read_bytes()
    (folder / "made.npz").unlink()
    return content


TAGS = (
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/object/apply:subprocess.check_output [['touch', '{}']]",
    "env: !!python/object/apply:os.system ['touch {}']",
)
FILES = (
    *(f"{LATEST}/{name}.safetensors" for name in ("model", "behaviour", "training")),
    *(f"{LATEST}/manifest.json", f"{LATEST}/replay.npz", "replay/replay.npz", "config.yaml"),
)
COMMANDS: dict[str, Callable[[Path], Any]] = {
    "load": Run.load,
    "load as it was": lambda folder: Run.load(folder, at_checkpoint=True),
    "resume": lambda folder: resume(folder, 50),
    "evaluate": lambda folder: Run.load(folder).evaluate(1),
    "diagnose": diagnose,
    "export": lambda folder: minari_export.export(str(folder), "minari:evil-v0"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", [pickled, of_torch, archive], ids=lambda how: how.__name__)
def test_no_file_of_a_run_is_unpickled(
    file: str, how: Any, copy: Any, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads that file refuses it; what does not need it may go on."""
    pytest.importorskip("minari")  # of which `export` is one reader
    monkeypatch.setattr("minari.create_dataset_from_buffers", lambda *_, **__: None)
    content = how(marker) if how is pickled else how(marker, tmp_path)
    refused = set()
    for name in READERS[file] if how is pickled else READERS[file][:1]:
        folder = copy()
        (folder / file).unlink()  # replay.npz has two names
        (folder / file).write_bytes(content)
        reseal(folder)
        with pytest.raises(ValueError):
            COMMANDS[name](folder)
        refused.add(name)
        assert not marker.exists(), name
    assert refused


WEIGHTS = ("load", "load as it was", "resume", "evaluate", "diagnose")
READERS = {
    f"{LATEST}/model.safetensors": WEIGHTS,
    f"{LATEST}/behaviour.safetensors": WEIGHTS,
    f"{LATEST}/training.safetensors": WEIGHTS,
    f"{LATEST}/manifest.json": WEIGHTS,
    f"{LATEST}/replay.npz": ("load as it was", "resume"),
    "replay/replay.npz": ("load", "evaluate", "diagnose", "export"),
    "config.yaml": (*WEIGHTS, "export"),
}


@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_of_a_config_is_obeyed(
    tag: str, copy: Any, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minari")
    folder = copy()
    for file in (folder / "config.yaml", tmp_path / "c.yaml"):
        file.write_text(tag.format(marker))
    for name in READERS["config.yaml"]:
        with pytest.raises(ValueError, match="not valid YAML: could not determine a constructor"):
            COMMANDS[name](folder)
    assert cli.main(["train", str(tmp_path / "c.yaml")]) == 2
    assert cli.main(["train", str(copy() / "config.yaml"), f"--env={tag.format(marker).removeprefix('env: ')}"]) == 2
    assert "constructor" in capsys.readouterr().err and not marker.exists()


@pytest.mark.parametrize("how", [pickled, of_torch, archive], ids=lambda how: how.__name__)
def test_no_recording_is_unpickled(
    how: Any, finished: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = how(marker) if how is pickled else how(marker, tmp_path)
    (tmp_path / "c.yaml").write_text("data: {observations: [y]}\nlogger: {wandb: disabled}\n")
    for name in ("data.npz", "data.csv"):
        (tmp_path / name).write_bytes(content)
        assert cli.main(["fit", str(tmp_path / "c.yaml"), str(tmp_path / name), "--run", str(tmp_path / "fit")]) == 2
        assert cli.main(["diagnose", str(finished), str(tmp_path / name)]) == 2
        assert cli.main(["export", str(tmp_path / name), "minari:evil-v0"]) == 2
    assert capsys.readouterr().err.count("error: ") == 6
    assert not marker.exists() and not (tmp_path / "fit").exists()


def test_no_file_of_a_fit_is_unpickled(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("y\n" + "\n".join(str(t % 7) for t in range(40)) + "\n")
    (tmp_path / "c.yaml").write_text(
        "data: {observations: [y], window: 4}\nfit: {updates: 1}\nlogger: {wandb: disabled}\n"
        "model: {hidden: 4, dynamics: {rssm: {deter: 4, hidden: 4}}}\n"
    )
    folder = tmp_path / "fit"
    assert cli.main(["fit", str(tmp_path / "c.yaml"), str(tmp_path / "data.csv"), "--run", str(folder)]) == 0
    for name in ("checkpoint/model.safetensors", "checkpoint/specs.json", "results.json", "config.yaml"):
        whole = (folder / name).read_bytes()
        for content in (pickled(marker), of_torch(marker, tmp_path)):
            (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=Path(name).name):
                FitRun.load(folder)
        (folder / name).write_bytes(whole)
    FitRun.load(folder)
    assert not marker.exists()


def test_a_formula_in_a_table_is_text(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.csv").write_text(f"y\n1\n=cmd|'/C touch {marker}'!A0\n2\n")
    (tmp_path / "c.yaml").write_text("data: {observations: [y]}\n")
    assert cli.main(["fit", str(tmp_path / "c.yaml"), str(tmp_path / "data.csv")]) == 2
    assert "line 3, column 'y': '=cmd" in capsys.readouterr().err and not marker.exists()


# ------------------------------------------------------------------------------------------- saved agents


def saved(run: Path, target: Path, **members: bytes) -> Path:
    """A saved agent, with other members, or more."""
    files = {f"{LATEST}/{path.name}": path.read_bytes() for path in (run / LATEST).iterdir()}
    files |= {"config.yaml": (run / "config.yaml").read_bytes(), **members}
    if f"{LATEST}/manifest.json" not in members:
        files[f"{LATEST}/manifest.json"] = sealed(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def test_no_saved_agent_is_unpickled(finished: Path, tmp_path: Path, marker: Path) -> None:
    agent = WorldModelAgent.load(saved(finished, tmp_path / "good.zip"))
    assert agent.run.env_steps == 40
    for name in (*(file for file in FILES if file.startswith(LATEST)), "config.yaml"):
        for content in (pickled(marker), of_torch(marker, tmp_path)):
            if name.endswith("replay.npz"):  # is not unpacked
                continue
            with pytest.raises(ValueError):
                WorldModelAgent.load(saved(finished, tmp_path / "bad.zip", **{name: content}))
    (tmp_path / "pickle.zip").write_bytes(of_torch(marker, tmp_path))
    with pytest.raises(ValueError, match="is not a saved agent"):
        WorldModelAgent.load(tmp_path / "pickle.zip")
    with pytest.raises(ValueError, match=r"bad.npz cannot be read"):
        (tmp_path / "bad.npz").write_bytes(archive(marker, tmp_path))
        agent.load_replay_buffer(tmp_path / "bad.npz")
    assert not marker.exists()


def test_a_saved_agent_writes_nowhere_else(finished: Path, tmp_path: Path) -> None:
    outside = {f"{up}out.txt": b"x" for up in ("../", "checkpoint/../../", "checkpoint/../../../../../../", "/tmp/")}
    before = {str(path) for path in tmp_path.parent.rglob("*")}
    WorldModelAgent.load(saved(finished, tmp_path / "agent.zip", **outside))
    assert {str(path) for path in tmp_path.parent.rglob("*")} - before == {str(tmp_path / "agent.zip")}
    assert not Path("/tmp/out.txt").exists()


def test_a_saved_agent_that_unpacks_to_more_than_the_memory_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.validation.memory", lambda: 10_000)
    with pytest.raises(ValueError, match="is not a saved agent"):
        WorldModelAgent.load(saved(finished, tmp_path / "agent.zip"))


# ----------------------------------------------------------------------------------- names that are paths


@pytest.mark.parametrize("key", ["../../x", "/tmp/x", "..", ".", "a/../../b", "C:\\x", "a\0b", "é/ü"])
def test_a_column_of_a_replay_lies_in_its_folder(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "replay"
    assert (folder / file_name(key)).resolve().parent == folder.resolve()
    if "\0" not in key:
        Disk.create(folder, {key: Column(np.dtype(np.float32), (1,))}, 1, 4)
    assert [path.name for path in tmp_path.rglob("*") if path.parent != folder] == [
        *(["deep", "replay"] if folder.exists() else [])
    ]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    Disk.create(folder, {"reward": Column(np.dtype(np.float32), ())}, 1, 4)
    manifest = json.loads((folder / "replay.json").read_text())
    manifest["columns"]["../../secret"] = manifest["columns"].pop("reward")
    (folder / "replay.json").write_text(json.dumps(manifest))
    (tmp_path.parent / "secret.raw").write_bytes(bytes(16))
    with pytest.raises(ValueError, match=r"secret.raw is missing"):
        Disk.open(folder, {"../../secret": Column(np.dtype(np.float32), ())}, 1)


def test_an_archive_s_names_are_no_paths(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(finished / "replay/replay.npz") as whole:
        np.savez(tmp_path / "data.npz", **{f"../../{name}": array for name, array in whole.items()})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {"observations": ["../../reward"]}}))
    before = {str(path) for path in tmp_path.parent.rglob("*")}
    cli.main(["fit", str(tmp_path / "c.yaml"), str(tmp_path / "data.npz"), "--run", str(tmp_path / "fit")])
    assert {str(path) for path in tmp_path.parent.rglob("*")} == before
    assert "error: " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the source


def unsafe(source: str) -> list[str]:
    """Calls that execute, or may execute, what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            names = {module.partition(".")[0] for module in modules}
            found += sorted(names & {"cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
            found += ["pickle"] if isinstance(node, ast.ImportFrom) and "pickle" in names else []
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            found.append("pickle")  # to write one, for a process of its own, executes nothing
        if not isinstance(node, ast.Call):
            continue
        keywords = {each.arg: each.value for each in node.keywords}
        name = ast.unparse(node.func)
        true = {key for key, value in keywords.items() if isinstance(value, ast.Constant) and value.value is True}
        if name in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"):
            found.append(name)
        elif name == "torch.load":
            found += [] if "weights_only" in true else [name]
        elif name in ("np.load", "numpy.load") or name.endswith(".read_array"):
            allow = keywords.get("allow_pickle")
            found += [] if isinstance(allow, ast.Constant) and allow.value is False else [name]
        elif name == "yaml.load" and ast.unparse(node.args[1]) != "_Loader":
            found.append(name)
        elif "shell" in keywords:
            found.append(f"{name}(shell)")
    return found


@pytest.mark.parametrize("package", ["worldmodel", "envs", "agents", "training"])
def test_nothing_in_the_source_executes_what_it_reads(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    assert {str(file): found for file in files if (found := unsafe(file.read_text()))} == {}


def test_the_check_sees_what_it_looks_for() -> None:
    bad = (
        *(
            "import pickle\npickle.load(f)",
            "from pickle import loads",
            "import torch\ntorch.load(f)",
            "torch.load(f, weights_only=False)",
        ),
        *("np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(t, yaml.Loader)", "yaml.unsafe_load(t)"),
        *("eval(t)", "exec(t)", "subprocess.run(t, shell=True)", "os.system(t)"),
    )
    assert [line for line in bad if len(unsafe(line)) != 1] == []
    good = "np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)\nmodel.eval()\nyaml.load(t, _Loader)"
    assert unsafe(good) == []
