"""One vLLM server: what it is, which adapters it has, what it completes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import SamplingConfig
from alignkit.engine.client import Client, Refused, Unanswered
from alignkit.engine.request import Request, body_of, completion_of
from alignkit.sampling.generate import Completion


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself.

    Attributes:
        version: of vLLM.
        name: of its base model.
        root: the folder or hub id that it read.
        max_length: most tokens of a prompt and its completion; None where it does not say.
    """

    version: str
    name: str
    root: str
    max_length: int | None


class VllmServer:
    """A vLLM server at an address.

    Args:
        url: the address.
        timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url, self.model = url, ""  # the model that is asked: the base, or an adapter once one was loaded
        self._client = Client(url, timeout=timeout)

    def close(self) -> None:
        self._client.close()

    def describe(self) -> Served:
        """Ask what it serves; from then on its base model is asked.

        Raises:
            Unanswered: nobody answers.
            Refused: it is no vLLM server.
        """
        try:
            version = self._client.ask("/version")["version"]
            entries = self._client.ask("/v1/models")["data"]
            (base, *_) = [entry for entry in entries if not entry.get("parent")]
            served = Served(str(version), str(base["id"]), str(base.get("root")), base.get("max_model_len"))
        except Refused as error:
            raise Refused(f"is no vLLM server: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused("is no vLLM server: it does not say which model it serves") from error
        self.model = served.name
        return served

    def takes_adapters(self) -> bool:
        """Tell whether adapters can be loaded while it runs."""
        try:
            self._client.tell("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except Refused as error:
            return "HTTP 404" not in str(error)
        return True

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, special tokens typed in it among them.

        Raises:
            Unanswered, Refused: it does not say.
        """
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        tokens = self._client.ask("/tokenize", body).get("tokens")
        if not isinstance(tokens, list):
            raise Refused("/tokenize answers no tokens")
        return tokens

    def knows_token(self, token: int) -> bool:
        """Tell whether a token is of the vocabulary.

        Raises:
            Unanswered: nobody answers.
        """
        body = {"model": self.model, "prompt": [token], "max_tokens": 1, "temperature": 0.0}
        try:
            self._client.ask("/v1/completions", body)
        except Refused:
            return False
        return True

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter, which is asked from now on; one of this name that is there already is the same.

        Raises:
            Unanswered, Refused: it has not been loaded.
        """
        try:
            self._client.tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except Refused as error:
            if "already been loaded" not in str(error):
                raise
        self.model = name

    def unload(self, name: str) -> None:
        """Take an adapter away, if it is there."""
        try:
            self._client.tell("/v1/unload_lora_adapter", {"lora_name": name})
        except (Refused, Unanswered):
            return

    def complete(
        self, request: Request, sampling: SamplingConfig, *, eos_ids: Sequence[int], num_tokens: int, seed: int
    ) -> Completion:
        """Complete one prompt.

        Args:
            request: what is wanted.
            sampling: settings without problems and without schedules.
            eos_ids: the tokens that end a response.
            num_tokens: of the vocabulary.
            seed: of the whole.

        Raises:
            Unanswered: nobody answers.
            Refused: what is answered is no completion.
        """
        body: dict[str, Any] = body_of(request, sampling, model=self.model, eos_ids=eos_ids, seed=seed)
        answered = self._client.ask("/v1/completions", body)
        return completion_of(answered, sampling, eos_ids=eos_ids, num_tokens=num_tokens)
