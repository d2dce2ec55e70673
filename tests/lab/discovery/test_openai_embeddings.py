"""Embeddings over HTTP from a real server process, alone and within a build."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from vltune_lab.discovery.backend import BackendError, Budget, BudgetError
from vltune_lab.discovery.embedding import embed_question, embed_texts, embedding_asker
from vltune_lab.discovery.openai_calls import OpenAIOptions
from vltune_lab.discovery.openai_embeddings import OpenAIEmbedder
from vltune_lab.discovery.openai_http import Endpoint
from vltune_lab.discovery.raw_answers import RawAnswers

KEY = "sk-quite-secret-1234"
TEXTS = ["scene: The kind of place.", "light: How bright.", "row: Which row."]
VECTORS = [[3, 4, 0], [0, 0, 2], [5, 0, 0]]
WITHOUT = "Leave --embedding-model out to compare names by their letters."


def make(
    base_url: str, *, timeout: float = 5.0, key: str = "", **limits: int
) -> tuple[OpenAIEmbedder, Budget]:
    budget = Budget(**{"max_requests": 50, "max_tokens": 100_000, **limits})
    options = OpenAIOptions("vectors", repeats=2, first_wait_seconds=0.01)
    return OpenAIEmbedder(Endpoint(base_url, timeout, key), options, budget), budget


def test_the_documented_form_is_sent_and_read(serve: Callable[[str], Any], tmp_path: Path) -> None:
    for mode in ("good", "embed-shuffled"):
        endpoint = serve(mode)
        embedder, budget = make(endpoint.base_url, key=KEY)
        asker = embedding_asker(embedder, RawAnswers(tmp_path / f"{mode}.jsonl"), workers=1)
        assert embed_texts(TEXTS, asker, lambda: None).tolist() == VECTORS
        (request,) = endpoint.log()
        assert request["route"] == "/embeddings"
        assert request["body"] == {"model": "vectors", "input": TEXTS}
        assert request["headers"]["Authorization"] == f"Bearer {KEY}"
        assert (budget.requests, budget.tokens) == (1, 7)
        assert asker.asked.models == {"embedder-1"}
        assert embedder.parameters() == {"backend": "openai", "embedding_model": "vectors"}
        assert KEY not in (tmp_path / f"{mode}.jsonl").read_text()


def test_uncounted_tokens_are_estimated(serve: Callable[[str], Any]) -> None:
    """The body has 101 bytes, so at most 50 tokens."""
    embedder, budget = make(serve("embed-uncounted").base_url)
    body = {"model": "vectors", "input": TEXTS}
    answer = embedder.ask(embed_question(TEXTS))
    assert len(json.dumps(body)) == 101
    assert (answer.tokens, answer.is_estimate, budget.tokens) == (50, True, 50)


@pytest.mark.parametrize(
    ("mode", "requests", "message"),
    [
        ("busy-once", 2, ""),
        ("broken-once", 2, ""),
        ("down-for-now", 3, ""),
        ("busy", 3, f"no answer after 3 requests; the last one: HTTP 429.* {WITHOUT}"),
        ("embed-nowhere", 1, f"HTTP 404.*Check --embedding-model, and that .* {WITHOUT}"),
        ("embed-unsupported", 1, f"HTTP 501.*cannot embed.*{WITHOUT}"),
        ("embed-refused", 1, f"HTTP 400.*{WITHOUT}"),
        ("refused", 1, "HTTP 401.*VLTUNE_LLM_KEY"),
        ("quota", 1, "no quota left"),
        ("moved", 1, "HTTP 302.*elsewhere"),
        ("half-body", 3, "broke off"),
        ("endless", 3, "has more than 8000000 bytes"),
        ("not-chat", 3, r"is no list of embeddings \(KeyError: 'data'\)"),
        ("embed-wrong-json", 3, f"is no list of embeddings .*{WITHOUT}"),
        ("embed-no-list", 3, "is no list of embeddings .*data is dict"),
    ],
)
def test_a_server_in_trouble(
    serve: Callable[[str], Any], mode: str, requests: int, message: str
) -> None:
    endpoint = serve(mode)
    embedder, budget = make(endpoint.base_url, key=KEY)
    if message:
        with pytest.raises(BackendError, match=message) as caught:
            embedder.ask(embed_question(TEXTS))
        assert KEY not in str(caught.value)
        assert budget.tokens == 0
    else:
        assert embedder.ask(embed_question(TEXTS)).tokens == 7
    assert len(endpoint.log()) == requests == budget.requests


def test_a_slow_server(serve: Callable[[str], Any]) -> None:
    embedder, _ = make(serve("slow").base_url, timeout=0.2)
    with pytest.raises(BackendError, match=r"no answer within 0\.2 s"):
        embedder.ask(embed_question(TEXTS))


def test_the_budget_is_kept_before_asking(serve: Callable[[str], Any]) -> None:
    endpoint = serve("good")
    with pytest.raises(BudgetError, match="the next request may take 50"):
        make(endpoint.base_url, max_tokens=49)[0].ask(embed_question(TEXTS))
    assert endpoint.log() == []
    embedder, _ = make(endpoint.base_url, max_requests=1)
    embedder.ask(embed_question(TEXTS))
    with pytest.raises(BudgetError, match="all 1 requests"):
        embedder.ask(embed_question(TEXTS))


def test_a_stopped_embedder_sends_nothing(serve: Callable[[str], Any]) -> None:
    endpoint = serve("good")
    embedder, _ = make(endpoint.base_url)
    embedder.stop()
    with pytest.raises(BackendError, match="stopped after 0 requests"):
        embedder.ask(embed_question(TEXTS))
    assert endpoint.log() == []


@pytest.fixture
def build(conditions: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Run `vltune conditions build --embedding-model` for three conditions, without repeats."""
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"thing {index}\n" for index in range(12)))

    def run(endpoint: Any, *more: str | float) -> Result:
        return conditions(
            *("build", "--classes", classes, "--out", tmp_path / "mine.json", "--k", 3),
            *("--model", "small", "--base-url", endpoint.base_url, "--repeats", 0),
            *("--embedding-model", "vectors", *more),
        )

    return run


