"""The direction of the house holds: who may import whom, and nothing leaves the device below the logger."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FORBIDDEN = {
    "worldmodel": {"gymnasium", "stable_baselines3", "wandb", "envs", "agents", "training"},
    "envs": {"wandb", "agents", "training"},
    "agents": {"wandb", "envs", "training"},
}
READS_VALUES = {"item", "cpu"}
MAY_READ_VALUES = {
    "agents/agent.py",  # hands actions to an environment, as arrays
    "agents/sb3.py",  # asks a policy of Stable-Baselines3, which takes arrays
    "worldmodel/replay.py",  # stores latent states, as arrays
}


def imports(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def calls(source: str) -> set[str]:
    """The names of the methods that a module calls."""
    nodes = ast.walk(ast.parse(source))
    return {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def files(package: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    assert files(package)
    wrong = {path: sorted(imports((ROOT / path).read_text()) & FORBIDDEN[package]) for path in files(package)}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("package", ["worldmodel", "agents"])
def test_tensors_stay_on_their_device(package: str) -> None:
    wrong = {path for path in files(package) if calls((ROOT / path).read_text()) & READS_VALUES}
    assert wrong <= MAY_READ_VALUES


def test_the_checks_see_what_they_look_for() -> None:
    source = (
        "def f(x):\n    import envs.make\n    from training import loop as l\n    return x.mean().item(), x.items()"
    )
    assert imports(source) == {"envs", "training"}
    assert calls(source) == {"mean", "item", "items"}
