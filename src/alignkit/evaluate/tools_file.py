"""Tools that a command is given as a file: what the model may call."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from alignkit.data.rows.call_order import check_calls
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.tools import Tool, name_of, read_tools
from alignkit.data.rows.values import RowError
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.prompts import Prompts
from alignkit.evaluate.served_model import ServedModel
from alignkit.yaml_size import size_problem

Tools = tuple[Tool, ...]


def read_tools_file(path: Path | None) -> Tools:
    """Read a JSON or YAML list of tools, spelled as in the column `tools` of a row; none where there is no file.

    Raises:
        ConfigError: it cannot be read, or is no list of tools, each with a name of its own.
    """
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8")
        content = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
        json.dumps(content)
        tools = read_tools(content)
    except OSError as error:
        raise ConfigError(f"--tools {path}: it cannot be read: {error.strerror}") from error
    except RowError as error:
        raise ConfigError(f"--tools {path}: {error}") from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        what = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
        raise ConfigError(f"--tools {path}: it is no {what} of tools: {_brief(error)}") from error
    if not tools:
        raise ConfigError(f"--tools {path}: it holds no tools")
    if twice := [name for name, count in Counter(map(name_of, tools)).items() if count > 1]:
        raise ConfigError(f"--tools {path}: two tools are named {', '.join(twice)}")
    return tools


def _yaml(text: str) -> Any:
    if problem := size_problem(text):
        raise ValueError(problem)
    return yaml.safe_load(text)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())


def check_tools(policy: ServedModel, tools: Tools, path: Path | None) -> None:
    """Refuse tools that the template of a model leaves out.

    Raises:
        DataError: one line, with the way out.
    """
    if tools:
        policy.encode([(f"--tools {path}", Conversation((Message("user", "…"),), tools=tools))])


def with_tools(prompts: Prompts, tools: Tools, path: Path | None) -> Prompts:
    """Give the tools to every prompt that has none of its own.

    Raises:
        ConfigError: all of them have.
        DataError: earlier turns of a prompt call what is no tool, one line each.
    """
    if not tools:
        return prompts
    if all(prompt.tools for _, prompt in prompts):
        raise ConfigError(f"--tools {path} has no effect: every prompt has tools of its own")
    problems = []
    for source, prompt in prompts:
        try:
            check_calls(prompt.messages, prompt.tools or tools)
        except RowError as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise DataError(*problems)
    return [(source, replace(prompt, tools=prompt.tools or tools)) for source, prompt in prompts]