def test_a_build_merges_by_meaning_and_says_so(
    build: Callable[..., Result], serve: Callable[[str], Any], tmp_path: Path
) -> None:
    """8 requests of 100 tokens and one of 7; place by another name has the cosine 24 / 25."""
    endpoint = serve("good")
    result = build(endpoint)
    assert result.exit_code == 0, result.exception
    assert "9 requests, 807 tokens" in result.output
    (request,) = [request for request in endpoint.log() if request["route"] == "/embeddings"]
    assert request["body"]["input"] == [
        "scene type: The kind of place.",
        "type of scene: The kind of place again.",
        "surroundings: Place by another name.",
        "lighting: How bright.",
        "layout: Which row.",
    ]
    made_by = json.loads((tmp_path / "mine.json").read_text())["made_by"]
    names = [entry["name"] for entry in made_by["candidates"]]
    assert sorted(names) == ["layout", "lighting", "scene type"]
    embedding = made_by["embedding"]
    assert (embedding["embedding_model"], embedding["same_meaning"]) == ("vectors", 0.9)
    assert embedding["model_answered_as"] == ["embedder-1"]
    merged = {(m["name"], m["into"]): m["cosine"] for m in embedding["merged"]}
    assert merged == {("type of scene", "scene type"): 1, ("surroundings", "scene type"): 0.96}
    assert embedding["answers"]["tokens"] == 7
    assert made_by["answers"]["tokens"] == 800
    assert made_by["model_answered_as"] == ["local-1"]


def test_the_same_command_again_asks_nothing(
    build: Callable[..., Result], serve: Callable[[str], Any], tmp_path: Path
) -> None:
    assert build(serve("good")).exit_code == 0
    before = (tmp_path / "mine.json").read_bytes()
    endpoint = serve("embed-nowhere")
    result = build(endpoint)
    assert "0 requests, 0 tokens" in result.output
    assert "9 answers from an earlier run" in result.output
    assert endpoint.log() == []
    assert (tmp_path / "mine.json").read_bytes() == before
    # Another threshold needs no question either; 0.96 is not merged at 0.97.
    assert build(endpoint, "--same-meaning", 0.97).exit_code == 0
    assert endpoint.log() == []
    made_by = json.loads((tmp_path / "mine.json").read_text())["made_by"]
    assert [m["name"] for m in made_by["embedding"]["merged"]] == ["type of scene"]
    assert "overlaps scene type" in {entry["reason"] for entry in made_by["candidates"]}


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("embed-few", "has 4 embeddings for 5 texts"),
        ("embed-twice", "index 0; expected each of 0 to 4 once"),
        ("embed-unnumbered", "index None; expected each of 0 to 4 once"),
        ("embed-lists", "index None; expected each of 0 to 4 once"),
        ("embed-ragged", "has embeddings of 2 and of 3 numbers"),
        ("embed-empty", "has an empty embedding 4"),
        ("embed-nan", "a number in embedding 4 that is not finite"),
        ("embed-zero", "has only zeros in embedding 4"),
        ("embed-words", "has no list of numbers as embedding 4"),
        ("embed-base64", "has no list of numbers as embedding 4"),
        ("embed-wrong-json", "is no list of embeddings"),
        ("embed-nowhere", WITHOUT),
        ("embed-unsupported", WITHOUT),
    ],
)
def test_a_misbehaving_embedding_model_leaves_the_old_cache_and_the_answers(
    build: Callable[..., Result],
    serve: Callable[[str], Any],
    tmp_path: Path,
    mode: str,
    message: str,
) -> None:
    """The eight answers before it are kept: the next run asks for the vectors alone."""
    (tmp_path / "mine.json").write_text("old")
    result = build(serve(mode))
    assert isinstance(result.exception, BackendError)
    assert message in str(result.exception)
    assert "--embedding-model" in str(result.exception)
    assert (tmp_path / "mine.json").read_text() == "old"
    endpoint = serve("good")
    assert build(endpoint).exit_code == 0
    assert [request["route"] for request in endpoint.log()] == ["/embeddings"]


def test_a_threshold_that_merges_too_much_says_so(
    build: Callable[..., Result], serve: Callable[[str], Any]
) -> None:
    """At 0.5 the row joins the place, 15 / 25 = 0.6; place and light are left of three."""
    message = str(build(serve("good"), "--same-meaning", 0.5).exception)
    assert "2 distinct conditions are left" in message
    assert "2 names were merged by their meaning" in message
    assert "'layout' into 'scene type' at a cosine of 0.6000; a --same-meaning above 0.5" in message


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, "nan"])
def test_a_threshold_that_is_no_cosine_is_refused(
    build: Callable[..., Result], serve: Callable[[str], Any], threshold: float
) -> None:
    endpoint = serve("good")
    message = str(build(endpoint, "--same-meaning", threshold).exception)
    assert "expected a cosine above 0, at most 1" in message
    assert endpoint.log() == []


def test_a_blank_name_is_refused(build: Callable[..., Result], serve: Callable[[str], Any]) -> None:
    message = str(build(serve("good"), "--embedding-model", " ").exception)
    assert "--embedding-model is blank" in message
