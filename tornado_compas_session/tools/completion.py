"""What a shell runs so that Tab completes the commands and their flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: str, program: str, commands: Mapping[str, argparse.ArgumentParser]
) -> str:
    """The script for one of `SHELLS`; it needs nothing of ours when Tab is pressed."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return "\n".join([*write(program, commands), ""])


def _bash(
    program: str, commands: Mapping[str, argparse.ArgumentParser]
) -> Iterator[str]:
    function = f"_{program.replace('-', '_')}"
    yield f'# bash: eval "$({program} completion bash)"'
    yield f"{function}() {{"
    yield '    local words="--help --version"'
    yield "    case ${COMP_WORDS[1]} in"
    for name, parser in commands.items():
        words = [option for options, *_ in _flags(parser) for option in options]
        yield f'        {name}) words="{" ".join([*words, *_choices(parser)])}" ;;'
    yield "    esac"
    yield f'    ((COMP_CWORD == 1)) && words+=" {" ".join(commands)}"'
    yield "    local word=${COMP_WORDS[COMP_CWORD]}"
    # The bash of macOS is too old for `mapfile`; no word of ours has a blank in it.
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield f"complete -o default -F {function} {program}"


def _zsh(
    program: str, commands: Mapping[str, argparse.ArgumentParser]
) -> Iterator[str]:
    function = f"_{program.replace('-', '_')}"
    yield f"#compdef {program}"
    yield f'# zsh: eval "$({program} completion zsh)", after compinit'
    yield f"{function}() {{"
    yield "    if ((CURRENT == 2)); then"
    yield "        local -a commands=("
    for name, parser in commands.items():
        yield f"            {_quoted(f'{name}:{_about(parser)}')}"
    yield "        )"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    case $words[2] in"
    for name, parser in commands.items():
        yield f"        {name}) _arguments \\"
        for options, about, takes in _flags(parser):
            value = f":{takes}:" if takes else ""
            for option in options:
                yield f"            {_quoted(f'{option}[{about}]{value}')} \\"
        choices = " ".join(_choices(parser))
        yield f"            {_quoted(f'*::value:({choices})')} ;;"
    yield "    esac"
    yield "}"
    yield f"compdef {function} {program}"


def _fish(
    program: str, commands: Mapping[str, argparse.ArgumentParser]
) -> Iterator[str]:
    yield f"# fish: {program} completion fish | source"
    yield f"complete -c {program} -f"
    for name, parser in commands.items():
        first = f"complete -c {program} -n __fish_use_subcommand"
        yield f"{first} -a {name} -d {_quoted(_about(parser))}"
        then = f"complete -c {program} -n '__fish_seen_subcommand_from {name}'"
        for options, about, takes in _flags(parser):
            names = " ".join(
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in options
            )
            yield f"{then} {names}{' -r' if takes else ''} -d {_quoted(about)}"
        for choice in _choices(parser):
            yield f"{then} -a {choice}"


def _flags(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[list[str], str, str | None]]:
    """The names of each flag, what it is about, and what it takes."""
    for action in parser._actions:
        if action.option_strings:
            about = (action.help or "").partition(" [env:")[0].partition(";")[0]
            takes = None if action.nargs == 0 else action.metavar or action.dest
            clean = about.translate({ord(char): " " for char in "[]:"})
            yield list(action.option_strings), clean, str(takes) if takes else None


def _choices(parser: argparse.ArgumentParser) -> list[str]:
    """What may stand there without a flag."""
    return [
        str(choice)
        for action in parser._actions
        if not action.option_strings
        for choice in action.choices or ()
    ]


def _about(parser: argparse.ArgumentParser) -> str:
    return (parser.description or "").rstrip(".").replace(":", "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "") + "'"
