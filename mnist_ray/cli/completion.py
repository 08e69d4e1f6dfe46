"""Completion of commands, options, packaged specs and runs in bash and zsh."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mnist_ray.cli.arguments import DEFAULT_STORAGE, add_command

# The runs are looked up by the shell itself: Python would take longer to start than people wait for a Tab.
SCRIPT = """\
_mnist_ray_runs() {{
    local storage={storage} index folder
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ ${{COMP_WORDS[index]}} == --storage ]]; then storage=${{COMP_WORDS[index + 1]}}; fi
    done
    for folder in "${{storage/#\\~/$HOME}}"/*/record; do
        folder=${{folder%/record}}; folder=${{folder##*/}}
        # compgen runs what looks like a command in a word
        if [[ $folder != *[!A-Za-z0-9._-]* ]]; then printf '%s\\n' "$folder"; fi
    done
}}

_mnist_ray() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} words=""
    if ((COMP_CWORD == 1)); then
        words="{commands}"
    elif [[ $current == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
    elif [[ $previous == --run ]]; then
        words=$(_mnist_ray_runs)
    elif [[ " {options_with_value} " != *" $previous "* ]]; then
        case ${{COMP_WORDS[1]}} in
{arguments}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}

complete -o default -F _mnist_ray mnist-ray
"""
FOR_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def add_completion_command(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add completion, which describes the whole `parser`, to its `commands`."""

    def print_script(arguments: argparse.Namespace) -> int:
        print(completion_script(parser, commands.choices, arguments.shell), end="")
        return 0

    text = "print the completion of commands, options, specs and runs for a shell"
    completion = add_command(commands, "completion", print_script, text)
    completion.epilog = 'put this line into ~/.bashrc or ~/.zshrc: eval "$(mnist-ray completion bash)"; zsh for zsh'
    completion.add_argument("shell", choices=["bash", "zsh"])


def completion_script(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], shell: str
) -> str:
    """Return the script that makes a shell complete `mnist-ray`; what it does not know, it takes for files."""
    every = [action for command in commands.values() for action in _shown(command)]
    flags, with_value = (
        {option for action in every if (action.nargs == 0) == is_flag for option in action.option_strings}
        for is_flag in (True, False)
    )
    script = SCRIPT.format(
        storage=DEFAULT_STORAGE,
        commands=" ".join([*commands, *_options(parser)]),
        options="\n".join(_cases(commands, lambda command: f'"{" ".join(_options(command))}"')),
        options_with_value=" ".join(sorted(with_value - flags)),
        arguments="\n".join(_cases(commands, _arguments)),
    )
    return (FOR_ZSH if shell == "zsh" else "") + script


def _cases(
    commands: Mapping[str, argparse.ArgumentParser], words_of: Callable[[argparse.ArgumentParser], str]
) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, command in commands.items():
        names.setdefault(words_of(command), []).append(name)
    for words, alike in names.items():
        if words:
            yield f"            {' | '.join(alike)}) words={words} ;;"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in _shown(parser) for option in action.option_strings]


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the actions that help shows; argparse has no public name for them."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _arguments(command: argparse.ArgumentParser) -> str:
    """Return what the shell offers in the place of a command's arguments; "" for files."""
    from mnist_ray.config import packaged_specs

    for action in _shown(command):
        if not action.option_strings:
            if action.dest in ("run", "runs"):
                return "$(_mnist_ray_runs)"
            if action.dest == "spec" or command.prog.endswith(" specs"):
                return f'"{" ".join(packaged_specs())}"'
            if action.choices:
                return f'"{" ".join(map(str, action.choices))}"'
    return ""
