"""Errors before vLLM is imported. The processes are real: the errors are about processes."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor

import anyio
import pydantic
import pytest

from llmserve import ConfigurationError, EngineDead, EngineManager
from llmserve.engines.processes.socket_files import FOLDER
from llmserve.engines.vllm import start_checks
from llmserve.engines.vllm.start_errors import Failure, first_report, report

PROGRAM = """
import asyncio
from llmserve import EngineManager

async def main():
    async with EngineManager.open("bundled"):
        pass

if __name__ == "__main__":
    asyncio.run(main())
"""
# Like vLLM's launch of a core, and a host that reads the core's report.
WITHOUT_GUARD = """
import multiprocessing
from pathlib import Path
from llmserve.engines.processes.socket_files import FOLDER
from llmserve.engines.vllm.start_checks import check_host
from llmserve.engines.vllm.start_errors import first_report

check_host()
core = multiprocessing.get_context("spawn").Process(target=print)
folder = Path(FOLDER.enter())
core.start()
core.join()
failure = first_report(folder, [core.pid])
FOLDER.leave()
raise failure.as_error("bundled")
"""
NOT_INSTALLED = "vllm is not installed"
UNGUARDED = 'put the start under `if __name__ == "__main__":`'


def last_line(*command, stdin=None):
    done = subprocess.run([sys.executable, *command], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_program_from_standard_input_gets_an_error_about_its_import():
    last = last_line("-", stdin=PROGRAM)
    assert last.startswith(
        "llmserve.errors.ConfigurationError: the engine vllm cannot start: its processes import the program's main module"
    )
    assert "<stdin> is not a file" in last


@pytest.mark.parametrize("way", ["file", "-c", "-m"])
def test_other_ways_to_run_a_program_get_past_that(way, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    command = {"file": ["program.py"], "-c": ["-c", PROGRAM], "-m": ["-m", "program"]}[way]
    assert NOT_INSTALLED in last_line(*command)


def test_a_program_without_a_guard_ends_with_the_error_of_the_process_that_started_it_again(tmp_path):
    (tmp_path / "program.py").write_text(WITHOUT_GUARD)
    assert UNGUARDED in last_line(str(tmp_path / "program.py"))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("taken", [False, True])
def test_a_closed_standard_stream_is_named_also_where_a_file_has_its_number(number, taken, tmp_path):
    said, takes = tmp_path / "said", f"os.open({os.devnull!r}, os.O_RDWR)" if taken else "None"
    program = f"import os; os.close({number}); {takes}\n" + textwrap.dedent(f"""
        from llmserve.engines.vllm.start_checks import check_host
        try:
            check_host()
        except Exception as error:
            open({str(said)!r}, "w").write(str(error))
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert f"standard {'output' if number == 1 else 'error'} is closed, and vLLM's processes write to it" in said.read_text()


def start():
    anyio.run(EngineManager.open("/no/such/folder").start)


def why(send):
    try:
        start()
    except ConfigurationError as error:
        send.send(str(error))


def test_a_daemonic_process_is_named_with_what_to_do():
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=why, args=(send,), name="Indexer", daemon=True)
    process.start()
    words = receive.recv()
    process.join()
    assert words.startswith("the engine vllm cannot start in Indexer, a daemonic process of multiprocessing, which may have no children")
    assert "daemon=False" in words


def test_a_process_of_an_executor_may_start_the_engine():
    """Such a process is not a daemon, and has imported the main module long before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        error = executor.submit(start).exception()
    assert "/no/such/folder does not exist" in str(error)


def test_a_fork_imports_no_main_module(monkeypatch):
    """The host has chosen how vLLM starts its processes."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    with pytest.raises(ConfigurationError, match="is not a file"):
        start_checks.check_host()
    monkeypatch.setenv(start_checks.START_METHOD, "fork")
    start_checks.check_host()


class SafetensorError(Exception):
    """The library's own error; the library is not installed here."""


# The texts are those of vLLM 0.32.
NO_ROOM = (
    "To serve at least one request with the model's max seq len (2048), (0.04 GiB KV cache is needed, which is larger than the available "
    "KV cache memory (0.01 GiB). Based on the available memory, the estimated maximum model length is 512. Try increasing "
    "`gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing it."
)
ENDED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
QUOTED = RuntimeError("Worker failed with error 'a kernel failed', please check the stack trace above for the root cause")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            ValueError(NO_ROOM),
            ConfigurationError,
            "length is 512: raise kv_cache_memory_bytes or gpu_memory_utilization, or lower",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            ConfigurationError,
            "CUDA out of memory. Tried to allocate 2 GiB: lower",
        ),
        (SafetensorError("Error while deserializing header: x"), ConfigurationError, "copy or download the weights again"),
        (SafetensorError("x"), ConfigurationError, "vLLM cannot start with model 'm': x"),
        (OSError("org/model is not a local folder"), ConfigurationError, "'m': org/model is not a local folder"),
        (AssertionError(), EngineDead, "vLLM could not start: AssertionError"),
        (RuntimeError("two\nlines"), EngineDead, "vLLM could not start: RuntimeError: two lines"),
        (QUOTED, EngineDead, "vLLM could not start: RuntimeError: a kernel failed"),
        (ENDED, EngineDead, "vLLM could not start: its process ended and reported no error"),
        (ConfigurationError("as it is"), ConfigurationError, "as it is"),
    ],
)
def test_an_error_of_the_start_has_our_class_and_our_arguments(error, kind, words):
    found = Failure.of(error).as_error("m")
    assert type(found) is kind
    assert words in str(found)
    assert "Try " not in str(found)


class Arguments(pydantic.BaseModel):
    """Like vLLM's configs."""

    gpu_memory_utilization: float = pydantic.Field(0.9, le=1)
    max_num_seqs: int = pydantic.Field(1, le=9)

    @pydantic.model_validator(mode="after")
    def check(self):
        if self.max_num_seqs == 0:
            raise ValueError("no sequences\nat all")
        return self


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpu_memory_utilization": 3}, "gpu_memory_utilization: Input should be less than or equal to 1"),
        (
            {"gpu_memory_utilization": 3, "max_num_seqs": 10},
            "gpu_memory_utilization: Input should be less than or equal to 1; max_num_seqs: Input should be less than or equal to 9",
        ),
        ({"max_num_seqs": 0}, "no sequences at all"),
    ],
)
def test_wrong_values_are_named_in_one_line(arguments, words):
    with pytest.raises(pydantic.ValidationError) as caught:
        Arguments(**arguments)
    assert str(Failure.of(caught.value).as_error("m")) == f"vLLM cannot start with model 'm': {words}"


def test_the_first_report_counts_of_each_process_and_of_all():
    folder = start_checks.Path(FOLDER.enter())
    try:
        assert first_report(folder, [1, 2]) is None
        report(ValueError("the cause"), 1)
        report(RuntimeError("what came of it"), 1)
        report(RuntimeError("of another engine"), 3)
        assert first_report(folder, [1, 2]) == Failure("ValueError", "the cause", wrong=True)
        # The report of a process that was killed while it wrote.
        (folder / "failed-2").write_text("[")
        assert first_report(folder, [2]) is None
    finally:
        FOLDER.leave()


def test_nothing_is_reported_into_a_folder_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path))
    report(ValueError())
    monkeypatch.delenv("VLLM_RPC_BASE_PATH")
    report(ValueError())
    assert list(tmp_path.iterdir()) == []
