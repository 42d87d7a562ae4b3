"""Exit codes of both commands, and the entry point where signals and exceptions become one of them and a sentence.

It imports the standard library alone, so that it can name the extra whose packages are missing. docs/exit-codes.md
lists the exit codes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TextIO, cast

DEBUG_VARIABLE = "KVTIER_DEBUG"
SENTENCE_CHARACTERS_MAX = 600
STANDARD_OUTPUT, STANDARD_ERROR = "standard output", "standard error"

PACKAGES = {
    "": {"cbor2", "xxhash"},  # kvtier itself
    "cli": {"click", "rich"},
    "harness": {"click", "jinja2", "numpy", "plotly", "prometheus_client", "psutil", "rich"},
    "metrics": {"prometheus_client"},
    "tracing": {"opentelemetry"},
    "gpu": {"torch"},
    "faults": {"mfusepy"},
}
"""Extra -> the top-level packages that it installs."""

_BUG_ERRNOS = {errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTTY}
"""A system call that was called wrongly; every other errno is the environment's."""


class ExitCode(IntEnum):
    """How a command ends. 1 is a finding about the data or the tier, never a crash."""

    PASS = 0
    FAIL = 1
    INCONCLUSIVE = 2
    USAGE = 64
    INTERNAL = 70
    IO = 74
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command in the same order as Ctrl-C does, with an exit code of its own."""


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds `path` to an OSError that names no file; `write` and `close` raise such ones."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def errno_text(error: OSError) -> str:
    """The error's name and text: "ENOSPC (No space left on device)"."""
    return f"{errno.errorcode.get(error.errno or 0, type(error).__name__)} ({error.strerror or error})"


