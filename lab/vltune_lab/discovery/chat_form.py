"""How a question becomes the tokens that a local model reads.

A tokenizer with a chat template gets instructions and data as messages; one whose template knows no
system message gets both in one. Without a template the model goes on with the plain text

    INSTRUCTIONS

    Input:
    DATA

    Output:

Control tokens that a class name spells are text like any other: no name ends a message.
"""

from typing import Any

from vltune_lab.discovery.backend import BackendError, Question

PLAIN = "plain text"
CHAT = "chat template"
CHAT_WITHOUT_SYSTEM = "chat template without system message"


def find_form(tokenizer: Any) -> str:
    """Return the form of a question that the tokenizer knows.

    Raises:
        BackendError: Its chat template works neither with nor without a system message.
    """
    if not tokenizer.chat_template:
        return PLAIN
    from jinja2 import TemplateError

    problem = ""
    for form in (CHAT, CHAT_WITHOUT_SYSTEM):
        try:
            text = tokenizer.apply_chat_template(
                _messages("instructions-1", "data-2", form), tokenize=False
            )
        except (TemplateError, ValueError, TypeError) as error:
            problem = f"{type(error).__name__}: {error!s:.100}"
            continue
        # Some templates drop a system message without a word.
        if "instructions-1" in text and "data-2" in text:
            return form
        problem = "it leaves messages out"
    raise BackendError(
        f"the tokenizer's chat template cannot be used ({problem}). Choose another --model."
    )


def encode_question(tokenizer: Any, form: str, question: Question) -> list[int]:
    """Return a question's token ids in a form of `find_form`."""
    if form == PLAIN:
        text = f"{question.system}\n\nInput:\n{question.data}\n\nOutput:\n"
        return list(tokenizer(text, split_special_tokens=True)["input_ids"])
    ids = tokenizer.apply_chat_template(
        _messages(question.system, question.data, form),
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    return list(ids)


def _messages(system: str, data: str, form: str) -> list[dict[str, str]]:
    if form == CHAT:
        return [{"role": "system", "content": system}, {"role": "user", "content": data}]
    return [{"role": "user", "content": f"{system}\n\n{data}"}]
