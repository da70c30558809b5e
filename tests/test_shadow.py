"""A package of the user's that hides one of ours is reported with both paths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.shadow import HOME, ensure_ours


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=path[0], capture_output=True, text=True)


def test_a_users_package_of_the_same_name_is_named_with_ours(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    result = run_python("import training", tmp_path, HOME)
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"ImportError: 'envs' is {tmp_path / 'envs'}, which hides")
    assert str(HOME / "envs") in error and "Rename yours" in error


def test_the_command_line_names_a_hidden_training(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").touch()
    result = run_python("from worldmodel.__main__ import main; main()", tmp_path, HOME)
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"ImportError: 'training' is {tmp_path / 'training'}, which hides")
    assert str(HOME / "training") in error


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    result = run_python("import training; print(training.__file__)", tmp_path, HOME)
    assert result.stdout.strip() == str(HOME / "training" / "__init__.py"), result.stderr


def test_a_module_is_named_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_ours.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf"'not_ours' is {tmp_path / 'not_ours.py'}, which hides"):
        ensure_ours("not_ours")


def test_a_missing_package_is_reported() -> None:
    with pytest.raises(ImportError, match="'no_such_package' is not found"):
        ensure_ours("no_such_package")
