"""What a person sees: tables, progress on work that takes over a second, errors; or one JSON document.

Results go to standard output, everything else to standard error. Rich is imported when something is
shown, not at start-up.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shufflectl.errors import ShufflectlError

if TYPE_CHECKING:
    from rich.console import Console

    from shufflectl.deploy.verify import Notify

__all__ = ["Output", "human_bytes"]

_PATIENCE_S = 1.0


@dataclass
class Output:
    """How this call of the program talks.

    Attributes:
        json: Whether standard output gets one JSON document instead of text.
        verbose: Whether messages of libraries, and tracebacks, are shown.
    """

    json: bool = False
    verbose: bool = False
    _documented: bool = field(default=False, repr=False)

    def quiet_libraries(self) -> None:
        """Keep the chatter of torch, coremltools and LiteRT off the terminal, unless verbose."""
        if self.verbose:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
            logging.getLogger("shufflectl").setLevel(logging.DEBUG)
            return
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("GLOG_minloglevel", "3")

    def document(self, data: Any) -> None:
        """Print a result as JSON on standard output: the one document of this call."""
        self._documented = True
        json.dump(data, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
        sys.stdout.flush()  # a full disk shows here, not when the interpreter ends

    def document_text(self, pieces: Iterable[str]) -> None:
        """Print a result as JSON on standard output, like `document`, from pieces of its text."""
        self._documented = True
        sys.stdout.writelines(pieces)
        sys.stdout.write("\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print a result as text (rich markup) on standard output."""
        self._console().print(text, highlight=False)

    def note(self, text: str) -> None:
        """Print something that is not the result on standard error."""
        self._console(stderr=True).print(text, highlight=False, soft_wrap=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
    ) -> None:
        """Print a table on standard output; the columns in ``right`` are aligned to the right."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=title or None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for index, column in enumerate(columns):
            # Where the terminal is narrow, names are folded and headings wrapped; figures stay whole.
            numeric = column in right
            words = [row[index] for row in rows] if numeric else []
            widest = max(map(len, [*column.split(), *words]), default=0)
            table.add_column(
                column, justify="right" if numeric else "left", overflow="fold", min_width=widest
            )
        for row in rows:
            table.add_row(*row)
        self._console().print(table)

    def error(self, error: ShufflectlError) -> None:
        """Print an error on standard error; in JSON mode as the document, unless there is one."""
        from rich.markup import escape

        if self.json and not self._documented:
            body = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
            self.document({"schema": "shufflectl.error/1", "error": {**body, "exit_code": error.exit_code}})
        self.note(f"[bold red]error:[/] {escape(error.message)}")
        if error.hint:
            self.note(f"[bold cyan]hint:[/] {escape(error.hint)}")

    @contextmanager
    def progress(self) -> Iterator["Notify"]:
        """Yield a `Notify` that draws on a terminal, once the work has taken over a second."""
        if self.json or self.verbose or not sys.stderr.isatty():
            yield lambda _what, _done, _total: None
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=self._console(stderr=True),
            transient=True,
        )
        task = bar.add_task("", total=None)
        begun = time.monotonic()

        def notify(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)
            if not bar.live.is_started and time.monotonic() - begun > _PATIENCE_S:
                bar.start()

        try:
            yield notify
        finally:
            bar.stop()

    @staticmethod
    def _console(*, stderr: bool = False) -> "Console":
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        # A pipe has no width: a table for a file or another program is not cut to 80 columns.
        width = None if stream.isatty() or "COLUMNS" in os.environ else 160
        return Console(stderr=stderr, width=width)


def human_bytes(count: int) -> str:
    """Return a number of bytes as people write it, with a space that does not break."""
    if count < 1000:
        return f"{count}\N{NO-BREAK SPACE}B"
    unit, name = (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / unit:.{2 if name == 'MB' else 1}f}\N{NO-BREAK SPACE}{name}"