def missing_extra(error: BaseException, own: str) -> str | None:
    """The extra whose package an import did not find; `own` where several have it. None when it is no such package."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extras = [extra for extra, packages in PACKAGES.items() if package in packages]
    return own if own in extras else extras[0] if extras else None


def pip_install(extra: str) -> str:
    """The command that installs an extra; "" is kvtier itself."""
    return f"pip install 'kvtier[{extra}]'" if extra else "pip install kvtier"


class EntryPoint(NamedTuple):
    """A command: its name, the module whose `main()` carries it out, and the extra that installs what that imports."""

    program: str
    module: str
    extra: str

    def start(self) -> NoReturn:
        """Run the command with the arguments of this process; the console script."""
        _open_closed_streams()
        self.answer(lambda arguments: importlib.import_module(self.module).main(arguments), sys.argv[1:])

    def answer(
        self,
        call: Callable[[Sequence[str]], object],
        arguments: Sequence[str],
        expected: Mapping[type[Exception], ExitCode] | None = None,
    ) -> NoReturn:
        """Ends the process as `call(arguments)` ends; any exception becomes one sentence on stderr and an exit code.

        `expected` are exceptions whose text is a sentence for the user. A traceback is printed only with --debug or
        KVTIER_DEBUG=1. While it runs, SIGTERM raises `Terminated`.
        """
        options = itertools.takewhile(lambda argument: argument.startswith("-"), arguments)
        debug = "--debug" in options or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
        with _sigterm_raises():
            try:
                code = _exit_code(call, arguments)
            except BaseException as error:
                if debug and not isinstance(error, BrokenPipeError):
                    traceback.print_exception(error)
                code, sentence = self._explain(error, expected or {})
                if sentence:
                    with contextlib.suppress(OSError, ValueError):
                        print(f"{self.program}: {sentence}", file=sys.stderr, flush=True)
        for stream in (sys.stdout, sys.stderr):
            _give_up_unwritable(stream)
        sys.exit(int(code))

    def _explain(self, error: BaseException, expected: Mapping[type[Exception], ExitCode]) -> tuple[int, str]:
        """Exit code and sentence. With an empty sentence nothing is printed."""
        click = sys.modules.get("click")
        if click and isinstance(error, click.Abort):
            error = error.__cause__ or KeyboardInterrupt()
        for kind, code in expected.items():
            if isinstance(error, kind):
                return code, f"{'skipped: ' if code == ExitCode.INCONCLUSIVE else ''}{error}"
        if click and isinstance(error, click.ClickException):
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message(), file=sys.stderr)
                return ExitCode.USAGE, ""
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context else ""
            return ExitCode.USAGE, " ".join(error.format_message().split()) + hint
        match error:
            case Terminated():
                return ExitCode.TERMINATED, "terminated"
            case KeyboardInterrupt():
                return ExitCode.INTERRUPTED, "interrupted"
            case BrokenPipeError():
                return ExitCode.BROKEN_PIPE, ""
            case MemoryError():
                return ExitCode.IO, f"this machine has not enough memory{_brief(error)}"
            case OSError() if error.errno not in _BUG_ERRNOS:
                return ExitCode.IO, ": ".join(filter(None, (errno_text(error), _place(error))))
        if (extra := missing_extra(error, self.extra)) is not None:
            assert isinstance(error, ModuleNotFoundError)
            return ExitCode.USAGE, f"the package {error.name!r} is missing; install it: {pip_install(extra)}"
        return ExitCode.INTERNAL, (
            f"internal error, which is a bug: {type(error).__name__}{_brief(error)} ({_raised_at(error)}); "
            f"for the traceback: {self.program} --debug ..."
        )


def _exit_code(call: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    outputs = _Output(sys.stdout, STANDARD_OUTPUT), _Output(sys.stderr, STANDARD_ERROR)
    with contextlib.redirect_stdout(cast(TextIO, outputs[0])), contextlib.redirect_stderr(cast(TextIO, outputs[1])):
        try:
            code = call(arguments)
        except SystemExit as ended:
            code = ended.code
        if any(output.broken for output in outputs):  # click and rich turn it into exit code 1
            raise BrokenPipeError
        outputs[0].flush()
    return code if isinstance(code, int) else ExitCode.PASS


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Output:
    """A text stream whose errors of writing name it, and whose `broken` records that its reader has gone."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self.broken = stream, name, False

    def write(self, text: str) -> int:
        with self._watched():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with naming(self._name):
                yield
        except BrokenPipeError:
            self.broken = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _place(error: OSError) -> str:
    """What could not be read or written, and the second path of a rename; "" when nothing names it."""
    names = [name for name in (error.filename, error.filename2) if name is not None]
    return " -> ".join(name if name in (STANDARD_OUTPUT, STANDARD_ERROR) else repr(os.fsdecode(name)) for name in names)


def _open_closed_streams() -> None:
    """A stream that was closed (`>&-`) leads to /dev/null; else the next file that is opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free: `number`
            setattr(sys, name, os.fdopen(descriptor, "w" if number else "r"))


def _give_up_unwritable(stream: TextIO) -> None:
    """Keeps the interpreter from complaining at its exit of a stream that cannot be written."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)


def _brief(error: BaseException) -> str:
    """ ": " and the exception's text on one line; nothing when it has none."""
    text = " ".join(str(error).split())
    return f": {text[:SENTENCE_CHARACTERS_MAX]}" if text else ""


def _raised_at(error: BaseException) -> str:
    """File and line of the innermost frame of this project, else of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no frame"
    above = Path(__file__).resolve().parent.parent
    ours = [frame for frame in frames if _is_ours(Path(frame.filename), above)]
    path = Path((ours or frames)[-1].filename)
    shown = path.relative_to(above) if ours else path
    return f"{shown}, line {(ours or frames)[-1].lineno}"


def _is_ours(path: Path, above: Path) -> bool:
    return path != Path(__file__) and any(path.is_relative_to(above / package) for package in ("kvtier", "harness"))


KVTIER = EntryPoint("kvtier", "kvtier.ops.cli", "cli")
