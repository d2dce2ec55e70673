"""Real HTTP to a server process that answers, and misbehaves in each way."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vltune_lab.discovery.backend import BackendError, Budget, BudgetError
from vltune_lab.discovery.openai_backend import OpenAIBackend
from vltune_lab.discovery.openai_calls import OpenAIOptions
from vltune_lab.discovery.openai_http import Endpoint, read_key
from vltune_lab.discovery.prompts import describe_question

KEY = "sk-quite-secret-1234"
QUESTION = describe_question([(0, ("thing 1", "thing 2"))], 0.7, 5)


def make(base_url: str, *, timeout: float = 5.0, key: str = "", **budget: int) -> OpenAIBackend:
    options = OpenAIOptions("small", repeats=2, first_wait_seconds=0.01, max_answer_tokens=500)
    limits = {"max_requests": 50, "max_tokens": 100_000} | budget
    return OpenAIBackend(Endpoint(base_url, timeout, key), options, Budget(**limits))


def refusal(backend: OpenAIBackend) -> str:
    with pytest.raises(BackendError) as caught:
        backend.ask(QUESTION)
    return str(caught.value)


def test_a_good_answer(serve: Callable[[str], Any]) -> None:
    endpoint = serve("good")
    answer = make(endpoint.base_url).ask(QUESTION)
    assert json.loads(answer.text)["sentences"][0]["id"] == 0
    assert (answer.model, answer.tokens, answer.is_estimate) == ("local-1", 100, False)
    (request,) = endpoint.log()
    assert "Authorization" not in request["headers"]
    body = request["body"]
    assert (body["model"], body["seed"], body["max_tokens"]) == ("small", 5, 500)
    assert body["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("mode", "name"),
    [("path", "small.gguf"), ("windows-path", "small.gguf"), ("publisher", "someone/small")],
)
def test_a_model_named_by_its_path_keeps_the_file_name(
    serve: Callable[[str], Any], mode: str, name: str
) -> None:
    assert make(serve(mode).base_url).ask(QUESTION).model == name


def test_the_key_travels_as_bearer_and_stands_nowhere_else(
    serve: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("VLTUNE_LLM_KEY", KEY)
    assert read_key() == KEY
    endpoint = serve("refused")
    backend = make(endpoint.base_url, key=read_key())
    message = refusal(backend)
    assert "HTTP 401" in message
    assert "VLTUNE_LLM_KEY" in message
    assert "you sent Bearer (key)" in message
    (request,) = endpoint.log()
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    shown = f"{message} {backend.parameters()} {backend._caller._endpoint!r} {vars(backend)!r}"
    assert KEY not in shown


def test_where_the_key_comes_from() -> None:
    assert read_key({}) == ""
    assert read_key({"VLTUNE_LLM_KEY": " ", "OPENAI_API_KEY": "b\n"}) == "b"
    for wrong in ("a b", "a\nb", "schlüssel"):
        with pytest.raises(BackendError, match="VLTUNE_LLM_KEY: holds a space") as caught:
            read_key({"VLTUNE_LLM_KEY": wrong})
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_exposed"),
    [
        ("http://127.0.0.1:8000/v1", False),
        ("http://localhost/v1", False),
        ("http://[::1]/v1", False),
        ("https://models.example/v1", False),
        ("http://models.example/v1", True),
        ("http://10.0.0.5/v1", True),
    ],
)
def test_a_key_over_plain_http_to_elsewhere_is_noticed(url: str, is_exposed: bool) -> None:
    assert Endpoint(url, 1.0, KEY).is_key_exposed is is_exposed
    assert not Endpoint(url, 1.0).is_key_exposed


@pytest.mark.parametrize(
    "url", ["models.example/v1", "file:///v1", "http://", "", "http://[::1", "http://a:99999/v1"]
)
def test_a_wrong_base_url_is_named(url: str) -> None:
    with pytest.raises(BackendError, match="expected http:// or https://"):
        Endpoint(url, 1.0)


@pytest.mark.parametrize("host", ["models.example", "models.example:99999"])
def test_a_password_in_the_base_url_is_refused_unseen(host: str) -> None:
    with pytest.raises(BackendError, match="--base-url") as caught:
        Endpoint(f"https://me:hunter2@{host}/v1", 1.0)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("mode", "requests"), [("broken-once", 2), ("down-for-now", 3)])
def test_a_server_in_trouble_is_asked_again(
    serve: Callable[[str], Any], mode: str, requests: int
) -> None:
    endpoint = serve(mode)
    backend = make(endpoint.base_url)
    assert backend.ask(QUESTION).asked_as == "json_schema"
    assert len(endpoint.log()) == requests


def test_the_server_says_how_long_to_wait(serve: Callable[[str], Any]) -> None:
    endpoint = serve("busy-once")
    make(endpoint.base_url).ask(QUESTION)
    first, second = (request["time"] for request in endpoint.log())
    assert second - first >= 0.2


@pytest.mark.parametrize(
    ("mode", "requests", "message"),
    [
        ("busy", 3, "no answer after 3 requests; the last one: HTTP 429"),
        ("broken", 5, "no answer after 5 requests; the last one: HTTP 500"),
        ("not-chat", 3, "no chat completion"),
        ("half-body", 3, "broke off"),
        ("chunked-half", 3, "broke off"),
        ("endless", 3, "has more than 8000000 bytes"),
        ("nowhere", 1, "HTTP 404.*--base-url"),
        ("quota", 1, "no quota left"),
        ("moved", 1, "HTTP 302.*elsewhere"),
    ],
)
def test_a_server_that_stays_in_trouble(
    serve: Callable[[str], Any], mode: str, requests: int, message: str
) -> None:
    endpoint = serve(mode)
    with pytest.raises(BackendError, match=message):
        make(endpoint.base_url).ask(QUESTION)
    assert len(endpoint.log()) == requests


@pytest.mark.parametrize(
    ("mode", "message"), [("slow", "no answer within 0.2 s"), ("trickle", "did not end in time")]
)
def test_a_slow_server(serve: Callable[[str], Any], mode: str, message: str) -> None:
    began = time.monotonic()
    assert message in refusal(make(serve(mode).base_url, timeout=0.2))
    assert time.monotonic() - began < 3


def test_no_server_at_all() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        message = refusal(make(url))
    assert message.startswith(f"{url}: no answer after 3 requests; the last one: no connection")


@pytest.mark.parametrize(("mode", "form"), [("no-schema", "json_object"), ("no-format", "text")])
def test_an_endpoint_without_structured_answers(
    serve: Callable[[str], Any], mode: str, form: str
) -> None:
    endpoint = serve(mode)
    backend = make(endpoint.base_url)
    assert backend.ask(QUESTION).asked_as == form
    before = len(endpoint.log())
    backend.ask(QUESTION)
    assert len(endpoint.log()) == before + 1, "what was learnt is kept"


@pytest.mark.parametrize("mode", ["gzip", "chunked"])
def test_replies_in_other_wrappings(serve: Callable[[str], Any], mode: str) -> None:
    assert json.loads(make(serve(mode).base_url).ask(QUESTION).text)["sentences"]


def test_what_an_endpoint_says_does_not_steer_the_terminal(serve: Callable[[str], Any]) -> None:
    message = refusal(make(serve("terminal").base_url))
    assert "HTTP 400: [2J gone" in message
    assert message.isprintable()


def test_parameters_that_the_endpoint_refuses_are_left_out(serve: Callable[[str], Any]) -> None:
    endpoint = serve("no-seed")
    backend = make(endpoint.base_url)
    assert backend.ask(QUESTION).asked_as == "json_schema without seed"
    body = endpoint.log()[-1]["body"]
    assert "seed" not in body
    assert body["max_completion_tokens"] == 500


def test_uncounted_tokens_are_estimated(serve: Callable[[str], Any]) -> None:
    answer = make(serve("uncounted").base_url).ask(QUESTION)
    assert answer.is_estimate
    assert 200 < answer.tokens < 2000


def test_the_budget_of_requests_counts_repeats(serve: Callable[[str], Any]) -> None:
    endpoint = serve("busy")
    with pytest.raises(BudgetError, match="all 2 requests of the budget are spent"):
        make(endpoint.base_url, max_requests=2).ask(QUESTION)
    assert len(endpoint.log()) == 2


def test_the_budget_of_tokens_is_kept_before_asking(serve: Callable[[str], Any]) -> None:
    endpoint = serve("good")
    with pytest.raises(BudgetError, match="raise --max-tokens"):
        make(endpoint.base_url, max_tokens=600).ask(QUESTION)
    assert endpoint.log() == []


def test_a_question_that_waits_is_stopped(serve: Callable[[str], Any]) -> None:
    endpoint = serve("busy")
    backend = OpenAIBackend(
        Endpoint(endpoint.base_url, 5.0), OpenAIOptions("m", first_wait_seconds=50), Budget(9, 9**9)
    )
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(backend.ask, QUESTION)
        while not endpoint.log():
            time.sleep(0.01)
        backend.stop()
        with pytest.raises(BackendError, match="stopped after 1 requests"):
            future.result(timeout=5)


def test_options_are_checked() -> None:
    with pytest.raises(BackendError, match="--model is empty"):
        OpenAIOptions(" ")
    with pytest.raises(BackendError, match="expected 0 or more"):
        OpenAIOptions("m", repeats=-1)
    with pytest.raises(BackendError, match="at least 1 of each"):
        Budget(0, 5)
