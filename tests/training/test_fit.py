"""Fitting to recorded sequences: what is learned, what is kept whatever happens, and what is read back."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from worldmodel.dynamics import DynamicsConfig
from worldmodel.model import WorldModel
from worldmodel.specs import ObservationSpec
from worldmodel.training import FitRun, fit
from worldmodel.training.cli import main
from worldmodel.training.config.fit_config import load_fit_config
from worldmodel.training.config.schema import merge
from worldmodel.training.data.dataset import Dataset, recorded
from worldmodel.training.fitting.scores import Score, score, table
from worldmodel.training.logging.logger import REPOSITORY
from worldmodel.types import Batch

SIZES = {"deter": 4, "hidden": 4, "size": 2, "static": 2, "matrices": 2}
TINY: dict[str, Any] = {
    "data": {
        "observations": ["y"],
        "controls": ["u"],
        "window": 5,
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    },
    "model": {"hidden": 4, "latent": {"size": 2}, "dynamics": {"name": "dkf", "dkf": {"hidden": 4}}},
    "fit": {"updates": 4, "batch_size": 2, "evaluate_every": 2},
    "logger": {"wandb": "disabled"},
}
PARTS = ["train", "validation", "test"]


def system(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """y_t = 0.5 y_{t-1} + u_{t-1} + 0.1 e_t from y_1 = 0, with random u_t: (length,) each."""
    rng = np.random.default_rng(seed)
    u, y = rng.normal(size=length), np.zeros(length)
    for t in range(1, length):
        y[t] = 0.5 * y[t - 1] + u[t - 1] + 0.1 * rng.normal()
    return y, u


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    y, u = system(30)
    file = tmp_path / "system.csv"
    file.write_text("y,u\n" + "\n".join(f"{a},{b}" for a, b in zip(y, u, strict=True)))
    return file


def config_file(folder: Path, **changes: Any) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merge(TINY, changes)))
    return str(file)


def dynamics(member: str) -> dict[str, Any]:
    """The section of a member in small sizes: "srnn smoother feedback"."""
    name, *choices = member.split()
    known = {field.name for field in fields(getattr(DynamicsConfig(), name))}
    section: dict[str, Any] = {key: value for key, value in SIZES.items() if key in known}
    for choice in choices:
        cell = {"cell": choice, "blocks": 2}
        section |= {"feedback": {"feedback": True}, "blocks": cell, "plain": cell}.get(choice, {"posterior": choice})
    return {"name": name, name: section}


# ------------------------------------------------------------------------------------------ every member


def test_every_member_fits_windows_with_controls(member: str, csv: Path, tmp_path: Path) -> None:
    """Those that cannot filter and those that cannot imagine too: nothing here acts."""
    run = fit(TINY, csv, run=tmp_path / "run", model={"dynamics": dynamics(member)}, fit={"updates": 2})
    assert run.model.emissions == ["observation"]
    check_results(run)


def test_every_member_fits_whole_sequences_without_controls(member: str, tmp_path: Path) -> None:
    """Binary vectors of sequences of several lengths, as music is."""
    lengths = np.array([3, 7, 5, 4, 6])
    notes = np.random.default_rng(0).random((lengths.sum(), 3)) < 0.3
    np.savez(tmp_path / "music.npz", notes=notes, lengths=lengths)
    data = {"file": str(tmp_path / "music.npz"), "observations": ["notes"], "controls": None, "window": None}
    run = fit(TINY, data, run=tmp_path / "run", model={"dynamics": dynamics(member)}, fit={"updates": 2})
    assert len(run.normalizer.loc) == 0
    check_results(run)


def check_results(run: FitRun) -> None:
    """Finite scores, the same ones from the weights on disk."""
    assert list(run.results) == PARTS
    loaded = FitRun.load(run.folder)
    parts = loaded.parts()
    assert all(math.isfinite(run.results[name]["elbo"]) for name in PARTS)
    assert [run.results[name]["frames"] for name in PARTS] == [part.lengths.sum() for part in parts.values()]
    assert loaded.score(parts["test"]).elbo == pytest.approx(run.results["test"]["elbo"], rel=1e-5)
    assert loaded.results == run.results


# ------------------------------------------------------------------------------------------- what is learned


def test_a_known_system_is_learned(tmp_path: Path) -> None:
    """The entropy of e_t is log p per frame of the system itself; whoever cannot use u_{t-1} stays below that of u."""
    y, u = system(600)
    np.savez(tmp_path / "system.npz", y=y[:, None], u=3 * u[:, None] + 5)
    sizes = {"hidden": 16, "deter": 16}
    changes = {
        "data": {"window": 4},
        "model": {"hidden": 16, "dynamics": {"name": "rssm", "rssm": sizes}},
        "objective": {"free_nats": 0.0},
        "learner": {"lr": 2e-2},
        "fit": {"updates": 60, "batch_size": 32, "evaluate_every": 60, "samples": 5},
    }
    test = fit(merge(TINY, changes), tmp_path / "system.npz", run=tmp_path / "run").results["test"]
    entropy = [-0.5 * math.log(2 * math.pi * math.e * variance) for variance in (1.0, 0.01)]
    assert entropy[0] + 0.5 < test["elbo"] < entropy[1]
    assert abs(test["log_likelihood"] - test["elbo"]) < 0.5


def test_units_are_those_of_the_training_part(csv: Path, tmp_path: Path) -> None:
    run = fit(TINY, csv, run=tmp_path / "run")
    y, u = np.loadtxt(csv, delimiter=",", skiprows=1).T
    led = u[:17]  # of 18 training rows the last control leads to no training row
    np.testing.assert_allclose(run.normalizer.loc, [led.mean()], rtol=1e-4)
    np.testing.assert_allclose(run.normalizer.scale, [led.std()], rtol=1e-4)
    decoder = next(iter(run.model.decoders))
    assert decoder.output.normalizer.loc.item() == pytest.approx(y[:18].mean(), rel=1e-4)
    again = FitRun.load(run.folder).read(observations=["u"], controls=["y"])  # other columns, the same units
    np.testing.assert_allclose(
        again.everything().prev_action[0, 1:, 0], (y[:-1] - led.mean()) / led.std(), rtol=1e-3, atol=1e-5
    )


def test_the_learning_rate_falls_to_its_last_share(csv: Path, tmp_path: Path) -> None:
    fit(TINY, csv, ["--learner.final_lr_ratio", "0.2"], run=tmp_path / "run", learner={"lr": 0.01})
    rates = [row["world_model/lr"] for row in metrics(tmp_path / "run")[:-1]]
    assert rates == pytest.approx([0.01, 0.006, 0.002])


def test_a_fit_whose_last_share_was_saved_elsewhere_is_read(csv: Path, tmp_path: Path) -> None:
    made = fit(TINY, csv, run=tmp_path / "run")
    saved = yaml.safe_load((made.folder / "config.yaml").read_text())
    del saved["learner"]["final_lr_ratio"]
    saved["fit"]["final_lr_ratio"] = 0.2
    (made.folder / "config.yaml").write_text(yaml.safe_dump(saved))
    assert FitRun.load(made.folder).config.learner.final_lr_ratio == 0.2
    (made.folder / "config.yaml").write_text(yaml.safe_dump({**saved, "fit": 3}))
    with pytest.raises(ValueError, match=r"config.yaml: fit: 3 is not a section"):
        FitRun.load(made.folder)


def test_a_seed_repeats_a_fit(csv: Path, tmp_path: Path) -> None:
    runs = [fit(TINY, csv, run=tmp_path / f"run-{i}", seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, again, other = (run.results["test"]["elbo"] for run in runs)
    assert first == again != other


def test_rewards_are_explained_where_asked(tmp_path: Path) -> None:
    env = {"env": {"id": "worldmodel/Counter-v0", "kwargs": {"length": 5}}}
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(env))
    assert main(["collect", str(tmp_path / "env.yaml"), "--steps", "30", "--out", str(tmp_path / "a.npz")]) == 0
    data = {"file": str(tmp_path / "a.npz"), "observations": None, "controls": None, "rewards": True}
    run = fit(TINY, data, run=tmp_path / "run")
    assert run.model.emissions == ["observation", "reward", "continue"]
    assert FitRun.load(run.folder).model.emissions == run.model.emissions
    assert metrics(run.folder)[-2].keys() >= {"world_model/log_likelihood/reward"}


# ------------------------------------------------------------------------------------------ what is kept


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float | BaseException]], list[dict[str, Any]]]:
    """Let each look at the validation data find the next of these values; returns the weights at each look."""

    def scripted(script: list[float | BaseException]) -> list[dict[str, Any]]:
        waiting: Iterator[float | BaseException] = iter(script)
        weights = []

        def look(run: FitRun, dataset: Dataset, samples: int = 0) -> Score:
            weights.append({name: value.clone() for name, value in run.model.state_dict().items()})
            found = next(waiting)
            if isinstance(found, BaseException):
                raise found
            return Score(1, 1, found, found, found)

        monkeypatch.setattr(FitRun, "score", look)
        return weights

    return scripted


def same(model: WorldModel, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_best_weights_are_kept_and_patience_ends(
    csv: Path, tmp_path: Path, looks: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = looks([-9.0, -3.0, -5.0, -4.0, 0.0, 0.0, 0.0])  # the last three: the final table
    run = fit(TINY, csv, run=tmp_path / "run", fit={"updates": 100, "patience": 2})
    said = capsys.readouterr().err
    assert "The patience ended, after 6 updates. The best validation ELBO is -3.0000, after 2 updates." in said
    assert [row["validation/elbo"] for row in metrics(run.folder)[:-1]] == [-9, -3, -5, -4]
    assert len(weights) == 7
    for model in (run.model, FitRun.load(run.folder).model):
        assert same(model, weights[1]) and not same(model, weights[3])


def test_the_bound_that_is_trained_says_which_weights_are_best(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elbos, bounds = iter([-1.0, -2.0, -3.0, -4.0] + [0.0] * 3), iter([-9.0, -7.0, -5.0, -6.0] + [0.0] * 3)
    monkeypatch.setattr(FitRun, "score", lambda *_: Score(1, 1, next(elbos), 0.0, 0.0, bound=next(bounds)))
    fit(TINY, csv, run=tmp_path / "run", fit={"updates": 6}, objective={"bound": "fivo", "particles": 2})
    assert "The best validation FIVO is -5.0000, after 4 updates." in capsys.readouterr().err
    assert [row["validation/bound"] for row in metrics(tmp_path / "run")[:-1]] == [-9, -7, -5, -6]


def test_a_fit_by_fivo_reports_it_beside_the_elbo(csv: Path, tmp_path: Path) -> None:
    run = fit(TINY, csv, run=tmp_path / "run", fit={"updates": 2}, objective={"bound": "fivo", "particles": 8})
    found = run.results["test"]
    assert found["bound"] > found["elbo"] and "trained bound" in table(run.results)


def test_no_patience_means_all_updates(csv: Path, tmp_path: Path, looks: Callable[..., Any]) -> None:
    weights = looks([-1.0, *[-2.0] * 5, *[0.0] * 3])
    fit(TINY, csv, run=tmp_path / "run", fit={"updates": 9, "patience": 0})
    assert len(weights) == 6 + 3  # at 0, 2, 4, 6, 8 and 9 updates


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the disk is full"), FloatingPointError("nan")])
def test_whatever_ends_a_fit_leaves_the_best(
    csv: Path, tmp_path: Path, looks: Callable[..., list[dict[str, Any]]], error: BaseException
) -> None:
    weights = looks([-9.0, -3.0, -5.0, error])
    with pytest.raises(type(error)):
        fit(TINY, csv, run=tmp_path / "run", fit={"updates": 100})
    loaded = FitRun.load(tmp_path / "run")
    assert same(loaded.model, weights[1]) and loaded.results == {}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_fit_that_ends_before_its_first_score_can_be_loaded_too(
    csv: Path, tmp_path: Path, looks: Callable[..., Any]
) -> None:
    looks([KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, csv, run=tmp_path / "run")
    assert FitRun.load(tmp_path / "run").model.encoder.size == TINY["model"]["hidden"]


def test_a_fit_says_how_many_controls_it_has(csv: Path, tmp_path: Path) -> None:
    made = fit(TINY, csv, run=tmp_path / "run", fit={"updates": 1})
    assert "1 control(s)" in made.summary
    bare = fit(TINY, {"file": str(csv), "controls": []}, run=tmp_path / "bare", fit={"updates": 1})
    assert "no controls" in bare.summary


def test_an_interrupted_command_says_where_the_run_is(
    csv: Path, tmp_path: Path, looks: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    looks([-9.0, KeyboardInterrupt()])
    assert main(["fit", config_file(tmp_path), str(csv), "--run", str(tmp_path / "run")]) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "worldmodel fit: interrupted" and captured.out == ""
    assert f"run saved in {tmp_path / 'run'}" in captured.err


def test_a_covariance_that_is_no_longer_positive_is_a_divergence(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(tmp_path / "run"), "--learner.lr", "1e3", "--model.dynamics.name", "kvae"]
    assert main(["fit", config_file(tmp_path), str(csv), *arguments, "--fit.updates", "50"]) == 2
    assert "diverged by step" in capsys.readouterr().err.splitlines()[-1]


def test_a_fit_that_diverges_says_so_and_keeps_the_last_good_weights(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(tmp_path / "run"), "--learner.lr", "1e30"]
    assert main(["fit", config_file(tmp_path), str(csv), *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "diverged by step 2" in line and "Try a lower learner.lr first" in line
    loaded = FitRun.load(tmp_path / "run")
    assert math.isfinite(loaded.score(loaded.parts()["test"]).elbo)


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("member", ["dkf smoother", "rssm"])
def test_scores_are_those_of_each_sequence_by_itself(
    build: Callable[..., WorldModel],
    window: Callable[..., Batch],
    without_noise: Callable[[WorldModel], WorldModel],
    member: str,
) -> None:
    """Padding and company change nothing, and each of the two means is what its name says."""
    model = without_noise(build(member))
    sequences = []
    for length in (4, 9, 2, 9, 6):
        rows = window(1, length, seed=length)
        obs = {key: values[0].numpy() for key, values in rows.obs.items()}
        sequences.append(recorded(obs, rows.prev_action[0].numpy(), rows.reward[0].numpy()))
    specs = {"x": ObservationSpec((2,)), "phase": ObservationSpec((), (3,), (0,))}
    dataset = Dataset.of(specs, sequences, [""] * 5, from_env=True)
    with torch.no_grad():
        alone = [model.elbo(each).total for each in sequences]
    found = score(model, dataset)
    assert (found.sequences, found.frames, found.log_likelihood) == (5, 30, None)
    assert found.elbo == pytest.approx(torch.cat(alone, 1).mean().item(), rel=1e-4)
    assert found.elbo_by_dimension == pytest.approx(found.elbo / 3)
    assert found.elbo_by_sequence == pytest.approx(np.mean([each.mean().item() for each in alone]), rel=1e-4)


def test_a_score_leaves_the_random_state(build: Callable[..., WorldModel], window: Callable[..., Batch]) -> None:
    batch = window(1, 5)
    obs = {key: values[0].numpy() for key, values in batch.obs.items()}
    dataset = Dataset.of({}, [recorded(obs, batch.prev_action[0].numpy())], [""])
    model, state = build("dkf"), torch.get_rng_state()
    first, second = score(model, dataset, samples=5), score(model, dataset, samples=5)
    assert first == second and torch.equal(state, torch.get_rng_state())
    assert first.log_likelihood is not None


def test_the_table_has_a_log_likelihood_only_where_one_was_estimated(csv: Path, tmp_path: Path) -> None:
    results = {"train": {"sequences": 2, "frames": 1024, "elbo": -1.25, "elbo_by_sequence": 2.5}}
    assert table(results).splitlines()[1].split() == ["train", "2", "1,024", "-1.2500", "2.5000"]
    assert "log p" not in table(results)
    results["train"]["log_likelihood"] = -1.0
    assert table(results).splitlines()[1].split()[-1] == "-1.0000" and "log p" in table(results)


# ---------------------------------------------------------------------------------------- the command line


def test_the_command_prints_the_table_alone_on_standard_output(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--seed", "3", "--run", str(tmp_path / "run"), "--fit.samples", "5"]
    assert main(["fit", config_file(tmp_path), str(csv), *arguments]) == 0
    captured = capsys.readouterr()
    head, *lines = captured.out.splitlines()
    assert " ".join(head.split()) == "nats per frame sequences frames ELBO {by sequence} per dimension log p"
    assert [line.split()[0] for line in lines] == PARTS
    assert "validation ELBO" in captured.err and f"run saved in {tmp_path / 'run'}" in captured.err
    run = FitRun.load(tmp_path / "run")
    assert run.config.seed == 3 and run.config.data.file == str(csv)
    assert run.results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert f"{run.results['test']['elbo']:.4f}" in lines[2]
    last = metrics(tmp_path / "run")[-1]
    assert last["final/test"] == pytest.approx(run.results["test"]["elbo"]) and last["global_step"] == 4


def test_a_folder_that_holds_a_run_is_kept(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(TINY, csv, run=tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["fit", config_file(tmp_path), str(csv), "--run", str(tmp_path / "run")]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--fit.updatse", "3"], "did you mean fit.updates?"),
        (["--fit.patience", "-1"], "patience is -1 and samples is 0. Both must be at least 0"),
        (["--data.window", "1"], "window is 1. It must be at least 2, or null"),
        (["--data.delay", "2"], "delay is 2. It must be 0 or 1"),
        (["--data.split.train", "0"], "train is 0. The training data needs a share above 0"),
        (["--data.split.validation", "0"], "There is no validation data, which decides when to stop"),
        (["--fit.device", "abacus"], "fit.device: 'abacus'"),
        (["--objective.weights", "{z: 2.0}"], "objective.weights names ['z']"),
        (["--data.test", "nowhere.csv"], "no file at nowhere.csv"),
        (["--model.images", "redundancy"], "model.images: redundancy works only with `worldmodel train`"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_made(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert main(["fit", config_file(tmp_path), str(csv), "--run", str(tmp_path / "run"), *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["checkpoint/specs.json", "checkpoint/model.safetensors", "config.yaml"])
def test_a_folder_without_a_whole_fit(csv: Path, tmp_path: Path, broken: str) -> None:
    fit(TINY, csv, run=tmp_path / "run")
    file = tmp_path / "run" / broken
    file.write_bytes(b"[")
    with pytest.raises(ValueError, match=file.name):
        FitRun.load(tmp_path / "run")
    file.unlink()
    with pytest.raises(ValueError, match=file.name):
        FitRun.load(tmp_path / "run")


def test_the_two_kinds_of_runs_are_told_apart(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(TINY, csv, run=tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "holds a run of `worldmodel fit`, but a run of `worldmodel train`" in capsys.readouterr().err
    (tmp_path / "run" / "config.yaml").write_text("env: {}")
    with pytest.raises(ValueError, match="a run of `worldmodel fit` is needed"):
        FitRun.load(tmp_path / "run")


def test_the_tanks_are_tested_on_their_other_columns(tmp_path: Path) -> None:
    """A file as the benchmark's: four columns, and an empty one."""
    columns = np.stack([np.sin(np.arange(100) / k) + k for k in (5, 7, 11, 13)], 1)
    lines = [f"{row[0]},{row[1]},{row[2]},{row[3]},,\n" for row in columns]
    file = tmp_path / "cascaded_tanks.csv"
    file.write_text('"uEst","uVal","yEst","yVal","Ts",\n' + "".join(lines))
    config = load_fit_config(REPOSITORY / "configs" / "tanks.yaml", data={"file": str(file)})
    small = {"fit": {"updates": 1, "batch_size": 1}, "logger": {"wandb": "disabled"}}
    run = fit(REPOSITORY / "configs" / "tanks.yaml", file, run=tmp_path / "run", **small)
    parts = run.parts()
    assert config.data.window is not None and list(parts) == PARTS
    test = parts["test"].everything()
    np.testing.assert_allclose(test.obs["observation"][0, :, 0], columns[:, 3], rtol=1e-5)
    raw = run.normalizer.inverse(test.prev_action)[0, 1:, 0]
    np.testing.assert_allclose(raw, columns[:-1, 1], rtol=1e-4)
    train, validation = (parts[name].everything().obs["observation"][0, :, 0] for name in PARTS[:2])
    for part in (train, validation):  # all of the first record
        np.testing.assert_allclose(part, columns[:, 2], rtol=1e-5)
