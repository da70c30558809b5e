"""Dataclasses from nested mappings, with errors that name the key; and the YAML and command line they come from.

A config is a tree of plain dataclasses that hold every default. :func:`build` fills one in from the differences
that a YAML file or the command line gives, and refuses what does not fit: an unknown key is answered with the
nearest right one, a wrong type with the dotted key, the value and what was expected.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class ConfigError(ValueError):
    """A config that cannot be built. The message names the dotted key."""


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: `3e-4` is a number and `off` a word. PyYAML follows 1.1: the reverse."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name and place are PyYAML's)
        first: [pair for pair in pairs if pair[0] != _BOOL]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes the words that either version would read as something else."""


_Loader.add_implicit_resolver(_BOOL, re.compile("(true|false)$", re.IGNORECASE), list("tTfF"))
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))


# ------------------------------------------------------------------------------------------------ building


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` with the values of `mapping` and defaults for the rest.

    Args:
        where: dotted path of this section, for messages only.
    Raises:
        ConfigError: for an unknown key, a missing or mistyped value, or one that `__post_init__` refuses.
    """
    return _build(cls, mapping, where, list(_dotted_keys(cls, where)))


def _build(cls: type[T], mapping: Any, where: str, known: list[str]) -> T:
    mapping = {} if mapping is None else mapping  # a YAML section whose every line is commented out
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'config'}: {mapping!r} is not a section of keys and values")
    hints = _hints(cls)
    for key in mapping:
        if key not in hints:
            raise ConfigError(_unknown(where, str(key), list(hints), known))
    values = {}
    for field in _init_fields(cls):
        dotted = _join(where, field.name)
        if field.name in mapping:
            values[field.name] = _value(hints[field.name], mapping[field.name], dotted, known)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{dotted}: missing, and it has no default")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _value(hint: Any, value: Any, dotted: str, known: list[str]) -> Any:
    section = _section(hint)
    if section is None:
        return _leaf(hint, value, dotted)
    if value is None and hint is not section:  # Optional section
        return None
    if isinstance(value, str) and str in get_args(hint):  # a section that may be given in one word
        return value
    return _build(section, value, dotted, known)


def _leaf(hint: Any, value: Any, dotted: str) -> Any:
    adapter = TypeAdapter(hint)
    for candidate in _readings(value):
        try:
            # Strict, so that no bool becomes an int; as JSON, so that a list becomes a tuple and a string a Path.
            return adapter.validate_json(json.dumps(candidate, allow_nan=False), strict=True)
        except (ValidationError, TypeError, ValueError):
            continue
    raise ConfigError(f"{dotted}: {value!r} is not {_describe(hint)}")


def _readings(value: Any) -> Iterator[Any]:
    """The value; a number written as a string; a whole number written as a float (1e6 steps)."""
    yield value
    if isinstance(value, str) and _NUMBER.match(value):
        value = float(value)
        yield value
    if isinstance(value, float) and value.is_integer():
        yield int(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(arg) for arg in get_args(hint))
    if hint in (bool, type(None)):
        return "true or false" if hint is bool else "null"
    if get_origin(hint) is None and isinstance(hint, type):
        return f"of type {hint.__name__}"
    return f"of type {str(hint).replace('typing.', '')}"


# ------------------------------------------------------------------------------------------- keys and hints


def _init_fields(cls: Any) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in _init_fields(cls)}


def _section(hint: Any) -> Any | None:
    """The dataclass that a field holds, also where it is Optional; None for a leaf."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _dotted_keys(cls: Any, where: str) -> Iterator[str]:
    for name, hint in _hints(cls).items():
        dotted = _join(where, name)
        yield dotted
        if (section := _section(hint)) is not None:
            yield from _dotted_keys(section, dotted)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _unknown(where: str, key: str, siblings: list[str], known: list[str]) -> str:
    """The message for a key that does not exist, with the nearest ones that do: same name elsewhere, then similar."""
    names = {dotted: dotted.rpartition(".")[2] for dotted in known}
    near = [dotted for dotted, name in names.items() if name == key]
    near = near or [_join(where, name) for name in difflib.get_close_matches(key, siblings, n=1)]
    near = near or [dotted for dotted, name in names.items() if name in difflib.get_close_matches(key, names.values())]
    if near:
        return f"unknown key '{_join(where, key)}': did you mean {' or '.join(near[:3])}?"
    return f"unknown key '{_join(where, key)}': {where or 'the config'} has {', '.join(siblings) or 'no keys'}"


# ------------------------------------------------------------------------------ YAML, command line, mappings


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overrides`, section by section; lists are replaced, not joined."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--section.key", "value", "--a.b=3"]` -> `{"section": {"key": "value"}, "a": {"b": 3}}`; values are YAML."""
    nested: dict[str, Any] = {}
    for dotted, text in _pairs(arguments):
        *sections, last = dotted.split(".")
        at = nested
        for section in sections:
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--{dotted}: '{section}' was given a value before, so it has no '{last}'")
        at[last] = _parse(text, f"--{dotted}")
    return nested


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        key, has_value, value = argument.partition("=")
        dotted = key.removeprefix("--")
        if not key.startswith("--") or not all(dotted.split(".")):
            raise ConfigError(f"{argument!r} is not an override: write --section.key value")
        if not has_value:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{argument} has no value: write {argument} VALUE")
        yield dotted, value


EXTENDS = "extends"


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; `{}` for an empty one.

    Where it says `extends: FILE`, a path from where it lies, it holds differences from that file.

    Raises:
        ConfigError: if a file does not exist, is not YAML, holds something else than keys and values, or extends one
            that extends it.
    """
    return _load(Path(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself, by way of {' and '.join(file.name for file in above)}")
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*.yaml"))
        by = f" (which {above[-1]} extends)" if above else ""
        raise ConfigError(f"no config at {path}{by}: {path.parent}/ holds {', '.join(beside) or 'no .yaml file'}")
    content = _parse(path.read_bytes(), str(path))
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__} at the top, not keys and values")
    content = content or {}
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {EXTENDS} is the name of a file, not {base!r}")
    return merge(_load(path.parent / base, (*above, path.resolve())), content)


def _parse(text: str | bytes, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # a forbidden character; an impossible date
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dictionaries, lists and scalars: what :func:`build` takes and YAML can write."""
    return {field.name: _plain(getattr(config, field.name)) for field in _init_fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that :func:`load_yaml` reads back to the same mapping, in the order of its keys."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False)
