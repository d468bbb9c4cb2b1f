"""A batch waits while the process has no descriptor for its files."""

import json
import os
import pkgutil
import resource
from contextlib import contextmanager, nullcontext

import anyio
import pytest
from program_support import PATIENCE

from frontends.batch.objects import ENDED, CreateBatch
from frontends.batch.service import BatchService
from frontends.batch.store import Store
from llmserve import EngineManager
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

PATH = "/v1/completions"
LINES = b"".join(
    json.dumps({"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": {"prompt": "hi", "max_tokens": 4}}).encode() + b"\n"
    for number in range(20)
)


@contextmanager
def no_descriptor():
    """Let no file be opened."""
    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# What opens a batch's files: its journal, its input for the check and for the lines, its record, and the files of its answers.
@pytest.mark.parametrize("opens", ["service.Journal", "service.check", "source._piece", "store.Store.save", "service.BatchService._divide"])
async def test_a_batch_waits_for_a_descriptor(tmp_path, monkeypatch, caplog, opens):
    monkeypatch.setattr("frontends.batch.service.RETRY_SECONDS", 0.01)
    store = Store(tmp_path)
    manager = EngineManager(SimulatedEngine(SimulatedConfig(), model="sim"))
    service = BatchService(manager, "sim", store)
    async with manager, service.running():
        file_id, part = store.begin(None)
        with part:
            part.write(LINES)
        store.reserve(len(LINES), None)
        store.keep(file_id, len(LINES), "in.jsonl", "batch", None)
        record = store.create(CreateBatch(input_file_id=file_id, endpoint=PATH, completion_window="24h"), None)
        original, tries = pkgutil.resolve_name(f"frontends.batch.{opens}"), []

        def scarce(*args, **more):
            tries.append(args)
            with no_descriptor() if len(tries) <= 3 else nullcontext():
                return original(*args, **more)

        monkeypatch.setattr(f"frontends.batch.{opens}", scarce)
        service.start(record)
        with anyio.fail_after(PATIENCE):
            while record.object.status not in ENDED:
                await anyio.sleep(0.01)
        batch = record.object
        assert (batch.status, batch.errors, batch.error_file_id) == ("completed", None, None)
        assert len(tries) > 3
        found = [json.loads(line)["custom_id"] for line in store.content(batch.output_file_id).read_text().splitlines()]
        assert sorted(found) == sorted(f"r{number}" for number in range(20))
    assert [one.getMessage() for one in caplog.records if batch.id in one.getMessage()] == [
        f"the batch {batch.id} waits until it can open its files: Too many open files (see ulimit -n)"
    ]
