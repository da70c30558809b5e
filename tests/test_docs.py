"""What the documents tell a reader to type runs, shortened."""

import re
from pathlib import Path

import pytest

from worldmodel.training import train
from worldmodel.training.logging.logger import REPOSITORY

FEW = '"steps": 60, "prefill": 40, "pretrain": 3}, evaluation={"final_episodes": 1}'
SHORTER = {
    '"steps": 2000, "prefill": 2000, "pretrain": 1500': '"steps": 60, "prefill": 60, "pretrain": 3',
    '"name": "planner"}': '"name": "planner", "planner": {"horizon": 2}}',
    '"final_episodes": 2}': '"final_episodes": 1}',
    'pendulum.yaml", seed=1)  # or': f'pendulum.yaml", seed=1, training={{{FEW})  # or',
    'env="Pendulum-v1", seed=1)': 'env="Pendulum-v1", seed=1, training={"pretrain": 3})',
    'training={"steps": 2000})': f"training={{{FEW})",
    "gradient_steps=8, batch_size=256": "gradient_steps=1, batch_size=16",
    "learn(64_000)": "learn(2_000)",
    "learn(20_000)": "learn(3_200)",
    'PPO("MlpPolicy", "CartPole-v1")': 'PPO("MlpPolicy", "CartPole-v1", n_steps=128)',
    "learn(5_000)": "learn(256)",
    "learn(2_500, ": "learn(225, ",
    "eval_freq=500": "n_eval_episodes=1, eval_freq=210",
    "n_eval_episodes=20": "n_eval_episodes=1",
    "n_eval_episodes=10": "n_eval_episodes=1",
    "episodes=20": "episodes=1",
    "range(200):\n    elbo": "range(3):\n    elbo",
    "range(600)": "range(2)",
    "PlannerConfig(horizon=15)": "PlannerConfig(horizon=2)",
    "n_eval_episodes=2,": "n_eval_episodes=1,",
}


def program(text: str) -> str:
    """The Python of a document, from its beginning to its end."""
    found = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for long, short in SHORTER.items():
        found = found.replace(long, short)
    return found


PROGRAMS = ["README.md", "docs/usage.md", "docs/models.md", "docs/planning.md", "docs/sb3.md", "docs/own.md"]


@pytest.mark.parametrize("document", PROGRAMS)
def test_its_python_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    if document == "docs/own.md":  # which goes on with the README's first command
        train(
            "configs/pendulum.yaml",
            training={"steps": 60, "prefill": 40, "pretrain": 3},
            evaluation={"final_episodes": 1},
        )
    code = program((REPOSITORY / document).read_text())
    assert len(code) > 200
    exec(compile(code, document, "exec"), {"__name__": document})


def test_no_shortcut_is_left_over() -> None:
    texts = "".join((REPOSITORY / document).read_text() for document in PROGRAMS)
    assert all(long in texts for long in SHORTER)


def test_the_tests_that_a_document_names_exist() -> None:
    """`file.py::test`, and `::test` of the file before it."""
    table = (REPOSITORY / "docs/reliability.md").read_text()
    sources = {
        f"{path.parent.name}/{path.name}": path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py")
    }
    file, found = "", 0
    for name, test in re.findall(r"`((?:[a-z]+/)?test_[a-z0-9_]+\.py)?(?:::(test_[a-z0-9_]+))?`", table):
        if not (name or test):  # of a block of code
            continue
        file = name or file
        (source,) = (text for path, text in sources.items() if f"/{path}".endswith(f"/{file}"))
        assert not test or f"def {test}(" in source, f"{file}::{test}"
        found += 1
    assert found > 30
