"""A small real model, behind a real server over HTTP and in this process.

SmolLM2-135M-Instruct in 4 bits writes little of use; what is tested is that whatever it writes ends
in a valid cache or a clear error, and that nothing is asked or counted twice.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import Result

from vltune.conditions import load_conditions
from vltune_lab.discovery.answers import AnswerError, read_sentences
from vltune_lab.discovery.backend import Answer, BackendError, Budget
from vltune_lab.discovery.model_folder import load_model_folder
from vltune_lab.discovery.openai_backend import OpenAIBackend
from vltune_lab.discovery.openai_calls import OpenAIOptions
from vltune_lab.discovery.openai_http import Endpoint
from vltune_lab.discovery.prompts import describe_question
from vltune_lab.discovery.published import CACHES
from vltune_lab.discovery.small_model import SmallModel, find_weights
from vltune_lab.discovery.transformers_backend import TransformersBackend

pytestmark = pytest.mark.slow
SERVER = Path(__file__).with_name("model_server.py")
COMBINATIONS = ((0, ("cat", "sofa")), (1, ("dog", "beach")))


class Server(NamedTuple):
    process: subprocess.Popen[str]
    root: str

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def get(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.root + path, timeout=30) as response:
            return response.read().decode()

    def tokens(self) -> int:
        """Tokens of questions and answers, by the server's own count."""
        counters = re.findall(
            r"^llamacpp:(?:prompt_tokens|prompt_tokens_cached|tokens_predicted)_total (\d+)$",
            self.get("/metrics"),
            re.MULTILINE,
        )
        assert len(counters) == 3
        return sum(map(int, counters))


@contextmanager
def started(log: Path) -> Iterator[Server]:
    command = [sys.executable, str(SERVER), str(find_weights())]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream, **pipes) as process:
        try:
            root = next((line for line in process.stdout if line.startswith("http")), "").strip()
            assert root, log.read_text()[-2000:]
            server = Server(process, root)
            assert json.loads(server.get("/health")) == {"status": "ok"}
            yield server
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLTUNE_LLM_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(model_server_extra: None, tmp_path: Path) -> Iterator[Server]:
    with started(tmp_path / "server.log") as one:
        yield one


