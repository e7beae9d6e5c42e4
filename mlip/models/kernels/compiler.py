"""C source to a loaded library: compiled once a machine with the system's compiler, then cached.

Nothing is compiled at installation. The first use of a kernel costs seconds, and the library waits
in the user's cache folder under a name made of source, flags, compiler and processor. Loading it
is running it, so a library that others could have written is not loaded: folder and file must
belong to the user and be writable by nobody else.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from mlip.cache_folder import cache_folder
from mlip.errors import ConfigError

log = logging.getLogger("mlip")

MODES = ("auto", "torch", "compiled", "triton")
# Sums may be reordered (vectors need it); NaN and infinity stay what they are, and denormal numbers
# too, which -ffast-math would flush to zero in the whole process.
FLAGS = [
    *("-std=gnu11", "-O2", "-ftree-vectorize", "-march=native", "-fPIC", "-shared"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
    "-ffp-contract=fast",
]
WIDE = "-mprefer-vector-width=512"  # x86 only
COMPILE_TIMEOUT = 600.0  # seconds; the largest layer there is takes about ten
INSTEAD = "MLIP_KERNELS=torch does without"
OWN_CACHE = "set MLIP_CACHE to a folder of your own"


def mode() -> str:
    """Which kernels to use: "auto" (compiled if there is a compiler), "torch" or "compiled".

    "triton" is "auto" on a CPU, and `fused_sum` on an accelerator.

    Raises:
        ConfigError: the environment variable MLIP_KERNELS says something else.
    """
    value = os.environ.get("MLIP_KERNELS", "auto")
    if value not in MODES:
        raise ConfigError(f"MLIP_KERNELS={value!r} is none of {', '.join(MODES)}")
    return value


@cache
def compiler() -> tuple[str, ...] | None:
    """The words that call the C compiler: those of CC ("ccache gcc"), else cc, gcc or clang."""
    given = shlex.split(os.environ.get("CC", ""))
    for name, *options in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(name)
        if path:
            return (path, *options)
    return None


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
        ConfigError: it does not compile (the compiler's words are in the message), what was
            compiled does not load, or others could have written what would be loaded.
    """
    flags = [*FLAGS, WIDE] if platform.machine() in ("x86_64", "AMD64") else FLAGS
    words = [source, *flags, _compiler_version(), _processor()]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:24]
    folder = own_folder(cache_folder() / "kernels", OWN_CACHE)
    library = folder / f"{key}.so"

    problem: OSError | None = None
    for again in (False, True):
        if again or not library.exists():
            with FileLock(folder / f"{key}.lock"):
                if again or not library.exists():
                    log.info("compiling a kernel, once on this machine: %s", what)
                    _compile(source, flags, library)
        try:
            return _open(library)
        except OSError as exc:  # cut short by a full disk or a crash
            problem = exc
    raise ConfigError(f"{library} was just compiled and does not load ({problem}); {INSTEAD}")


def _open(library: Path) -> ctypes.CDLL:
    _must_be_ours(library)
    return ctypes.CDLL(str(library))


def _compile(source: str, flags: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        code, target = Path(scratch, "kernel.c"), Path(scratch, "kernel.so")
        code.write_text(source)
        command = [*(compiler() or ()), *flags, "-o", str(target), str(code)]
        called = shlex.join(compiler() or ())
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"{called} had not compiled a kernel after {COMPILE_TIMEOUT:.0f} s; {INSTEAD}"
            ) from None
        if done.returncode:
            raise ConfigError(
                f"{called} could not compile a kernel; {INSTEAD}. It said:\n{done.stderr[-2000:]}"
            )
        target.chmod(0o700)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        target.replace(library)


@cache
def obstacle() -> str | None:
    """Why compiled kernels cannot be had, or None; compiles a line of C to know."""
    if os.name != "posix":
        return "they are for Linux and macOS"
    if compiler() is None:
        return "there is no C compiler (cc, gcc or clang, or CC=PATH)"
    try:
        load("int mlip_answer(void) { return 42; }\n", "a test of the compiler")
    except (ConfigError, OSError) as exc:
        return str(exc)
    return None


@cache
def _tell_once(reason: str) -> None:
    log.warning("kernels in PyTorch, which is slower: %s", reason)


def own_folder(folder: Path, instead: str) -> Path:
    """Return a folder for libraries, made if there is none.

    Args:
        folder: its path.
        instead: what to do if it is not the user's.

    Raises:
        ConfigError: others could write to it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _must_be_ours(folder, instead)
    return folder


def _must_be_ours(path: Path, instead: str = OWN_CACHE) -> None:
    state = path.stat()
    if state.st_uid != os.getuid():
        raise ConfigError(
            f"{path} belongs to another user, and loading a kernel from there would run what they "
            f"put there; {instead}"
        )
    if state.st_mode & 0o022:
        raise ConfigError(f"others may write to {path}; make it yours alone: chmod go-w {path}")


@cache
def _compiler_version() -> str:
    command = [*(compiler() or ()), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\0".join(command) + done.stdout


@cache
def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
