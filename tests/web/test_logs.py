"""The server's log lines: their two formats, and the thread that writes them."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable

import pytest

from koo.log_options import LogOptions
from koo.web.log_writer import LineWriter, ThreadHandler, writer_to
from koo.web.logs import ConsoleLines, JsonLines, logs_set_up

HOSTILE = "/x\x9b31m\x7f\u202egnp.exe\u2028fake\r\n\x1b[2J\U000e0041\udc80\u200b\ufeff"
FORMATS = [JsonLines(), ConsoleLines()]


def record(message: str, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("koo.web", logging.INFO, "", 0, "%s", (message,), None)
    vars(made).update(facts)
    return made


# ── the two formats ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lines", FORMATS, ids=["json", "plain"])
def test_a_line_contains_no_control_characters_and_no_line_breaks(lines: logging.Formatter) -> None:
    line = lines.format(record(HOSTILE, path=HOSTILE, service=HOSTILE))
    unseen = {one for one in line if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen == set()
    assert line.encode()


def test_a_json_line_contains_what_was_logged() -> None:
    line = json.loads(JsonLines().format(record(HOSTILE, path=HOSTILE)))
    assert (line["event"], line["path"]) == (HOSTILE, HOSTILE)


def test_a_json_line_contains_the_facts_and_nothing_else_of_the_record() -> None:
    line = json.loads(
        JsonLines().format(record("x", service="claude", kind="auth", count=3, other="unknown"))
    )
    assert line.keys() == {"timestamp", "level", "logger", "event", "service", "kind", "count"}


@pytest.mark.parametrize("lines", FORMATS, ids=["json", "plain"])
def test_a_traceback_is_cut_and_each_of_its_lines_is_escaped(lines: logging.Formatter) -> None:
    try:
        raise RuntimeError(HOSTILE + "x" * 100_000)
    except RuntimeError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    shown = lines.format(made)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "RuntimeError" in shown and len(shown) < 40_000


@pytest.mark.parametrize("lines", FORMATS, ids=["json", "plain"])
def test_secrets_in_an_applications_own_line_or_traceback_are_masked(
    lines: logging.Formatter,
) -> None:
    said = "postgresql://shop:hunter2@db/shop sk-ant-api03-hunter2hunter2hunter2 password=hunter2"
    try:
        raise RuntimeError(said)
    except RuntimeError:
        made = record(said)
        made.exc_info = sys.exc_info()
    shown = lines.format(made)
    assert "hunter2" not in shown and "@db/shop" in shown


@pytest.mark.parametrize("lines", FORMATS, ids=["json", "plain"])
def test_a_message_of_a_megabyte_is_cut(lines: logging.Formatter) -> None:
    assert len(lines.format(record("x" * 2**20))) < 10_000


# ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """The output of a writer. It accepts nothing until the test allows it."""

    def __init__(self) -> None:
        self.reads = threading.Event()
        self.asked = threading.Event()
        self.taken = b""

    def write(self, data: bytes) -> None:
        self.asked.set()
        assert self.reads.wait(60)
        self.taken += data


def missing(count: int) -> str:
    return f"{count} missing"


def test_logging_does_not_wait_for_the_reader_and_lines_that_fit_are_not_lost() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, missing)
    for number in range(1000):
        writer.put(f"line {number}")
    reader.reads.set()
    writer.close(60)
    assert reader.taken.decode().splitlines() == [f"line {number}" for number in range(1000)]


def test_lines_that_do_not_fit_are_counted_and_reported_in_their_place() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, missing, bytes_max=30)
    writer.put("first")
    assert reader.asked.wait(60)
    for number in range(10):
        writer.put(f"line {number}")  # seven bytes each: four fit
    reader.reads.set()
    writer.close(60)
    lines = reader.taken.decode().splitlines()
    assert lines == ["first", "line 0", "line 1", "line 2", "line 3", "6 missing"]


def test_lines_after_the_reader_is_back_follow_the_report_of_missing_ones() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, missing, bytes_max=20)
    writer.put("first")
    assert reader.asked.wait(60)
    for _ in range(5):
        writer.put("queued")
    reader.reads.set()
    while b"missing" not in reader.taken:
        pass
    writer.put("last")
    writer.close(60)
    assert reader.taken.decode().splitlines() == ["first", "queued", "queued", "3 missing", "last"]


def test_shutdown_does_not_wait_for_a_log_that_is_not_read() -> None:
    reader = Reader()
    writer = LineWriter(reader.write, missing)
    writer.put("line")
    assert reader.asked.wait(60)
    writer.close(0.01)
    assert reader.taken == b""
    reader.reads.set()


def test_a_reader_that_is_gone_is_not_an_error_and_the_thread_continues() -> None:
    taken: list[bytes] = []

    def write(data: bytes) -> None:
        taken.append(data)
        if len(taken) == 1:
            raise BrokenPipeError

    writer = LineWriter(write, missing)
    writer.put("lost")
    while not taken:
        pass
    writer.put("kept")
    writer.close(60)
    assert taken == [b"lost\n", b"kept\n"]


def test_a_full_pipe_receives_every_byte_when_it_is_read() -> None:
    """A real pipe, whose writing end is non-blocking, as another program may have made a terminal."""
    out, into = os.pipe()
    os.set_blocking(into, False)
    with os.fdopen(into, "w") as stream:
        writer = LineWriter(writer_to(stream), missing)
        for number in range(3000):
            writer.put(f"line {number} " + "x" * 100)
        read = b""
        while read.count(b"\n") < 3000:
            read += os.read(out, 65_536)
        writer.close(60)
    os.close(out)
    assert [line.split()[1] for line in read.decode().splitlines()] == [str(n) for n in range(3000)]


def test_the_writer_uses_a_stream_that_has_no_file_descriptor_directly() -> None:
    stream = io.StringIO()
    writer = LineWriter(writer_to(stream), missing)
    writer.put("Grüße \udc80")
    writer.close(60)
    assert stream.getvalue() == "Grüße \\udc80\n"


def test_a_record_that_cannot_be_formatted_is_reported_and_stops_nothing() -> None:
    reader = Reader()
    reader.reads.set()
    handler = ThreadHandler(reader.write, JsonLines())
    handler.handle(logging.LogRecord("koo", logging.INFO, "shop.py", 41, "%d", ("x",), None))
    handler.close()
    assert reader.taken == b"a log record of shop.py:41 cannot be formatted\n"


def test_the_report_of_missing_lines_has_the_format_of_all_others() -> None:
    reader = Reader()
    handler = ThreadHandler(reader.write, JsonLines(), bytes_max=150)
    handler.handle(record("one"))
    assert reader.asked.wait(60)
    for message in ("two", "three", "four"):
        handler.handle(record(message))
    reader.reads.set()
    handler.close()
    one, two, line = map(json.loads, reader.taken.decode().splitlines())
    assert (one["event"], two["event"]) == ("one", "two")
    assert (line["level"], line["what"], line["count"]) == ("warning", "log_lines_missing", 2)
    assert line["event"] == "2 log lines are missing here: the log was not read"


# ── set-up ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[], io.StringIO]:
    """Make the root logger that of a fresh process, and return the stream used as standard error."""

    def make() -> io.StringIO:
        stream, root = io.StringIO(), logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(root, "level", logging.WARNING)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return make


def test_all_lines_go_to_standard_error_and_everything_is_restored_afterwards(
    fresh: Callable[[], io.StringIO],
) -> None:
    stream, root = fresh(), logging.getLogger()
    with logs_set_up(LogOptions(format="plain")):
        logging.getLogger("koo").info("said %s", "plainly")
        logging.getLogger("koo").debug("unsaid")
        logging.getLogger("uvicorn").info("chatter")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("somebody's warning", UserWarning, stacklevel=1)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("info     said plainly")
    assert "somebody's warning" in lines[1] and len(lines) == 2
    assert (root.handlers, root.level) == ([], logging.WARNING)
    assert logging.getLogger("uvicorn").level == logging.NOTSET


def test_an_application_with_a_handler_keeps_its_logging(
    fresh: Callable[[], io.StringIO],
) -> None:
    stream, own, root = fresh(), logging.NullHandler(), logging.getLogger()
    root.addHandler(own)
    with logs_set_up(LogOptions(format="json", level="debug")):
        assert (root.handlers, root.level) == ([own], logging.WARNING)
        logging.getLogger("koo").error("for the application's own handler")
    assert stream.getvalue() == ""


def test_an_output_that_is_not_a_terminal_gets_json(fresh: Callable[[], io.StringIO]) -> None:
    stream = fresh()
    with logs_set_up(LogOptions()):
        logging.getLogger("koo").info("x")
    assert json.loads(stream.getvalue())["event"] == "x"
