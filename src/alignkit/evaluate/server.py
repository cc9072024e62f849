"""An OpenAI-compatible server: which models it has, how it renders and answers a chat, how it scores tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.engine.client import Client, Refused, Unanswered, is_address
from alignkit.errors import ConfigError, did_you_mean

_TIMEOUT = 300.0  # seconds; on a CPU a large model takes long over an answer

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a server answered to a chat.

    Attributes:
        text: of the assistant.
        finish_reason: `stop` where the model ended the answer, `length` where `max_tokens` did.
        num_prompt_tokens: of the chat as the server rendered it; None where it does not say.
        num_tokens: of the answer, an end token that is counted included; None where it does not say.
        logprobs: of the tokens of the answer, in nats; empty where it does not say.
    """

    text: str
    finish_reason: str
    num_prompt_tokens: int | None
    num_tokens: int | None
    logprobs: Sequence[float]


class Server:
    """A server at an address, and one of its models.

    Args:
        url: the address, with or without `/v1`. Where `OPENAI_API_KEY` is set, requests carry it.

    Raises:
        ConfigError: it is no address of a server.
    """

    def __init__(self, url: str) -> None:
        if not is_address(url):
            raise ConfigError(f"--server {url}: give an address such as http://localhost:8000")
        self.url, self.model = url, ""
        self._client = Client(url, timeout=_TIMEOUT)

    def close(self) -> None:
        self._client.close()

    def choose(self, name: str | None, folder: Path) -> None:
        """Choose the model that is asked from now on.

        Args:
            name: of the model; None takes the one that the server read from `folder`, or its only one.
            folder: of the run.

        Raises:
            ConfigError: there is no server, it is none of this kind, or it has no such model.
        """
        try:
            entries = self._ask("/v1/models").get("data")
        except Refused as error:
            raise ConfigError(f"--server {self.url} is no OpenAI-compatible server: GET /v1/models: {error}") from error
        found = entries if isinstance(entries, list) else []
        roots = {
            str(entry["id"]): str(entry.get("root")) for entry in found if isinstance(entry, dict) and "id" in entry
        }
        if not roots:
            raise ConfigError(f"--server {self.url} is no OpenAI-compatible server: GET /v1/models lists no model")
        names = ", ".join(roots)
        if name is not None and name not in roots:
            raise ConfigError(f"--model {name}: {self.url} serves {names}{did_you_mean(name, roots)}")
        own = [each for each, root in roots.items() if folder.resolve() in (Path(each).resolve(), Path(root).resolve())]
        own += [each for each in roots if each == folder.name] + (list(roots) if len(roots) == 1 else [])
        if name is None and not own:
            raise ConfigError(f"--server {self.url} serves {names}: say which with --model NAME")
        self.model = name or own[0]

    def chat(self, messages: Messages, *, max_tokens: int) -> Reply:
        """Answer a chat with the likeliest tokens.

        Raises:
            Refused: the server refuses it.
        """
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        try:
            answered = self._ask("/v1/chat/completions", {**body, "logprobs": True})
        except Refused:  # one that tells none may refuse the question
            answered = self._ask("/v1/chat/completions", body)
        try:
            choice, usage = answered["choices"][0], answered.get("usage") or {}
            scored = (choice.get("logprobs") or {}).get("content") or []
            return Reply(
                text=str(choice["message"].get("content") or ""),
                finish_reason=str(choice.get("finish_reason")),
                num_prompt_tokens=usage.get("prompt_tokens"),
                num_tokens=usage.get("completion_tokens"),
                logprobs=[float(token["logprob"]) for token in scored],
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Refused("the answer to /v1/chat/completions has not the form of the protocol") from error

    def prompt_ids(self, messages: Messages) -> list[int] | None:
        """Return the tokens that a chat is rendered to, before the answer; None where the server does not say.

        It is asked as vLLM is; llama.cpp answers the same question with no token.
        """
        body = {"model": self.model, "messages": list(messages), "add_generation_prompt": True}
        try:
            tokens = self._ask("/tokenize", body).get("tokens")
        except Refused:
            return None
        return tokens if isinstance(tokens, list) and tokens and all(isinstance(t, int) for t in tokens) else None

    def logprobs(self, ids: Sequence[int]) -> list[float] | None:
        """Return the log-probabilities of all given tokens but the first, in nats; None where the server cannot."""
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
        try:
            answered = self._ask("/v1/completions", {**body, "echo": True, "logprobs": 1})
            return [float(value) for value in answered["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)]]
        except (Refused, KeyError, IndexError, TypeError, ValueError):
            return None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request; the object that is answered.

        Raises:
            ConfigError: nobody answers, or a key is missing.
            Refused: an error is answered, or no object.
        """
        try:
            return self._client.ask(path, body)
        except Unanswered as error:
            raise ConfigError(f"--server {self.url} {error}") from error
