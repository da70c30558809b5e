"""YAML as configs are written in it: scalars of version 1.2, and nothing that only a mistake or an attack would be.

What is read is plain data: mappings, lists, tuples (`!!python/tuple`, as PyYAML writes them) and scalars. No tag makes
an object of any other kind, so that reading a file executes nothing. Aliases are expanded by whoever walks the result,
of which a few lines can ask for more than any memory holds; what is read is therefore measured as it would be expanded.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

LARGEST = 2**16  # characters of a text, which are read in a second; the longest config has 1,500
MOST, DEEPEST = 20_000, 50  # values, and levels of nesting, once aliases are expanded

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_BOOL, _FLOAT, _MERGE, _TUPLE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "merge", "python/tuple"))


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: `3e-4` is a number, `off` a word and `<<` a key. PyYAML follows 1.1."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name and place are PyYAML's)
        first: [pair for pair in pairs if pair[0] not in (_BOOL, _MERGE)]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """PyYAML's place for `<<`, which would take a mapping in as often as it is named."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML has it, but a key that stands twice is an error: one of the two would be lost."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                name = (key_node.tag, key_node.value)
                if name in seen:
                    problem = f"the key '{key_node.value}' stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that either version would read as something else."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple is written as a list", node.start_mark)
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor(_TUPLE, _tuple)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(_TUPLE, value, flow_style=True))
_Loader.add_implicit_resolver(_BOOL, re.compile("(true|false)$", re.IGNORECASE), list("tTfF"))
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(_FLOAT, NUMBER, list("-+.0123456789"))


def parse(text: str | bytes) -> Any:
    """What a text says.

    Raises:
        ValueError: saying what is wrong with it, and where that is known in which line.
    """
    if len(text) > LARGEST:
        raise ValueError(f"longer than the {LARGEST} characters that a config may have")
    try:
        found = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise ValueError(f"not valid YAML: nested deeper than {DEEPEST} levels") from error
    except (yaml.YAMLError, ValueError) as error:  # a forbidden character; an impossible date
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # over these PyYAML trips
        raise ValueError(f"not valid YAML: a tag (!!) stands before what is not of its kind: {error!r}") from error
    _measure(found)
    return found


def _measure(value: Any) -> None:
    """Refuse what refers to itself, is nested too deeply, or grows too large when its aliases are expanded."""
    sizes: dict[int, int] = {}

    def size(item: Any, depth: int) -> int:
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels, or an alias (*) that contains itself")
        if not isinstance(item, Mapping | list | tuple | set):
            return 1
        if id(item) not in sizes:
            parts = [*item.keys(), *item.values()] if isinstance(item, Mapping) else list(item)
            sizes[id(item)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(item)]

    if (count := size(value, 0)) > MOST:
        raise ValueError(f"{count:.3g} values, aliases (*) expanded: at most {MOST}")


def dump(mapping: Mapping[str, Any]) -> str:
    """Text that :func:`parse` reads back to the same mapping, in the order of its keys."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False)
