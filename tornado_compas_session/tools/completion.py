"""What a shell runs so that Tab completes the commands and their flags."""

from __future__ import annotations

from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")

# The bash of macOS is too old for `mapfile`; no word of ours has a blank in it.
_BASH = """\
_tornado_compas_session() {{
    local words
    case ${{COMP_WORDS[COMP_CWORD > 1]}} in
{cases}        *) words="{commands} --help --version" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _tornado_compas_session {program}
"""
_FISH = """\
complete -c {program} -f
complete -c {program} -n __fish_use_subcommand -a '{commands}'
{cases}"""
#: A line for each command, and what comes before all of them.
_FORMS = {
    "bash": ('        {name}) words="{words}" ;;\n', _BASH),
    # zsh can play bash.
    "zsh": (
        '        {name}) words="{words}" ;;\n',
        "autoload -U +X bashcompinit && bashcompinit\n" + _BASH,
    ),
    "fish": (
        "complete -c {program} -n '__fish_seen_subcommand_from {name}' -a '{words}'\n",
        _FISH,
    ),
}


def completion(shell: str, program: str, words: Mapping[str, list[str]]) -> str:
    """
    The script for one of `SHELLS`, of the words that may follow each command; it needs
    nothing of ours when Tab is pressed.
    """
    line, form = _FORMS[shell]
    cases = "".join(
        line.format(program=program, name=name, words=" ".join(offered))
        for name, offered in words.items()
    )
    return form.format(program=program, commands=" ".join(words), cases=cases)
