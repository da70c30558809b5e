"""Read and write the YAML of configs: scalars as in YAML 1.2, and protection against mistakes and attacks.

The result is plain data: mappings, lists, tuples (`!!python/tuple`, as PyYAML writes them) and scalars. No tag creates
any other object, so reading a file executes no code. A few lines of nested aliases can stand for more values than fit
into memory once a caller walks through them. The parser therefore limits the number of values after the expansion of
all aliases.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

MAX_CHARACTERS = 2**16  # reading as many takes one second; the longest config has 1,500
MAX_VALUES, MAX_DEPTH = 20_000, 50  # values and levels of nesting after the expansion of aliases

EXPONENT_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_BOOL, _FLOAT, _MERGE, _TUPLE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "merge", "python/tuple"))


class _Loader(yaml.SafeLoader):
    """A loader that reads scalars as YAML 1.2 does: `3e-4` is a number, `off` a word and `<<` a key.

    PyYAML itself follows YAML 1.1.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name and place are PyYAML's)
        first: [pair for pair in pairs if pair[0] not in (_BOOL, _MERGE)]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Do nothing. PyYAML would merge mappings at `<<` here."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping as PyYAML does, but raise an error for a repeated key: one of its values would be lost."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                name = (key_node.tag, key_node.value)
                if name in seen:
                    problem = f"the key '{key_node.value}' appears twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every word that YAML 1.1 or 1.2 would read as another type."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple is written as a list", node.start_mark)
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor(_TUPLE, _tuple)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(_TUPLE, value, flow_style=True))
_Loader.add_implicit_resolver(_BOOL, re.compile("(true|false)$", re.IGNORECASE), list("tTfF"))
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(_FLOAT, EXPONENT_NUMBER, list("-+.0123456789"))


def parse(text: str | bytes) -> Any:
    """Return the data in a YAML text.

    Raises:
        ValueError: if the text is not valid. The message gives the problem and, if it is known, the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the text is longer than {MAX_CHARACTERS} characters, the limit for a config")
    try:
        found = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise ValueError(f"not valid YAML: nested deeper than {MAX_DEPTH} levels") from error
    except (yaml.YAMLError, ValueError) as error:  # a forbidden character; an impossible date
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # errors that PyYAML does not catch
        raise ValueError(f"not valid YAML: a tag (!!) does not fit the value after it: {error!r}") from error
    _measure(found)
    return found


def _measure(value: Any) -> None:
    """Refuse a value that contains itself, is nested too deeply, or becomes too large when its aliases are expanded."""
    sizes: dict[int, int] = {}

    def size(item: Any, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels, or an alias (*) contains itself")
        if not isinstance(item, Mapping | list | tuple | set):
            return 1
        if id(item) not in sizes:
            parts = [*item.keys(), *item.values()] if isinstance(item, Mapping) else list(item)
            sizes[id(item)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(item)]

    if (count := size(value, 0)) > MAX_VALUES:
        raise ValueError(f"{count:.3g} values after the expansion of aliases (*); at most {MAX_VALUES} are allowed")


def dump(mapping: Mapping[str, Any]) -> str:
    """Return YAML text, in the order of the keys, that :func:`parse` reads back to the same mapping."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False)
