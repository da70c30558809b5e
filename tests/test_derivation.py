"""The derivation and the code that cites it agree about what is where."""

import re
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
DERIVATION = (HOME / "docs" / "derivation.md").read_text()
TAGS = [int(number) for number in re.findall(r"\\tag\{(\d+)\}", DERIVATION)]
CITED = re.compile(r"[Dd]erivation Eq\. ((?:\d+(?: \([^)]*\))?(?:, | and | to )?)+)")
TABLE = DERIVATION.split("## 10 Where in the code")[1].split("##")[0]


def cited() -> dict[int, list[str]]:
    """{equation: files that cite it}."""
    found: dict[int, list[str]] = {}
    for folder in ("worldmodel", "envs", "agents", "training"):
        for file in (HOME / folder).rglob("*.py"):
            for numbers in CITED.findall(re.sub(r"\s+", " ", file.read_text())):
                for number in re.findall(r"\d+", re.sub(r"\([^)]*\)", "", numbers)):
                    found.setdefault(int(number), []).append(file.name)
    return found


def test_equations_are_numbered_in_their_order() -> None:
    assert list(range(1, len(TAGS) + 1)) == TAGS


def test_the_code_cites_equations_that_exist() -> None:
    assert set(cited()) <= set(TAGS)
    core = {6, 7, 8, 9, 16, 20, 21, 24, 26, 27, 32, 34, 36, 41, 42, 45, 46, 47, 51, 52, 83}
    assert core <= set(cited()), core - set(cited())
    assert len({name for names in cited().values() for name in names}) >= 18


def test_what_the_derivation_names_in_the_code_is_there() -> None:
    rows = [line.split("|")[2:4] for line in TABLE.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    for files, names in rows:
        paths = [path for pattern in re.findall(r"`([^`]+)`", files) for path in HOME.glob(pattern.rstrip("/"))]
        text = "".join(path.read_text() for path in paths if path.is_file())
        assert paths, files
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), (name, files)
