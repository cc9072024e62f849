"""All commands in the order of `alignkit --help`, and how one of them is run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alignkit.cli.ends import run_to_its_end
from alignkit.cli.figures import evaluate, score
from alignkit.cli.pipelines import demo, run_pipeline
from alignkit.cli.responses import chat, compare, generate, next_token
from alignkit.cli.runs import repeat, report, runs
from alignkit.cli.serving import export, merge, verify
from alignkit.cli.stages import STAGES, inspect, plan, smoke, stage_command, stage_help
from alignkit.errors import AlignkitError, close_to


class Commands(TyperGroup):
    """The commands of alignkit; a setting typed as an option, or the other way round, is told how it is typed."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AlignkitError as error:
            command = self.commands.get(ctx.invoked_subcommand or "")
            options = {option: each for each in (command.params if command else ()) for option in each.opts}
            error.problems = tuple(_option_hint(line, options) for line in error.problems)
            raise
        except Exception as error:
            # Of the parser's errors only that of an unknown option has these two; its class has no public name.
            if hasattr(error, "option_name") and hasattr(error, "possibilities"):
                unknown_option: Any = error
                unknown_option.message += _settings_hint(error)
            raise


def _settings_hint(error: Any) -> str:
    """Say how a setting is typed, where the command takes settings and has no option that is spelled alike."""
    name, near = error.option_name.lstrip("-"), [option.lstrip("-") for option in error.possibilities or ()]
    if "words" not in [parameter.name for parameter in error.ctx.command.params]:
        return ""
    if name in ("c", "config"):
        return "; a configuration file is given as config=FILE"
    if not error.option_name.startswith("--"):
        return _long_options(error)
    if close_to(name, near):
        return ""
    from alignkit.jobs import JOBS
    from alignkit.mistakes import setting_named

    command = error.ctx.command.name
    places = (setting_named(stage, name) for stage in ([command] if command in JOBS else STAGES))
    setting = next(filter(None, places), None)
    return f"; a setting is typed without dashes, as {setting or 'KEY'}=VALUE"


def _option_hint(line: str, options: Mapping[str, Any]) -> str:
    """Say how an option is typed, where a line refuses it as a setting that is unknown."""
    found = re.match(r"unknown key '(\w+)'", line)
    option = f"--{found[1].replace('_', '-')}" if found else ""
    if found is None or option not in options:
        return line
    return f"{found[0]}: it is an option, typed as {option}{'' if options[option].is_flag else ' VALUE'}"


def _long_options(error: Any) -> str:
    """Say which options of the command begin with the letter of a short one that it has not."""
    options = [option for parameter in error.ctx.command.params for option in parameter.opts]
    meant = [option for option in options if option.startswith(f"--{error.option_name[1:2]}")]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


app = typer.Typer(
    name="alignkit",
    cls=Commands,
    help="Align a pretrained language model by SFT, reward models, DPO and PPO, and measure the result.",
    rich_markup_mode=None,  # Rich doubles the time of --help
    pretty_exceptions_enable=False,  # a traceback with locals can print tokens
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"alignkit {version('alignkit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _stage in STAGES:
    app.command(_stage, help=stage_help(_stage))(stage_command(_stage))
app.command("run")(run_pipeline)
app.command()(inspect)
app.command()(plan)
app.command()(smoke)
app.command()(generate)
app.command("next")(next_token)
app.command()(chat)
app.command()(compare)
app.command()(evaluate)
app.command()(merge)
app.command()(verify)
app.command()(export)
app.command()(score)
app.command()(report)
app.command()(demo)
app.command()(repeat)
app.add_typer(runs, name="runs")


def main() -> None:
    """Run the command that the words of this process name."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    run_to_its_end(lambda: app(args=_with_info(sys.argv[1:])))


def _with_info(argv: list[str]) -> list[str]:
    """`--info` alone means `--info all`, as in Hydra."""
    at = argv.index("--info") if "--info" in argv else -1
    if at >= 0 and (at + 1 == len(argv) or "=" in argv[at + 1] or argv[at + 1].startswith("-")):
        return [*argv[: at + 1], "all", *argv[at + 1 :]]
    return argv
