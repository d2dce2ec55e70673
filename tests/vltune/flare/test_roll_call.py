import pytest
import torch

from vltune import __version__
from vltune.code_identity import code_hash
from vltune.flare.federation import FederationError
from vltune.flare.roll_call import check_own_code, compare_sites
from vltune.participant import Handshake


def shown(value: float = 0.5, *, shape: tuple[int, ...] = (2, 3), examples: int = 5, **facts: str):
    initial = {"weight": torch.full(shape, value)}
    base = {"backbone": "a" * 64, "class_list": "b" * 64}
    return Handshake({"weight": shape}, initial, str(value), examples, 7, base | facts)


def test_sites_that_agree_all_take_part() -> None:
    roll_call = compare_sites({"b": shown(examples=11), "a": shown()}, {}, 2)
    assert roll_call.sites == ("a", "b")
    assert roll_call.left_out == {}
    assert roll_call.num_examples == {"a": 5, "b": 11}


def test_the_one_that_differs_is_left_out_with_a_readable_difference() -> None:
    handshakes = {"a": shown(), "b": shown(backbone="c" * 64), "c": shown()}
    roll_call = compare_sites(handshakes, {"d": "EXECUTION_EXCEPTION: no data"}, 2)
    assert roll_call.sites == ("a", "c")
    assert roll_call.left_out == {
        "b": "differs from the majority: backbone (expected aaaaaaaaaaaa..., got cccccccccccc...)",
        "d": "EXECUTION_EXCEPTION: no data",
    }


def test_other_shapes_are_named() -> None:
    handshakes = {"a": shown(), "b": shown(shape=(3, 2)), "c": shown()}
    left_out = compare_sites(handshakes, {}, 1).left_out
    assert "expected shape (2, 3), got (3, 2)" in left_out["b"]


def test_the_tensors_themselves_count_not_only_their_announced_hash() -> None:
    liar = shown(0.25)
    liar = Handshake(liar.spec, liar.initial, "0.5", 5, 7, liar.facts)
    left_out = compare_sites({"a": shown(), "b": liar, "c": shown()}, {}, 1).left_out
    assert "initial tensors" in left_out["b"]


def test_a_majority_that_works_on_another_class_list_is_left_out() -> None:
    other = shown(class_list="d" * 64)
    handshakes = {"a": other, "b": shown(), "c": other}
    roll_call = compare_sites(handshakes, {}, 1, facts={"class_list": "b" * 16})
    assert roll_call.sites == ("b",)
    reason = "does not fit the job: class_list is dddddddddddd..., the job's is bbbbbbbbbbbbbbbb"
    assert roll_call.left_out == {"a": reason, "c": reason}


def test_a_site_with_other_code_is_left_out_before_round_0() -> None:
    facts = {"vltune": "1.0", "code": "c" * 16}
    other = shown(vltune="1.0", code="d" * 16)
    handshakes = {"a": shown(**facts), "b": other, "c": shown()}
    roll_call = compare_sites(handshakes, {}, 1, facts=facts)
    assert roll_call.sites == ("a",)
    assert roll_call.left_out == {
        "b": f"does not fit the job: code is {'d' * 16}, the job's is {'c' * 16}",
        "c": f"does not fit the job: code is nothing, the job's is {'c' * 16}, vltune is nothing, "
        "the job's is 1.0",
    }
    with pytest.raises(FederationError, match="no site can take part: b: does not fit the job"):
        compare_sites({"b": other}, {}, 1, facts=facts)


def test_a_server_with_other_code_serves_no_job() -> None:
    own = {"vltune": __version__, "code": code_hash()}
    check_own_code(own)
    check_own_code({})  # an older export asks for nothing
    with pytest.raises(FederationError, match=rf"code is {own['code']}, the job's is 0{{16}}"):
        check_own_code(own | {"code": "0" * 16})


def test_two_equal_halves_are_an_error_that_names_both() -> None:
    with pytest.raises(FederationError, match="a against b: class_list"):
        compare_sites({"a": shown(), "b": shown(class_list="c" * 64)}, {}, 1)


def test_judges_are_compared_among_the_sites_that_have_one() -> None:
    judge, other = "d" * 64, "e" * 64
    handshakes = {
        "a": shown(),
        "b": shown(judge=judge),
        "c": shown(judge=other),
        "d": shown(judge=judge),
    }
    roll_call = compare_sites(handshakes, {}, 2)
    assert roll_call.sites == ("a", "b", "d")
    assert roll_call.left_out == {
        "c": "differs from the majority: judge (expected dddddddddddd..., got eeeeeeeeeeee...)"
    }
    assert roll_call.reference.facts["judge"] == judge  # though the first site has none
    del handshakes["d"]
    with pytest.raises(FederationError, match=r"b against c: judge \(d{12}\.\.\. against e{12}"):
        compare_sites(handshakes, {}, 2)


def test_too_few_sites_are_an_error_with_every_reason() -> None:
    with pytest.raises(FederationError, match=r"1 of 2 .* min_sites is 2: b: broken image"):
        compare_sites({"a": shown()}, {"b": "broken image"}, 2)


def test_nobody_is_an_error() -> None:
    with pytest.raises(FederationError, match="no site can take part: a: no images"):
        compare_sites({}, {"a": "no images"}, 1)


def test_an_empty_site_is_left_out() -> None:
    roll_call = compare_sites({"a": shown(), "b": shown(examples=0)}, {}, 1)
    assert roll_call.left_out == {"b": "has no training images"}


def test_an_adapter_that_does_not_fit_is_named() -> None:
    with pytest.raises(FederationError, match=r"continues from: weight: expected shape \(9,\)"):
        compare_sites({"a": shown()}, {}, 1, required={"weight": (9,)})
