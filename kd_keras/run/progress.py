"""How far a run is: bars on a terminal, a line for each epoch in a log, HTML in a notebook.

Everything that takes time tells the session's `Progress`; how it is shown is decided here alone. A training is not
slowed: what it tells between two pictures costs the reading of a clock.
"""

import collections
import contextlib
import dataclasses
import datetime
import html
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

# Seconds between two pictures, and between two lines of what has no epochs.
_PICTURE, _NOTEBOOK_PICTURE, _LINE = 0.25, 0.5, 30.0
# Seconds of a measurement or an export before the first of its kind has ended.
_GUESS = 2.0
# A stage without epochs that took fewer seconds is not worth a line in a log.
_WORTH_A_LINE = 5.0
# Columns of a title, so that the bars stand still.
_TITLE = 22
_UNKNOWN = "--:--"


@dataclasses.dataclass(frozen=True)
class Work:
    """A stage that is to be run.

    Attributes:
        title: what is shown.
        kind: stages of one kind take a time in proportion to their size.
        size: steps, images, or 1.
        seconds: how long it takes where that is known from earlier runs, else None.
    """

    title: str
    kind: str
    size: int = 1
    seconds: float | None = None


class Clock:
    """The time that is left for a stage and for a run.

    Args:
        works: what is to be run, in this order.
        now: the time in seconds.
    """

    def __init__(self, works: list[Work], now: Callable[[], float] = time.monotonic):
        self.works, self.now = list(works), now
        self.start = now()
        self.at, self.done = -1, 0
        self._sizes, self._seconds = collections.Counter(), collections.Counter()

    def begin(self, work: Work) -> None:
        """A stage begins; one that was not announced is added."""
        self.at += 1
        if self.at >= len(self.works) or self.works[self.at] != work:
            self.works.insert(self.at, work)
        self.begun, self.done, self._from = self.now(), 0, None

    def tell(self, done: int) -> None:
        """``done`` of the stage's size are done."""
        if self._from is None and done > 0:
            # The rate is counted from here: an earlier run has got so far, or a first step in which TensorFlow traced.
            self._from = (done, self.now())
        self.done = done

    def end(self) -> None:
        """The stage has ended."""
        sizes, seconds = self._measured
        work = self.works[self.at]
        self._sizes[work.kind] += sizes or work.size
        self._seconds[work.kind] += seconds if sizes else self.now() - self.begun

    @property
    def _measured(self) -> tuple[int, float]:
        """How much of the stage was done in how many seconds."""
        if self._from is None:
            return 0, 0.0
        return self.done - self._from[0], self.now() - self._from[1]

    @property
    def of_stage(self) -> float | None:
        """Seconds left for the stage, or None where nothing tells."""
        work, (done, seconds) = self.works[self.at], self._measured
        if done > 0:
            return seconds / done * (work.size - self.done)
        whole = self._expected(work)
        return None if whole is None else max(whole - (self.now() - self.begun), 0.0)

    @property
    def of_run(self) -> float | None:
        """Seconds left for the run, or None where nothing tells."""
        left = [self.of_stage, *map(self._expected, self.works[self.at + 1 :])]
        return None if None in left else sum(left)

    def _expected(self, work: Work) -> float | None:
        if work.seconds is not None:
            return work.seconds
        sizes, seconds = self._sizes[work.kind], self._seconds[work.kind]
        if self.works[self.at].kind == work.kind:
            done, more = self._measured
            sizes, seconds = sizes + done, seconds + more
        if sizes:
            return seconds / sizes * work.size
        return _GUESS if work.size == 1 else None


class Progress:
    """What a run shows while it works.

    Args:
        console: where; its file decides how.
        mode: ``auto`` or ``none``.
    """

    def __init__(self, console: Console, mode: str = "auto"):
        self._clock: Clock | None = None
        self._screen = Silence() if mode == "none" or console.quiet else _screen(console)

    @contextlib.contextmanager
    def run(self, works: list[Work]) -> Iterator[None]:
        """A run of several stages."""
        self._clock = Clock(works)
        try:
            with self._screen:
                yield
        finally:
            self._clock = None

    @contextlib.contextmanager
    def stage(self, work: Work) -> Iterator[None]:
        """One stage; inside it `update` and `epoch` say how far it is."""
        if self._clock is None:
            with self.run([work]), self.stage(work):
                yield
            return
        clock = self._clock
        clock.begin(work)
        self._screen.begin(clock)
        yield
        clock.end()
        self._screen.end(clock)

    def update(self, done: int, figures: Callable[[], str]) -> None:
        """Says how far the stage is.

        Args:
            done: of the stage's size.
            figures: gives what else is shown; called for a picture alone.
        """
        if self._clock is not None:
            self._clock.tell(done)
            self._screen.update(self._clock, figures)

    def epoch(self, text: str) -> None:
        """An epoch has ended, of which a log gets this line."""
        if self._clock is not None:
            self._screen.epoch(self._clock, text)


def _screen(console: Console) -> "Silence":
    if console.is_jupyter:
        return Notebook()
    # FORCE_COLOR makes a terminal of any file for Rich, and TERM=dumb has a terminal that can't move up.
    is_terminal = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return Terminal(console) if is_terminal else Log(console)


