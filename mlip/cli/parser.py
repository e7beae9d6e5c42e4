"""An argument parser whose errors are one line, say what was probably meant, and exit with 2."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Used for `mlip` and, by argparse, for each of its commands."""

    def error(self, message: str) -> NoReturn:
        """Print the error, with the nearest of the known choices, and exit."""
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += _meant(match[1], re.findall(r"[\w.-]+", match[2]))
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line; nothing at all is a question, though not a complete command.

        KEY=VALUE may stand anywhere. An unknown option is compared with those of the command it was
        given to.
        """
        args = list(sys.argv[1:] if argv is None else argv)
        if not args:
            self.print_help(sys.stderr)
            self.exit(2)
        parsed, unknown = self.parse_known_args(args)
        if unknown and all(re.match(r"[^-=][^=]*=", word) for word in unknown):
            unknown = self._chosen(parsed).take(parsed, unknown)
        if unknown:
            parser = self._chosen(parsed)
            words = [w.split("=")[0] for w in unknown if w.startswith("-")]
            known = [option for action in parser._actions for option in action.option_strings]
            hint = _meant(words[0], known) if words else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def take(self, parsed: argparse.Namespace, words: list[str]) -> list[str]:
        """Add words to the command's list, of which argparse takes only what stands together.

        Returns:
            Those that no list takes.
        """
        lists = [a for a in self._actions if not a.option_strings and a.nargs in ("+", "*")]
        if not lists:
            return words
        setattr(parsed, lists[-1].dest, [*getattr(parsed, lists[-1].dest), *words])
        return []

    def _chosen(self, parsed: argparse.Namespace) -> Parser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(parsed, action.dest, ""))
                return chosen._chosen(parsed) if chosen else self
        return self


def _meant(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
