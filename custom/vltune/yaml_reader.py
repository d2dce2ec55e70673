"""YAML that cannot do harm: plain values only, of a size that is known before they are built.

PyYAML's safe loader makes no objects, but nine lines of aliases in aliases become 10^9 values for
whoever copies or prints them, deep nesting ends in a RecursionError, and a date of month 13 in a
bare ValueError. Here all of them are a `yaml.YAMLError`.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 2_000_000
"""Of a file; the largest of ours, a class list with its conditions, has some 20,000."""
MAX_VALUES = 200_000
"""Keys and values of a file, those behind an alias counted each time."""


class HarmfulYamlError(yaml.YAMLError):
    """The text would cost more than any configuration may; the message says what and the cure."""


def read_yaml(text: str) -> Any:
    """Parse one YAML document of plain values.

    Raises:
        yaml.YAMLError: It is not YAML, has values that do not exist, is too large or too deep, or
            an alias holds itself.
    """
    if len(text) > MAX_CHARACTERS:
        raise HarmfulYamlError(
            f"{len(text):,} characters, at most {MAX_CHARACTERS:,} are read. Give a configuration"
        )
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise HarmfulYamlError("nested too deeply. Write it flat") from error
    # The constructors of dates, numbers and keys raise whatever Python does.
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below `node` when every alias is written out; `known` holds finished nodes."""
    found = known.get(id(node))
    if found is not None:
        if found < 0:
            raise HarmfulYamlError("an alias holds itself. Write it out")
        return found
    known[id(node)] = -1
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(child, known) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(child, known) for pair in node.value for child in pair)
    if total > MAX_VALUES:
        raise HarmfulYamlError(
            f"more than {MAX_VALUES:,} values when its aliases are written out. Make it smaller"
        )
    known[id(node)] = total
    return total
