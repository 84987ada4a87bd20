"""What the scripts' command lines share. Imports no torch."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .config import did_you_mean
from .errors import UserError
from .files import named


class Parser(argparse.ArgumentParser):
    """Flags that are written out, below a text as it is. A slip is a `UserError`, without the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            near = did_you_mean(word, self._option_string_actions)
            self.error(f"unknown argument {word!r:.80}{near}; --help lists what there is")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def ending_in(*kinds: str) -> Callable[[str], str]:
    """The type of an argument that names a file to write: so that no other file is taken for it, and written over."""

    def name_of(text: str) -> str:
        if Path(text).suffix.lower() not in kinds:
            raise argparse.ArgumentTypeError(f"{text!r:.80} must end in {' or '.join(kinds)}")
        return text

    return name_of


def check_place(file: str) -> None:
    """Raise UserError or OSError where `file` could not be written, before much is done for it. Makes its folder."""
    if Path(file).is_dir():
        raise UserError(f"{file} is a folder; name a file")
    folder = Path(file).parent
    folder.mkdir(parents=True, exist_ok=True)
    with named(file):
        tempfile.TemporaryFile(dir=folder).close()
