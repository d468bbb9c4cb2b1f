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
    file_id, part = store.begin(tenant)
    with part:
        part.write(content)
    store.reserve(len(content), tenant)
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
    batch = store.create(CreateBatch(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"), None)
    store.journal(batch.object.id).write_bytes(b"x" * 10)
    store.grow(batch, 10)
    assert store.bytes == 12
    store.close()
    store.open()
    assert store.bytes == 12
    store.forget(batch)
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


def ended_batches(store, asked, count, tenant):
    found = []
    for _ in range(count):
        found.append(store.create(asked, tenant))
        found[-1].object.status = "completed"
    return found


@pytest.fixture
def small(monkeypatch):
    """Bounds of 100 files, bytes and batches: the last ten are for tenants with one."""
    for name in ("MAX_FILES", "MAX_BYTES", "MAX_BATCHES", "MAX_ANSWERS"):
        monkeypatch.setattr(f"frontends.batch.store.{name}", 100)


def wanted(store, tenant):
    return CreateBatch(input_file_id=kept(store, b"x", tenant=tenant).id, endpoint="/v1/completions", completion_window="24h")


def test_a_tenant_that_fills_the_folder_leaves_room_for_files_of_others(store, small):
    for _ in range(90):
        kept(store, b"x", tenant="many")
    with pytest.raises(HTTPFailure, match="at most 90 files, and some more of tenants with at most 1: delete some"):
        store.begin("many")
    with pytest.raises(HTTPFailure, match="at most 90 bytes of files, and some more"):
        store.reserve(1, "many")
    for number in range(10):
        file = kept(store, b"x", tenant=f"few{number}")
        with pytest.raises(HTTPFailure, match="at most 100" if number == 9 else "at most 90"):
            store.begin(f"few{number}")
    with pytest.raises(HTTPFailure, match="at most 100 bytes of files: delete some"):
        store.reserve(1, "late")
    # What is given back is room again, also after a restart.
    store.delete(file.id)
    store.close()
    store.open()
    kept(store, b"x", tenant="late")
    assert store.bytes == len(store.files) == 100


def test_without_keys_a_bound_is_whole(store, small):
    for _ in range(100):
        kept(store, b"x")
    with pytest.raises(HTTPFailure, match="at most 100 files: delete some"):
        store.begin(None)


def test_a_tenant_whose_batches_all_wait_leaves_room_for_batches_of_others(store, small):
    few, many = wanted(store, "few"), wanted(store, "many")
    read = ended_batches(store, few, 1, "few")[0]
    for _ in range(90):
        store.create(many, "many")
    with pytest.raises(HTTPFailure, match="at most 90 batches, and some more of tenants with at most 1: wait for one"):
        store.create(many, "many")
    assert store.create(few, "few").tenant == "few"
    with pytest.raises(HTTPFailure, match="at most 90 batches"):
        store.create(few, "few")
    assert read.object.id in store.batches


def test_what_a_tenant_with_few_batches_has_to_read_is_removed_last(store, small):
    few, many, other = (wanted(store, name) for name in ("few", "many", "other"))
    first = ended_batches(store, few, 1, "few")[0]
    second = ended_batches(store, many, 99, "many")[0]
    store.create(other, "other")
    assert first.object.id in store.batches
    assert second.object.id not in store.batches


def test_batches_of_one_file_do_not_make_files_without_bound(store, small):
    asked = wanted(store, "many")
    for number in range(90):
        store.reserve(0, "many")
        file_id = f"file-{number}"
        store.content(file_id).with_suffix(".part").touch()
        store.keep(file_id, 0, "out.jsonl", "batch_output", "many")
    with pytest.raises(HTTPFailure, match="at most 90 files of answers, and some more of tenants with at most 1: delete some"):
        store.create(asked, "many")
    assert store.create(wanted(store, "few"), "few").tenant == "few"
