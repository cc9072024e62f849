"""Chat with one or several models, in the template and with the stop ids of their training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from alignkit.config import SamplingConfig
from alignkit.data.encode.replies import Piece, ReplyReader, Spec, reply_spec
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.tool_calls import Call, name_of
from alignkit.errors import AlignkitError, ConfigError, did_you_mean
from alignkit.evaluate.arguments import check_models
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.shown_reply import ShownReply
from alignkit.evaluate.tools_file import Tools, check_tools, read_tools_file
from alignkit.jobs import ChatJob, out_of_bounds
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.sampling.generate import Completion, cut_at_stop
from alignkit.sampling.settings import check_sampling

_SETTINGS = {item.name: item for item in fields(SamplingConfig) if item.name not in ("do_sample", "stop")}
_HELP = (
    "/reset forgets the conversation   /system TEXT begins a new one under TEXT   /save FILE writes it as JSON lines\n"
    "/result TEXT gives the result of a call, on one line; of several calls one after the other\n"
    f"/SETTING VALUE changes the sampling: {', '.join(_SETTINGS)}; none removes it   /quit or Ctrl-D leaves"
)

Show = Callable[[Piece], None]


def run(
    job: ChatJob,
    *,
    runs: Sequence[str],
    lines: Iterable[str],
    tools_path: Path | None = None,
    hide_reasoning: bool = False,
) -> None:
    """Answer line by line until there are no more.

    Args:
        job: the settings.
        runs: the models, which answer one after the other, each with its own history.
        lines: what the user types; a line that begins with `/` is a command.
        tools_path: a file of tools that the models may call.
        hide_reasoning: do not show what a model thinks before its answer.

    Raises:
        ConfigError, DataError, ModelError: the user's mistake, before the first line is read.
    """
    with run_log(ASIDE), explain_out_of_memory("take model.dtype=bfloat16, or fewer models"):
        tools = _check(job, runs, tools_path)
        models = [replace(job.model, name=name) for name in runs]
        policies = [ServedModel.of(model, job.template, chosen=job.data) for model in models]
        talk = Chat(policies, job.sampling, seed=job.seed, tools=tools, hide_reasoning=hide_reasoning)
        problem = talk.begin(job.system or "")
        if problem:
            raise ConfigError(f"system: {problem}")
        for policy in policies:
            check_tools(policy, tools, tools_path)
        for policy in policies:
            policy.load(seed=job.seed)
    console = SafeConsole()
    for line in lines:
        text = line.rstrip("\n")
        if text.strip() in ("/quit", "/exit"):
            return
        name, _, rest = text.partition(" ")
        if name == "/result":
            talk.result(rest.strip(), console)
        elif text.startswith("/"):
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
        tools: that the models may call.
        hide_reasoning: what a model thinks is not shown.
    """

    policies: Sequence[ServedModel]
    sampling: SamplingConfig
    seed: int = 0
    histories: list[list[Message]] = field(default_factory=list)
    num_turns: int = 0
    tools: Tools = ()
    hide_reasoning: bool = False

    def __post_init__(self) -> None:
        self._specs = [reply_spec(policy.reply_form) for policy in self.policies]

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
        self._ask([[Message("user", text)] for _ in self.policies], console)

    def result(self, text: str, console: Console) -> None:
        """Give every model that waits for a tool's result this one, and let it go on once it has them all."""
        waiting = [open_calls(history) for history in self.histories]
        if not any(waiting):
            console.print("no call waits for a result", style="dim", markup=False, highlight=False)
            return
        added = []
        for history, calls in zip(self.histories, waiting, strict=True):
            results = [_result(text, call) for call in calls[:1]]
            if len(calls) > 1:
                history += results
                console.print(_wanted(calls[1]), style="dim", markup=False, highlight=False)
            added.append(results if len(calls) == 1 else [])
        self._ask(added, console)

    def _ask(self, added: Sequence[Sequence[Message]], console: Console) -> None:
        """Let each model answer the messages that are new to it; one without any says nothing."""
        asked = list(zip(self.policies, self._specs, self.histories, added, strict=True))
        for policy, spec, history, messages in asked:
            if messages and len(self.policies) > 1:
                console.print(Text(policy.name, style="bold cyan"))
            if messages:
                self._answer(policy, spec, history, messages, console)
        self.num_turns += any(added)

    def _answer(
        self, policy: ServedModel, spec: Spec | None, history: list[Message], added: Sequence[Message], console: Console
    ) -> None:
        conversation = Conversation((*history, *added), tools=self.tools)
        try:
            (ids,) = policy.encode([("this", conversation)])
            policy.check_lengths([("this conversation", conversation)], [ids], self.sampling)
            shown = ShownReply(console, hide_reasoning=self.hide_reasoning)
            stream = Stream(policy, self.sampling, ReplyReader(spec, policy.decode(ids), self.tools), shown.add)
            done = self._complete(policy, ids, stream)
        except AlignkitError as error:
            console.print(f"{error} (/reset starts a new conversation)", style="red", markup=False, highlight=False)
            return
        answer = stream.finish(done)
        note = " … (cut off)" if done.finish_reason == "length" else ""
        console.print(Text(note, style="dim"))
        history += [*added, answer]
        if answer.tool_calls:
            console.print(_wanted(answer.tool_calls[0]), style="dim", markup=False, highlight=False)

    def _complete(self, policy: ServedModel, ids: list[int], stream: Stream) -> Completion:
        try:
            (done,) = policy.complete(
                [ids],
                self.sampling,
                seed=self.seed,
                batch_size=1,
                keys=[f"turn {self.num_turns}"],
                on_token=lambda _, token: stream.add(token),
            )
        except KeyboardInterrupt:  # that is enough of this answer
            return Completion(stream.ids, "length", 0.0)
        return done

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
        known = ("help", "reset", "system", "save", "result", "quit", *_SETTINGS)
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
        tools = {"tools": list(self.tools)} if self.tools else {}
        rows = [
            {"model": policy.name, "sampling": asdict(self.sampling), **tools, "messages": [*map(_as_json, history)]}
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
    """Shows a response as it comes: never half a character, and nothing that a stop string may yet take back.

    Args:
        policy: that generates it.
        sampling: the settings in force.
        reader: of the response; one that knows no parts is not given what every answer begins with.
        show: is given each piece.
    """

    def __init__(self, policy: ServedModel, sampling: SamplingConfig, reader: ReplyReader, show: Show) -> None:
        self.policy, self.sampling, self.reader, self.show = policy, sampling, reader, show
        self.ids: list[int] = []
        self.num_read = 0
        self.held_back = max((len(stop) for stop in sampling.stop), default=1) - 1
        self.has_parts = reader.knows_parts
        self.lead = "" if self.has_parts else policy.template.response_lead

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = self.policy.decode(self.ids)
        if not (self.lead and self.lead.startswith(text)):
            self._read(cut_at_stop(text.removeprefix(self.lead), self.sampling).rstrip("�"), self.held_back)

    def finish(self, done: Completion) -> Message:
        """Show the rest; return the whole response."""
        whole = self.policy.reply if self.has_parts else self.policy.text
        self._read(whole(done, self.sampling), 0)
        message, rest = self.reader.finish()
        for piece in rest:
            self.show(piece)
        return message

    def _read(self, text: str, held_back: int) -> None:
        end = len(text) - held_back
        if end > self.num_read:
            for piece in self.reader.feed(text[self.num_read : end]):
                self.show(piece)
            self.num_read = end


def open_calls(history: Sequence[Message]) -> list[Call]:
    """List the calls at the end of a conversation that have no result yet."""
    num_results = len([*takewhile(lambda message: message.role == "tool", reversed(history))])
    callers = history[: len(history) - num_results][-1:]
    return [call for caller in callers for call in caller.tool_calls[num_results:]]


def _result(text: str, call: Call) -> Message:
    return Message("tool", text, name=name_of(call), tool_call_id=str(call.get("id", "")))


def _wanted(call: Call) -> str:
    return f"/result TEXT gives the result of {name_of(call)}"


def _as_json(message: Message) -> dict[str, Any]:
    beside = {
        "reasoning_content": message.reasoning,
        "tool_calls": list(message.tool_calls),
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.content} | {key: value for key, value in beside.items() if value}


def _check(job: ChatJob, runs: Sequence[str], tools_path: Path | None) -> Tools:
    problems, tools = check_sampling(job.sampling) + check_models(runs, job.model), Tools()
    try:
        tools = read_tools_file(tools_path)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return tools
