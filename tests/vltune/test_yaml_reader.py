import pytest
import yaml

from vltune.yaml_reader import MAX_CHARACTERS, HarmfulYamlError, read_yaml


def test_plain_values_aliases_and_merges_are_read() -> None:
    text = "a: &x {b: 1, c: [2.5, null, yes]}\nd: *x\ne: {<<: *x, b: 7}\n"
    inner = {"b": 1, "c": [2.5, None, True]}
    assert read_yaml(text) == {"a": inner, "d": inner, "e": {**inner, "b": 7}}
    assert read_yaml("") is None


def test_aliases_count_as_often_as_they_are_used() -> None:
    """One list of 10 and then five times a list of 10 of the list before: 10^6 values."""
    text = "a: &a [" + "x, " * 10 + "]\n"
    for name, before in zip("bcdef", "abcde", strict=True):
        text += f"{name}: &{name} [" + f"*{before}, " * 10 + "]\n"
    with pytest.raises(HarmfulYamlError, match="values when its aliases are written out"):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("&a [*a]", "holds itself"),
        ("a: &a {b: *a}", "holds itself"),
        ("[" * 100_000, "nested too deeply"),
        ("x" * (MAX_CHARACTERS + 1), "at most 2,000,000"),
        ("a: 2020-13-45", "cannot be read"),
        ("a: " + "9" * 10_000, "cannot be read"),
        ("? [1]\n: 2", "unhashable"),
        ("!!python/object/apply:os.getcwd []", "python"),
        ("a: [", "expected"),
    ],
)
def test_what_could_do_harm_is_a_yaml_error(text: str, reason: str) -> None:
    with pytest.raises(yaml.YAMLError, match=reason):
        read_yaml(text)