class Silence(contextlib.AbstractContextManager):
    """The interface of what shows progress; shows nothing."""

    def __exit__(self, *error):
        return None

    def begin(self, clock: Clock) -> None:
        """A stage begins."""

    def update(self, clock: Clock, figures: Callable[[], str]) -> None:
        """The stage goes on."""

    def epoch(self, clock: Clock, text: str) -> None:
        """An epoch ends."""

    def end(self, clock: Clock) -> None:
        """A stage ends."""


class Log(Silence):
    """A line for each epoch, and now and then one of a long stage without epochs."""

    def __init__(self, console: Console):
        self.console = console

    def begin(self, clock):
        self._line, self._epochs = clock.now(), 0

    def update(self, clock, figures):
        if not self._epochs and clock.now() - self._line >= _LINE:
            self._line = clock.now()
            self.console.print(f"{clock.works[clock.at].title:<8} {figures()}{_left(clock)}")

    def epoch(self, clock, text):
        self._epochs += 1
        self.console.print(f"{clock.works[clock.at].title:<8} {text}{_left(clock)}")

    def end(self, clock):
        seconds = clock.now() - clock.begun
        if not self._epochs and seconds >= _WORTH_A_LINE:
            self.console.print(f"{clock.works[clock.at].title}: {seconds:.0f} s")


def _left(clock: Clock) -> str:
    parts = [f"{_time(clock.of_stage)} left"] if clock.of_stage else []
    if len(clock.works) > 1 and clock.of_run:
        parts.append(f"{_time(clock.of_run)} of the run")
    return f"  ({', '.join(parts)})" if parts else ""


class Terminal(Silence):
    """A bar for the stage and one for the run."""

    def __init__(self, console: Console):
        self.console = console

    def __enter__(self):
        cut = {"table_column": Column(no_wrap=True, overflow="ellipsis")}
        self.bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=_TITLE)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]} left", markup=False),
            TextColumn("{task.fields[figures]}", markup=False, **cut),
            console=self.console,
            transient=True,
            auto_refresh=False,
            # Into a file it goes as it is.
            redirect_stderr=sys.stderr.isatty(),
        )
        self.bars.start()
        self._drawn, self._stage, self._run = 0.0, None, None
        return self

    def __exit__(self, *error):
        self.bars.stop()

    def begin(self, clock):
        if self._stage is None:
            self._stage = self.bars.add_task("", total=None, figures="", left=_UNKNOWN)
        if self._run is None and len(clock.works) > 1:
            self._run = self.bars.add_task("run", total=None, figures="", left=_UNKNOWN)
        self.bars.reset(self._stage, total=None, description=clock.works[clock.at].title, visible=True)
        self._draw(clock, "")

    def update(self, clock, figures):
        if clock.now() - self._drawn >= _PICTURE:
            self._draw(clock, figures())

    def end(self, clock):
        self._draw(clock, "")

    def _draw(self, clock, figures):
        work, self._drawn = clock.works[clock.at], clock.now()
        total = work.size if clock.done else None
        self.bars.update(
            self._stage, total=total, completed=clock.done, figures=figures, left=_time(clock.of_stage, _UNKNOWN)
        )
        if self._run is not None:
            left, elapsed = clock.of_run, clock.now() - clock.start
            total = None if left is None else elapsed + left
            text = f"stage {clock.at + 1} of {len(clock.works)}"
            self.bars.update(self._run, total=total, completed=elapsed, figures=text, left=_time(left, _UNKNOWN))
        self.bars.refresh()


class Notebook(Silence):
    """The same two bars as HTML, in one output of the cell that is drawn again."""

    def __enter__(self):
        from IPython.display import HTML, display

        self._html, self._drawn = HTML, 0.0
        self._handle = display(HTML(""), display_id=True)
        return self

    def __exit__(self, *error):
        self._handle.update(self._html(""))

    def begin(self, clock):
        self._draw(clock, "")

    def update(self, clock, figures):
        if clock.now() - self._drawn >= _NOTEBOOK_PICTURE:
            self._draw(clock, figures())

    def _draw(self, clock, figures):
        work, left, self._drawn = clock.works[clock.at], clock.of_run, clock.now()
        elapsed = self._drawn - clock.start
        rows = [_row(work.title, clock.done / work.size if clock.done else None, clock.of_stage, figures)]
        if len(clock.works) > 1:
            share = None if left is None else elapsed / max(elapsed + left, 1e-9)
            rows.append(_row("run", share, left, f"stage {clock.at + 1} of {len(clock.works)}"))
        self._handle.update(self._html(f"<table>{''.join(rows)}</table>"))


def _row(title: str, share: float | None, left: float | None, text: str) -> str:
    bar = "<progress></progress>" if share is None else f'<progress value="{share:.4f}"></progress>'
    cells = (html.escape(title), bar, f"{_time(left, _UNKNOWN)} left", html.escape(text))
    return f"<tr style='text-align:left'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _time(seconds: float | None, unknown: str = "") -> str:
    """Hours, minutes and seconds; the first only where there are any."""
    if seconds is None:
        return unknown
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:")
