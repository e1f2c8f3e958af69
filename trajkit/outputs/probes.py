"""Probe sets: prompts with fixed responses, a JSON object a line, and their tokens.

A line has ``prompt`` (text as it stands) or ``messages`` (rendered by the chat template, with the
opening of the answer), and ``response``; ``"eos": true`` adds the end token. Token ids may stand in
place of either text: ``prompt_ids``, ``response_ids``. Other keys are kept and not read.
No special tokens are added to text.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajkit.errors import FormatError, InvalidInput, Mismatch, NotFound, StorageError


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt and one response, as token ids of the run's tokenizer."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """may be empty"""
    prompt: str
    """as text, for people"""
    response: str

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; empty lines are passed over.

    Raises:
        NotFound: there is no file. FormatError: a line is not a JSON object.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FormatError(f"{path}, line {number}: not a JSON object")
        found.append(value)
    return found


def read_probes(
    path: str | Path, tokenizer: Any, *, context: int | None = None, vocabulary: int | None = None
) -> list[Probe]:
    """The probes of a file, as tokens.

    Args:
        path: JSONL, as the head of this module has it.
        tokenizer: the run's, of transformers.
        context: tokens that the model can take, prompt and response together.
        vocabulary: rows of the model's logits; ids must be below.

    Raises:
        NotFound, FormatError: as :func:`read_lines`. InvalidInput: a line lacks something, is empty
            where it may not be, or too long. Mismatch: it was made with another tokenizer.
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise InvalidInput(f"{path}: no probes in it")
    digest = tokenizer_digest(tokenizer)
    probes = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, probe {number}"
        if line.get("tokenizer", digest) != digest:
            raise Mismatch(f"{where}: made with another tokenizer than the run's")
        if "response" not in line and "response_ids" not in line:
            raise InvalidInput(f"{where}: has no 'response'")
        prompt_ids, prompt = encode_prompt(line, tokenizer, where)
        response_ids, response = _encode_response(line, prompt_ids, prompt, tokenizer, where)
        probe = Probe(tuple(prompt_ids), tuple(response_ids), prompt, response)
        check_length(probe.n_tokens, context, where)
        check_ids(probe.prompt_ids + probe.response_ids, vocabulary, where)
        probes.append(probe)
    return probes


def encode_prompt(line: Mapping[str, Any], tokenizer: Any, where: str) -> tuple[list[int], str]:
    """A line's prompt as (token ids, text).

    Raises:
        InvalidInput: there is none, or it is empty. Mismatch: the tokenizer does not know its text.
    """
    if "prompt_ids" in line:
        ids = _as_ids(line["prompt_ids"], where)
        text = line["prompt"] if isinstance(line.get("prompt"), str) else tokenizer.decode(ids)
    elif "messages" in line:
        text = _render(line["messages"], tokenizer, where)
        ids = encode_text(text, tokenizer, where)
    elif isinstance(line.get("prompt"), str):
        text = line["prompt"]
        ids = encode_text(text, tokenizer, where)
    else:
        raise InvalidInput(f"{where}: has neither a 'prompt' text nor 'messages'")
    if not ids:
        raise InvalidInput(f"{where}: an empty prompt; a model needs a token to go on from")
    return ids, text


def encode_text(text: str, tokenizer: Any, where: str) -> list[int]:
    """Text as it stands, without special tokens added.

    Raises:
        Mismatch: the tokenizer drops or replaces characters of it.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if _folded(decoded) != _folded(text):
        raise Mismatch(
            f"{where}: the run's tokenizer does not know all of {text[:40]!r}; is this another "
            "tokenizer's probe set?"
        )
    return ids


def check_length(n_tokens: int, context: int | None, where: str) -> None:
    """Raise :class:`InvalidInput` for more tokens than a model can take."""
    if context is not None and n_tokens > context:
        raise InvalidInput(f"{where}: {n_tokens} tokens, the model can take {context}")


def check_ids(ids: Sequence[int], vocabulary: int | None, where: str) -> None:
    """Raise :class:`Mismatch` for an id that the model has no logit for."""
    if vocabulary is not None and ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise Mismatch(
            f"{where}: token id {wrong}, the model has {vocabulary}; is this another tokenizer's "
            "probe set?"
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """What tells tokenizers apart: sha256 of the vocabulary and special tokens, 16 digits."""
    special = sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items())
    content = json.dumps([sorted(tokenizer.get_vocab().items()), special])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_same_tokenizer(one: Any, two: Any) -> None:
    """Raise :class:`Mismatch` unless two tokenizers give every token the same id."""
    a, b = one.get_vocab(), two.get_vocab()
    if a != b:
        token = min((a.items() ^ b.items()), key=lambda item: (item[1], item[0]))[0]
        raise Mismatch(
            f"the two models have different tokenizers: {token!r} is {a.get(token)} in one and "
            f"{b.get(token)} in the other; their logits cannot be combined"
        )


def _encode_response(
    line: Mapping[str, Any], prompt_ids: list[int], prompt: str, tokenizer: Any, where: str
) -> tuple[list[int], str]:
    """A line's response as (token ids, text).

    A sampled response follows the prompt's tokens as they are. So where the tokens of the whole text
    begin with the prompt's, the rest is the response; where the text's last and first characters
    would merge into one token, the response is tokenised alone.
    """
    if "response_ids" in line:
        ids = _as_ids(line["response_ids"], where)
        kept = line.get("response")
        return ids, kept if isinstance(kept, str) else tokenizer.decode(ids)
    text = line["response"]
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: 'response' is not text")
    whole = encode_text(prompt + text, tokenizer, where) if text else list(prompt_ids)
    if whole[: len(prompt_ids)] == prompt_ids:
        ids = whole[len(prompt_ids) :]
    else:
        ids = encode_text(text, tokenizer, where)
        joined = tokenizer.decode([*prompt_ids, *ids], clean_up_tokenization_spaces=False)
        if joined != prompt + text:
            raise InvalidInput(
                f"{where}: the response's first token merges with the prompt's last, and apart they "
                "read otherwise; give 'prompt_ids' and 'response_ids'"
            )
    if line.get("eos"):
        if tokenizer.eos_token_id is None:
            raise InvalidInput(f'{where}: has "eos", and the tokenizer has no end token')
        ids = [*ids, tokenizer.eos_token_id]
    return ids, text


def _render(messages: object, tokenizer: Any, where: str) -> str:
    """Messages by the chat template, with the opening of the answer, as at training."""
    if not tokenizer.chat_template:
        raise InvalidInput(f"{where}: has 'messages', and the tokenizer no chat template")
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever the template refuses
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f"{where}: the chat template refuses its messages: {first}") from error
    return text


def _as_ids(value: object, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise InvalidInput(f"{where}: token ids are a list of whole numbers")
    return value


def _folded(text: str) -> str:
    """Text without what tokenizers may change in good faith: spaces, case, compatible forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
