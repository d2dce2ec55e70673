"""Opens the language model that the command line names."""

from dataclasses import dataclass
from pathlib import Path

from vltune_lab.discovery.backend import Backend, BackendError, Budget


@dataclass(frozen=True)
class BackendOptions:
    """What the command line says of the language model; see `vltune conditions build --help`."""

    llm: str
    model: str
    base_url: str
    max_answer_tokens: int
    workers: int
    timeout_seconds: float
    repeats: int
    embedding_model: str = ""


@dataclass(frozen=True)
class OpenBackend:
    """A language model that is ready.

    Attributes:
        backend: The model.
        workers: Questions at once that it can take.
        embedder: Answers `embedding.embed_question`; None if names are compared by their letters.
        warning: For the person at the terminal; empty if there is none.
    """

    backend: Backend
    workers: int
    embedder: Backend | None = None
    warning: str = ""


def open_backend(options: BackendOptions, budget: Budget) -> OpenBackend:
    """Open the back end that answers questions: `openai` or `transformers`.

    Raises:
        BackendError: Its options or its model cannot be used.
    """
    if options.embedding_model and not options.embedding_model.strip():
        raise BackendError("--embedding-model is blank; give the name that the endpoint serves.")
    if options.llm == "openai":
        return _open_openai(options, budget)
    if options.llm == "transformers":
        return _open_transformers(options, budget)
    raise BackendError(f"--llm {options.llm} answers no questions.")


def _open_openai(options: BackendOptions, budget: Budget) -> OpenBackend:
    from vltune_lab.discovery.openai_backend import OpenAIBackend
    from vltune_lab.discovery.openai_calls import OpenAIOptions
    from vltune_lab.discovery.openai_embeddings import OpenAIEmbedder
    from vltune_lab.discovery.openai_http import Endpoint, read_key

    endpoint = Endpoint(options.base_url, options.timeout_seconds, read_key())
    asking = OpenAIOptions(
        options.model, options.repeats, max_answer_tokens=options.max_answer_tokens
    )
    warning = ""
    if endpoint.is_key_exposed:
        warning = f"warning: the key travels unencrypted to {options.base_url}; https would hide it"
    embedder = None
    if options.embedding_model:
        embedder = OpenAIEmbedder(
            endpoint, OpenAIOptions(options.embedding_model, options.repeats), budget
        )
    backend = OpenAIBackend(endpoint, asking, budget)
    return OpenBackend(backend, options.workers, embedder, warning)


def _open_transformers(options: BackendOptions, budget: Budget) -> OpenBackend:
    from vltune_lab.discovery.model_folder import load_model_folder
    from vltune_lab.discovery.transformers_backend import TransformersBackend
    from vltune_lab.discovery.transformers_embeddings import TransformersEmbedder

    wanted = options.embedding_model
    if wanted and Path(wanted).resolve() != Path(options.model).resolve():
        raise BackendError(
            f"--embedding-model is {wanted!r}; --llm transformers compares with the model that it "
            f"asks, --model {options.model!r}. Give that folder, or leave --embedding-model out."
        )
    local = load_model_folder(options.model)
    # One model, one question at a time.
    return OpenBackend(
        TransformersBackend(local, options.max_answer_tokens, budget),
        workers=1,
        embedder=TransformersEmbedder(local, budget) if wanted else None,
    )