@pytest.fixture
def build(conditions: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Build the cache of two classes with short answers and few requests."""
    (tmp_path / "classes.txt").write_text("cat\nsofa\n")
    shutil.copy(CACHES / "voc-20.json", tmp_path / "mine.json")
    files = ("--classes", tmp_path / "classes.txt", "--out", tmp_path / "mine.json")
    limits = ("--k", 1, "--max-requests", 6, "--max-answer-tokens", 100, "--workers", 1)

    def run(server: Server, seed: int = 8) -> Result:
        return conditions(
            *("build", *files, *limits, "--model", "smollm2", "--base-url", server.base_url),
            *("--repeats", 0, "--timeout", 60, "--seed", seed),
        )

    return run


def kept(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "mine.answers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spent(result: Result) -> tuple[int, int, int]:
    """Requests, tokens and resumed answers of the cost line."""
    line = re.search(r"(\d+) requests, (\d+) tokens, .* s; (\d+) answers from", result.output)
    assert line, result.output
    return int(line[1]), int(line[2]), int(line[3])


def readable(answer: Answer) -> dict[int, str]:
    """Return the sentences of an answer, or none where it is refused."""
    try:
        return read_sentences(answer, [0, 1])
    except AnswerError as error:
        problem = str(error)
    assert re.match("was cut off|has sentences for 0 of 2", problem)
    return {}


def test_describe_over_http_gives_readable_sentences(server: Server) -> None:
    """The model answers usably every other time or so; what it says else is refused by name."""
    budget = Budget(10, 100_000)
    options = OpenAIOptions("smollm2", repeats=0, max_answer_tokens=100)
    backend = OpenAIBackend(Endpoint(server.base_url, 60), options, budget)
    found: dict[int, str] = {}
    tokens = 0
    for seed in range(5, 15):
        answer = backend.ask(describe_question(COMBINATIONS, 0.7, seed))
        tokens += answer.tokens
        assert answer.asked_as == "json_schema"
        assert not answer.is_estimate
        # The server calls the model by its path, which is none of a cache's business.
        assert answer.model == find_weights().name
        found = readable(answer) | found
        if len(found) == 2:
            break
    assert set(found) == {0, 1}
    assert all(len(re.findall("[a-z]{2,}", text.lower())) >= 2 for text in found.values())
    assert tokens == budget.tokens == server.tokens()


def test_a_whole_build_ends_in_a_cache_or_in_an_error_that_leaves_the_old_one(
    server: Server, build: Callable[..., Result], tmp_path: Path
) -> None:
    old = (tmp_path / "mine.json").read_bytes()
    result = build(server)
    requests, tokens, resumed = spent(result)
    answers = kept(tmp_path)
    assert requests == len(answers)
    assert tokens == sum(answer["tokens"] for answer in answers) == server.tokens()
    assert resumed == 0
    if result.exit_code == 0:
        found = load_conditions(tmp_path / "mine.json")
        assert found.classnames == ("cat", "sofa")
        assert len(found.names) == 1
        return
    assert isinstance(result.exception, BackendError)
    assert re.match(
        r"3 answers in a row cannot be used; the last one (was|has) .* try another --model"
        r"|\d distinct conditions are left of \d+ candidates .*, expected 1",
        str(result.exception),
    )
    assert (tmp_path / "mine.json").read_bytes() == old


def test_a_run_goes_on_after_the_server_died(
    server: Server, build: Callable[..., Result], tmp_path: Path
) -> None:
    """The server is killed once an answer is kept; the next is asked only what is missing."""
    old = (tmp_path / "mine.json").read_bytes()
    watching = threading.Event()

    def kill() -> None:
        while not watching.is_set() and not any(not one["problem"] for one in kept(tmp_path)):
            time.sleep(0.01)
        server.process.kill()

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        for seed in range(8, 14):
            result = build(server, seed)
            if "no answer after 1 requests" in str(result.exception):
                break
            assert "3 answers in a row cannot be used" in str(result.exception)
    finally:
        watching.set()
        watcher.join()
    assert isinstance(result.exception, BackendError)
    assert "no connection, or it broke off" in str(result.exception)
    assert (tmp_path / "mine.json").read_bytes() == old
    usable = [one["key"] for one in kept(tmp_path) if not one["problem"]]
    assert len(usable) == 1
    before = len(kept(tmp_path))
    with started(tmp_path / "second.log") as second:
        again = build(second, seed)
        requests, tokens, resumed = spent(again)
        assert tokens == second.tokens()
    new = kept(tmp_path)[before:]
    assert resumed == 1
    assert requests == len(new) >= 1
    assert usable[0] not in [one["key"] for one in new]
    assert again.exit_code == 0 or isinstance(again.exception, BackendError)


@pytest.fixture
def folder(small_model: SmallModel, tmp_path: Path) -> Iterator[Path]:
    """Return the small model as a folder of safetensors; 270 MB, so it does not stay."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # transformers saves no model that it read from GGUF.
    config = small_model._model.config.to_dict()
    config.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(small_model._model.state_dict())
    target = tmp_path / "smollm2-135m"
    plain.to(torch.bfloat16).save_pretrained(target)
    path = find_weights()
    tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True
    )
    tokenizer.save_pretrained(target)
    yield target
    shutil.rmtree(target)


def test_the_same_model_from_a_folder(folder: Path) -> None:
    budget = Budget(1, 10_000)
    backend = TransformersBackend(load_model_folder(str(folder)), 60, budget)
    answer = backend.ask(describe_question(COMBINATIONS, 0.7, 1))
    assert answer.asked_as == "chat template"
    assert answer.tokens == budget.tokens
    assert 200 < answer.tokens < 400
    assert backend.parameters()["model"] == "smollm2-135m"
    assert len(re.findall("[a-z]{2,}", answer.text.lower())) > 5
    assert "<|im_" not in answer.text
