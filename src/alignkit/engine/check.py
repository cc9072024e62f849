"""What is wrong with the section `engine`, before a server is asked."""

from __future__ import annotations

from dataclasses import fields

from alignkit.choices import Correction, EngineName
from alignkit.config import EngineConfig, TrainingEngineConfig
from alignkit.engine.client import is_address
from alignkit.errors import as_yaml


def check_engine(section: EngineConfig) -> list[str]:
    """List settings that have no effect beside each other, and servers that cannot be asked, one line each."""
    if section.name is EngineName.local:
        return [
            f"engine.{item.name}={as_yaml(value)} has no effect with engine.name=local: leave it out, or say "
            "engine.name=vllm"
            for item in fields(section)
            if (value := getattr(section, item.name)) != getattr(type(section)(), item.name)
        ]
    problems = []
    if not section.servers:
        problems.append("engine.name=vllm needs servers: engine.servers=[http://localhost:8000]")
    problems += [
        f"engine.servers: {url} is no address: give one such as http://localhost:8000"
        for url in section.servers
        if not is_address(url)
    ]
    if len(set(section.servers)) < len(section.servers):
        problems.append("engine.servers names an address twice: name each server once")
    if isinstance(section, TrainingEngineConfig) and section.correction is Correction.none and section.max_weight:
        problems.append(
            f"engine.max_weight={section.max_weight:g} has no effect with engine.correction=none: leave it out, or say "
            "engine.correction=truncated"
        )
    return problems
