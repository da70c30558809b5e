"""The design of the repository holds: the direction of imports, no circles, small folders and files."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = ("worldmodel", "envs", "agents", "training")

LAYERS = {
    "worldmodel": [
        {"digits", "types", "specs", "validation"},
        {"kernels"},
        {"networks", "replay"},
        {"dynamics"},
        {"model"},
        {"learning", "imagination"},
        {"diagnostics"},
    ],
    "envs": [
        {"contract"},
        {"rendering", "wrappers"},
        {"suites"},
        {"ids"},
        {"make", "recording", "imagined", "testing"},
    ],
    "agents": [
        {"acting"},
        {"actor_critic"},
        {"exploration", "planning"},
        {"sb3"},
        {"agent", "build"},
    ],
    "training": [
        {"logging"},
        {"config"},
        {"evaluation"},
        {"run"},
        {"data"},
        {"fitting"},
        {"report", "loop"},
        {"start"},
        {"algorithm"},
        {"cli"},
    ],
}
"""Of each package its folders and single modules, lowest first. A part may import parts of lower layers, and itself."""

MAY_IMPORT = {
    "worldmodel": {"worldmodel"},
    "envs": {"worldmodel", "envs"},
    "agents": {"worldmodel", "agents"},
    "training": {"worldmodel", "envs", "agents", "training"},
}
FORBIDDEN = {
    "worldmodel": {"gymnasium", "stable_baselines3", "wandb"},
    "envs": {"wandb"},
    "agents": {"wandb"},
    "training": set[str](),
}
MANY_FILES = {"worldmodel/dynamics"}  # one file for each member of the family
PRIVATE = re.compile(r"\btorch\._(?!foreach_|_version__)|from torch import _")
READS_VALUES = {"item", "cpu"}
MAY_READ_VALUES = {
    "agents/agent.py",  # hands actions to an environment, as arrays
    "agents/sb3/behaviour.py",  # asks a policy of Stable-Baselines3, which takes arrays
    "worldmodel/replay/latents.py",  # stores latent states, as arrays
}


def files(package: str) -> list[Path]:
    """The modules of one package; links to the other packages are not followed."""
    found = [path for path in (ROOT / package).rglob("*.py") if not any(part.is_symlink() for part in path.parents)]
    assert found
    return sorted(found)


def module(path: Path) -> str:
    """The import name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "worldmodel" else ("worldmodel", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known() -> frozenset[str]:
    return frozenset(module(path) for package in TOP for path in files(package))


def imports(source: str) -> set[str]:
    """The modules that a source imports, also inside functions, for type checkers and by `import_module`."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            home = str(node.module)
            found |= {f"{home}.{name.name}" if f"{home}.{name.name}" in known() else home for name in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def part(name: str) -> tuple[str, str]:
    """The package of an import name, and the folder or module in it: `worldmodel.envs.make` is ("envs", "make")."""
    names = name.split(".")[1:]
    if names and names[0] in TOP:
        return names[0], names[1] if len(names) > 1 else ""
    return "worldmodel", names[0] if names else ""


def backwards(source: str, home: str) -> set[str]:
    """The imports of the module `home` that go against the direction."""
    package, room = part(home)
    wrong = set[str]()
    for target in imports(source):
        if target.partition(".")[0] != "worldmodel":
            if target.partition(".")[0] in FORBIDDEN[package]:
                wrong.add(target)
            continue
        other, its = part(target)
        if other not in MAY_IMPORT[package] or (other == package and _above(package, its, room)):
            wrong.add(target)
    return wrong


def _above(package: str, target: str, room: str) -> bool:
    """Whether one part of a package may not be imported by another; the packages' own faces import what they name."""
    if room == "" or target == room:
        return False
    level = {name: k for k, names in enumerate(LAYERS[package]) for name in names}
    return target == "" or (level[target] >= level[room] and not (level[target] == level[room] == 0))


@pytest.mark.parametrize("package", TOP)
def test_imports_go_one_way_between_packages_and_folders(package: str) -> None:
    faces = {"worldmodel", "worldmodel.__main__"}  # the public names, imported lazily, and the console script
    names = {module(path): path for path in files(package)}
    wrong = {name: backwards(path.read_text(), name) for name, path in names.items() if name not in faces}
    assert not {name: found for name, found in wrong.items() if found}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module(path): imports(path.read_text()) & known() for package in TOP for path in files(package)}
    graph = {name: found - {"worldmodel", "worldmodel.envs", "worldmodel.agents"} for name, found in graph.items()}
    graph["worldmodel"] = set()
    assert circle(graph) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some modules that each import the next, and the last the first; none if there is no circle."""
    done, path = set[str](), list[str]()

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for target in sorted(graph.get(name, set()) - {name}):
            if found := visit(target):
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name))), [])


@pytest.mark.parametrize("package", TOP)
def test_folders_and_files_stay_small(package: str) -> None:
    folders: dict[str, int] = {}
    for path in files(package):
        name = path.parent.relative_to(ROOT).as_posix()
        folders[name] = folders.get(name, 0) + (path.name != "__init__.py")
    assert not {name: count for name, count in folders.items() if count > 12 and name not in MANY_FILES}
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files(package)}
    assert not {name: count for name, count in lines.items() if count > 400}


def test_only_kernels_use_private_parts_of_torch() -> None:
    wrong = {module(path) for package in TOP for path in files(package) if PRIVATE.search(path.read_text())}
    assert {name for name in wrong if not name.startswith("worldmodel.kernels.")} == set()


@pytest.mark.parametrize("package", ["worldmodel", "agents"])
def test_tensors_stay_on_their_device(package: str) -> None:
    wrong = {path.relative_to(ROOT).as_posix() for path in files(package) if calls(path.read_text()) & READS_VALUES}
    assert wrong <= MAY_READ_VALUES


def calls(source: str) -> set[str]:
    """The names of the methods that a module calls."""
    nodes = ast.walk(ast.parse(source))
    return {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def test_the_checks_see_what_they_look_for() -> None:
    source = (
        "import wandb\n"
        "def f(x):\n"
        "    import worldmodel.envs.make\n"
        "    from worldmodel.training import start\n"
        "    import_module('worldmodel.agents.agent')\n"
        "    return x.mean().item(), x.items()\n"
    )
    found = {"wandb", "worldmodel.envs.make", "worldmodel.training.start", "worldmodel.agents.agent"}
    assert imports(source) == found
    assert backwards(source, "worldmodel.model") == found
    assert backwards(source, "worldmodel.training.run.run") == {"worldmodel.training.start"}
    assert backwards("from worldmodel.envs.make import make", "worldmodel.envs.contract.faults")
    assert calls(source) == {"import_module", "mean", "item", "items"} - {"import_module"}
    assert PRIVATE.search("torch._inductor") and not PRIVATE.search("torch._foreach_add_(x, 1)")
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
