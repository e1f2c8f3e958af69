"""Write docs/cli.md, the reference of the command line, from the commands' own help.

Run by ``make docs``; a test fails when the file and the help differ.
"""

from pathlib import Path

import click

from trajkit.cli.main import cli

REFERENCE = Path(__file__).with_name("cli.md")
INTRODUCTION = """# The command line

Made from `trajkit --help` by `make docs`; do not edit.

Data goes to stdout, talk to stderr. Exit codes: 0; 1 for an error trajkit reports, in one line; 2 for
misuse; 130 for an interrupt. `TRAJKIT_STORE` names the store where `--store` does not.

Shell completion: put one of these into the shell's start file.

    eval "$(_TRAJKIT_COMPLETE=bash_source trajkit)"          # ~/.bashrc
    eval "$(_TRAJKIT_COMPLETE=zsh_source trajkit)"           # ~/.zshrc
    _TRAJKIT_COMPLETE=fish_source trajkit | source           # ~/.config/fish/config.fish
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    top = click.Context(cli, info_name="trajkit", terminal_width=100, **cli.context_settings)
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=top)
        parts.append(f"## trajkit {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    REFERENCE.write_text(reference())
