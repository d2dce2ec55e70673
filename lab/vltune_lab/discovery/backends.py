"""Opens the language model that the command line names."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class OpenBackend:
    """A language model that is ready.

    Attributes:
        backend: The model.
        workers: Questions at once that it can take.
        warning: For the person at the terminal; empty if there is none.
    """

    backend: Backend
    workers: int
    warning: str = ""


def open_backend(options: BackendOptions, budget: Budget) -> OpenBackend:
    """Open the back end that answers questions: `openai` or `transformers`.

    Raises:
        BackendError: Its options or its model cannot be used.
    """
    if options.llm == "openai":
        return _open_openai(options, budget)
    if options.llm == "transformers":
        return _open_transformers(options, budget)
    raise BackendError(f"--llm {options.llm} answers no questions.")


def _open_openai(options: BackendOptions, budget: Budget) -> OpenBackend:
    from vltune_lab.discovery.openai_backend import OpenAIBackend, OpenAIOptions
    from vltune_lab.discovery.openai_http import Endpoint, read_key

    endpoint = Endpoint(options.base_url, options.timeout_seconds, read_key())
    asking = OpenAIOptions(
        options.model, options.repeats, max_answer_tokens=options.max_answer_tokens
    )
    warning = ""
    if endpoint.is_key_exposed:
        warning = f"warning: the key travels unencrypted to {options.base_url}; https would hide it"
    return OpenBackend(OpenAIBackend(endpoint, asking, budget), options.workers, warning)


def _open_transformers(options: BackendOptions, budget: Budget) -> OpenBackend:
    from vltune_lab.discovery.model_folder import load_model_folder
    from vltune_lab.discovery.transformers_backend import TransformersBackend

    local = load_model_folder(options.model)
    # One model, one question at a time.
    return OpenBackend(TransformersBackend(local, options.max_answer_tokens, budget), workers=1)
