"""`mlip`: the list of commands, and what happens when one fails.

Nothing heavy is imported here, so `mlip --help` is instant; each command imports what it needs when
it runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from mlip import __version__
from mlip.allocator import keep_freed_memory
from mlip.cli import compare, data, doctor, evaluate, info, md, predict, relax, train
from mlip.cli.parser import Parser
from mlip.errors import MLIPError

COMMANDS = (train, evaluate, predict, relax, md, info, compare, data, doctor)
EPILOG = """exit codes: 0 done, 1 wrong input, 2 wrong usage or configuration, 3 did not converge,
130/143 interrupted after saving. MLIP_DEBUG=1 shows tracebacks.

example:
  mlip train data.train=my.extxyz
  mlip relax outputs/facet/*/potential.safetensors crystal.cif
"""


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="mlip",
        description="Train machine-learned interatomic potentials and use them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlip-trainer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse(argv)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("mlip")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    keep_freed_memory()
    shown = warnings.formatwarning
    warnings.formatwarning = _one_line
    try:
        return _flushed(args.run(args))
    except MLIPError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # `mlip info FILE | head`: nobody is left to read the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        code = getattr(error, "exit_code", None)  # an orderly end by a signal
        if isinstance(code, int):
            return _fail(f"stopped by {error}; continue with resume=auto", code)
        raise
    finally:
        warnings.formatwarning = shown
        log.removeHandler(handler)
        log.propagate = True


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Say a warning as errors are said; where in the code it arose is nothing to a user."""
    return f"warning: {message}\n"


def _flushed(code: int) -> int:
    """Write what is buffered now, so that a closed pipe shows here and not at exit."""
    sys.stdout.flush()
    return code


def _fail(message: str, code: int) -> int:
    if os.environ.get("MLIP_DEBUG"):
        import traceback

        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
