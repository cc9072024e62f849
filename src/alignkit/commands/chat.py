"""Chat with one or several models, in the template and with the stop ids of their training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from alignkit.config import SamplingConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import AlignkitError, ConfigError, did_you_mean
from alignkit.evaluate.arguments import check_models
from alignkit.evaluate.served_model import ServedModel
from alignkit.jobs import ChatJob, out_of_bounds
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import run_log
from alignkit.sampling.generate import Completion, cut_at_stop
from alignkit.sampling.settings import check_sampling
from alignkit.terminal import printable

_SETTINGS = {item.name: item for item in fields(SamplingConfig) if item.name not in ("do_sample", "stop")}
_HELP = (
    "/reset forgets the conversation   /system TEXT begins a new one under TEXT   /save FILE writes it as JSON lines\n"
    f"/SETTING VALUE changes the sampling: {', '.join(_SETTINGS)}; none removes it   /quit or Ctrl-D leaves"
)

Write = Callable[[str], None]


def run(job: ChatJob, *, runs: Sequence[str], lines: Iterable[str]) -> None:
    """Answer line by line until there are no more.

    Args:
        job: the settings.
        runs: the models, which answer one after the other, each with its own history.
        lines: what the user types; a line that begins with `/` is a command.

    Raises:
        ConfigError, ModelError: the user's mistake, before the first line is read.
    """
    with run_log(), explain_out_of_memory("take model.dtype=bfloat16, or fewer models"):
        _check(job, runs)
        policies = [ServedModel.of(replace(job.model, name=name), job.template) for name in runs]
        talk = Chat(policies, job.sampling, seed=job.seed)
        problem = talk.begin(job.system or "")
        if problem:
            raise ConfigError(f"system: {problem}")
        for policy in policies:
            policy.load(seed=job.seed)
    console = SafeConsole()
    for line in lines:
        text = line.rstrip("\n")
        if text.strip() in ("/quit", "/exit"):
            return
        if text.startswith("/"):
            console.print(talk.command(text), markup=False, highlight=False, style="dim")
        elif text.strip():
            talk.say(text, console)


@dataclass
class Chat:
    """The state of a conversation.

    Attributes:
        policies: the models, loaded before `say`.
        sampling: the settings in force.
        seed: of every draw.
        histories: the messages that each model sees.
        num_turns: since the conversation began; each turn has random draws of its own.
    """

    policies: Sequence[ServedModel]
    sampling: SamplingConfig
    seed: int = 0
    histories: list[list[Message]] = field(default_factory=list)
    num_turns: int = 0

    def begin(self, system: str = "") -> str:
        """Start a new conversation; return why this system prompt is refused, or nothing."""
        opening = [Message("system", system)] if system else []
        for policy in self.policies:
            reason = policy.template.refused.get("system") if system else None
            if reason is not None:
                return f"the template of {policy.name} has no place for a system prompt: {reason}"
        self.histories, self.num_turns = [list(opening) for _ in self.policies], 0
        return ""

    def say(self, text: str, console: Console) -> None:
        """Give every model the user's message, and show each answer as it is generated."""
        for policy, history in zip(self.policies, self.histories, strict=True):
            if len(self.policies) > 1:
                console.print(Text(policy.name, style="bold cyan"))
            self._answer(policy, history, text, console)
        self.num_turns += 1

    def _answer(self, policy: ServedModel, history: list[Message], text: str, console: Console) -> None:
        conversation = Conversation((*history, Message("user", text)))
        stream = Stream(policy, self.sampling, lambda part: console.print(Text(printable(part)), end=""))
        try:
            ids = policy.encode([("this", conversation)])
            policy.check_lengths([("this conversation", conversation)], ids, self.sampling)
            (done,) = policy.complete(
                ids,
                self.sampling,
                seed=self.seed,
                batch_size=1,
                keys=[f"turn {self.num_turns}"],
                on_token=lambda _, token: stream.add(token),
            )
        except AlignkitError as error:
            console.print(f"{error} (/reset starts a new conversation)", style="red", markup=False, highlight=False)
            return
        except KeyboardInterrupt:  # that is enough of this answer
            done = Completion(stream.ids, "length", 0.0)
        answer = stream.finish(done)
        note = " … (cut off)" if done.finish_reason == "length" else ""
        console.print(Text(note, style="dim"))
        history += [Message("user", text), Message("assistant", answer)]

    def command(self, line: str) -> str:
        """Run a line that begins with `/`; return what to tell the user."""
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        if name == "help":
            return _HELP
        if name == "reset":
            system = [message.content for message in self.histories[0][:1] if message.role == "system"]
            return self.begin(*system) or "a new conversation"
        if name == "system":
            return self.begin(value) or (
                "a new conversation with this system prompt" if value else "a new conversation without system prompt"
            )
        if name == "save":
            return self._save(value)
        if name in _SETTINGS:
            return self._set(name, value)
        known = ("help", "reset", "system", "save", "quit", *_SETTINGS)
        return f"there is no /{name}{did_you_mean(name, known) or ': /help has them all'}"

    def _set(self, name: str, text: str) -> str:
        if not text:
            return f"{name} is {getattr(self.sampling, name)}"
        try:
            value = None if text == "none" else json.loads(text)
        except ValueError:
            value = text
        default = _SETTINGS[name].default
        if value is None and isinstance(default, int):
            return f"{name} needs a number; it is {getattr(self.sampling, name)}"
        if isinstance(default, int) and (not isinstance(value, int) or isinstance(value, bool)):
            return f"{name} is {text!r}: it must be a whole number"
        change: dict[str, Any] = {name: value}
        changed = replace(self.sampling, **change)
        problems = out_of_bounds(changed) or check_sampling(changed, "")
        if problems:
            return "\n".join(problems)
        self.sampling = changed
        return f"{name} is {value}"

    def _save(self, name: str) -> str:
        if not name:
            return "/save FILE: name the file"
        path = Path(name)
        rows = [
            {"model": policy.name, "sampling": asdict(self.sampling), "messages": [_as_json(m) for m in history]}
            for policy, history in zip(self.policies, self.histories, strict=True)
        ]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            return f"{path} cannot be written: {error.strerror}"
        return f"saved in {path}"


class Stream:
    """Shows a response as it comes: never half a character, and nothing that a stop string may yet take back."""

    def __init__(self, policy: ServedModel, sampling: SamplingConfig, write: Write) -> None:
        self.policy, self.sampling, self.write = policy, sampling, write
        self.ids: list[int] = []
        self.num_shown = 0
        self.held_back = max((len(stop) for stop in sampling.stop), default=1) - 1

    def add(self, token: int) -> None:
        self.ids.append(token)
        lead, text = self.policy.template.response_lead, self.policy.decode(self.ids)
        if not lead.startswith(text):
            self._show(cut_at_stop(text.removeprefix(lead), self.sampling).rstrip("�"), self.held_back)

    def finish(self, done: Completion) -> str:
        """Show the rest; return the whole response."""
        text = self.policy.text(done, self.sampling)
        self._show(text, 0)
        return text

    def _show(self, text: str, held_back: int) -> None:
        end = len(text) - held_back
        if end > self.num_shown:
            self.write(text[self.num_shown : end])
            self.num_shown = end


def _as_json(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _check(job: ChatJob, runs: Sequence[str]) -> None:
    if problems := check_sampling(job.sampling) + check_models(runs, job.model):
        raise ConfigError(*problems)
