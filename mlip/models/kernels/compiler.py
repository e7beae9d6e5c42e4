"""C source to a loaded library: compiled once a machine with the system's compiler, then cached.

Nothing is compiled at installation. The first use of a kernel costs seconds, and the library waits
in the user's cache folder under a name made of source, flags, compiler and processor. Loading it
is running it, so a library that others could have written is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from mlip.errors import ConfigError

log = logging.getLogger("mlip")

MODES = ("auto", "torch", "compiled")
# Sums may be reordered (vectors need it); NaN and infinity stay what they are, and denormal numbers
# too, which -ffast-math would flush to zero in the whole process.
FLAGS = [
    *("-std=gnu11", "-O2", "-ftree-vectorize", "-march=native", "-fPIC", "-shared"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
    "-ffp-contract=fast",
]
WIDE = "-mprefer-vector-width=512"  # x86 only


def mode() -> str:
    """Which kernels to use: "auto" (compiled if there is a compiler), "torch" or "compiled".

    Raises:
        ConfigError: the environment variable MLIP_KERNELS says something else.
    """
    value = os.environ.get("MLIP_KERNELS", "auto")
    if value not in MODES:
        raise ConfigError(f"MLIP_KERNELS={value!r} is none of {', '.join(MODES)}")
    return value


@cache
def compiler() -> str | None:
    """Path of the C compiler: the environment variable CC, else cc, gcc or clang; or None."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for path in map(shutil.which, names) if path), None)


def usable() -> bool:
    """Whether compiled kernels are wanted and can be had.

    Raises:
        ConfigError: they are demanded (MLIP_KERNELS=compiled) and cannot be had.
    """
    wanted = mode()
    if wanted == "torch":
        return False
    reason = obstacle()
    if reason is None:
        return True
    if wanted == "compiled":
        raise ConfigError(f"MLIP_KERNELS=compiled, but {reason}")
    _tell_once(reason)
    return False


def load(source: str, what: str) -> ctypes.CDLL:
    """Compile `source` unless it has been, and load it.

    Args:
        source: a complete C file.
        what: said in the log while it compiles.

    Raises:
        ConfigError: it does not compile; the compiler's words are in the message.
    """
    flags = [*FLAGS, WIDE] if platform.machine() in ("x86_64", "AMD64") else FLAGS
    words = [source, *flags, _compiler_version(), _processor()]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:24]
    folder = _folder()
    library = folder / f"{key}.so"
    if not library.exists():
        with FileLock(folder / f"{key}.lock"):
            if not library.exists():
                log.info("compiling a kernel, once on this machine: %s", what)
                _compile(source, flags, library)
    return ctypes.CDLL(str(library))


def _compile(source: str, flags: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        code, target = Path(scratch, "kernel.c"), Path(scratch, "kernel.so")
        code.write_text(source)
        command = [str(compiler()), *flags, "-o", str(target), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(
                f"{' '.join(command[:2])} ... could not compile a kernel; MLIP_KERNELS=torch does "
                f"without. It said:\n{done.stderr[-2000:]}"
            )
        target.replace(library)


@cache
def obstacle() -> str | None:
    """Why compiled kernels cannot be had, or None; compiles a line of C to know."""
    if os.name != "posix":
        return "they are for Linux and macOS"
    if compiler() is None:
        return "there is no C compiler (cc, gcc or clang, or CC=PATH)"
    try:
        folder = _folder()
        load("int mlip_answer(void) { return 42; }\n", "a test of the compiler")
    except (ConfigError, OSError) as exc:
        return str(exc)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        return f"others may write to {folder}; make it yours alone (chmod go-w)"
    return None


@cache
def _tell_once(reason: str) -> None:
    log.info("kernels in PyTorch, which is slower: %s", reason)


def _folder() -> Path:
    root = Path(os.environ.get("MLIP_CACHE", "~/.cache/mlip-trainer")).expanduser()
    folder = root / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@cache
def _compiler_version() -> str:
    command = [str(compiler()), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@cache
def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
