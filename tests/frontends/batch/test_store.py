"""The folder of files and batches: what stays in it after errors, and who may remove what."""

import os

import pytest

from frontends.batch.objects import CreateBatch
from frontends.batch.store import Store
from frontends.openai.errors import HTTPFailure


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.open()
    yield store
    store.close()


def kept(store, content=b"x\n", name="in.jsonl", tenant=None):
    file_id, part = store.begin()
    with part:
        part.write(content)
    store.reserve(len(content))
    return store.keep(file_id, len(content), name, "batch", tenant)


def test_a_name_that_is_not_utf_8_is_kept(store):
    assert kept(store, name="a\udcffb").filename == "a?b"


@pytest.mark.parametrize("fails", ["msgspec.json.encode", "os.fsync", "pathlib.Path.replace"])
def test_a_file_whose_record_cannot_be_stored_leaves_nothing(store, tmp_path, monkeypatch, fails):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(fails, fail)
        with pytest.raises(OSError, match="No space"):
            kept(store)
    assert os.listdir(tmp_path) == ["lock"]
    assert (store.bytes, store.files) == (0, {})


def test_the_second_of_two_deletions_finds_nothing(store):
    file = kept(store)
    assert store.delete(file.id)
    assert not store.delete(file.id)
    assert store.bytes == 0


def test_no_batch_begins_without_its_file(store):
    file = kept(store)
    wanted = CreateBatch(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    batch = store.create(wanted, None)
    with pytest.raises(HTTPFailure, match=batch.object.id):
        store.delete(file.id)
    batch.object.status = "cancelled"
    assert store.delete(file.id)
    with pytest.raises(HTTPFailure, match="there is no file"):
        store.create(wanted, None)


def test_a_journal_is_counted_until_its_batch_has_ended(store):
    file = kept(store)
    batch = store.create(CreateBatch(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"), None).object
    store.journal(batch.id).write_bytes(b"x" * 10)
    store.grow(batch.id, 10)
    assert store.bytes == 12
    store.close()
    store.open()
    assert store.bytes == 12
    store.forget(batch.id)
    assert store.bytes == 2


@pytest.mark.parametrize(("tenant", "removed"), [("a", 1), ("b", 0), ("c", 0)])
def test_the_oldest_batch_of_the_same_tenant_makes_room(store, monkeypatch, tenant, removed):
    monkeypatch.setattr("frontends.batch.store.MAX_BATCHES", 3)
    wanted = CreateBatch(input_file_id=kept(store).id, endpoint="/v1/completions", completion_window="24h")
    found = [store.create(wanted, one) for one in ("b", "a", "a")]
    with pytest.raises(HTTPFailure, match="at most 3 batches"):
        store.create(wanted, tenant)
    for one in found:
        one.object.status = "completed"
    made = store.create(wanted, tenant)
    del found[removed]
    assert list(store.batches.values()) == [*found, made]
