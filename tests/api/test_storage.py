"""The object store against a real S3 server that checks signatures."""

import time
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from api import storage
from api.presign import Presigner
from api.storage import ObjectMissing, ObjectStore, StoreError, StoreMisconfigured

HOUR = timedelta(hours=1)


def link(store, key="a/b", expires=HOUR):
    return store.presigned_get(key, filename="my file.bin", content_type="application/x-test", expires=expires)


def status(url, method="GET"):
    try:
        with urlopen(Request(url, method=method)) as answer:  # noqa: S310
            return answer.status
    except HTTPError as error:
        with error:
            return error.code


def test_several_files_are_stored_at_once(store, tmp_path):
    files = {f"a/{number}": tmp_path / f"{number}" for number in range(5)}
    for key, path in files.items():
        path.write_text(key)
    store.put_files(files, "text/plain")
    assert [store.get_bytes(key).decode() for key in sorted(store.keys())] == sorted(files)
    store.put_files({}, "text/plain")


@pytest.mark.parametrize("refused", ["a", "b"])
def test_when_one_of_several_files_is_refused_nothing_of_the_others_is_under_way(store, tmp_path, monkeypatch, refused):
    put_file, ended = ObjectStore.put_file, []

    def slow(self, key, *arguments):
        if key == refused:
            raise StoreError("the disk is full")
        time.sleep(0.2)
        put_file(self, key, *arguments)
        ended.append(key)

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(ObjectStore, "put_file", slow)
    with pytest.raises(StoreError, match="full"):
        store.put_files(dict.fromkeys("abc", tmp_path / "file"), "text/plain")
    assert sorted(ended) == sorted({"a", "b", "c"} - {refused})


def test_bytes_and_files_come_back(store, tmp_path):
    store.put_bytes("a/b", b"hello", "text/plain")
    assert store.get_bytes("a/b") == b"hello"
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 50_000)  # 12.8 MB: goes in parts
    store.put_file("big", source, "application/octet-stream")
    store.get_file("big", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(store.keys()) == ["a/b", "big"]
    assert store.keys("a/") == ["a/b"]


def test_a_copy_is_an_object_of_its_own(store):
    store.put_bytes("source", b"hello", "text/x-test")
    store.copy("source", "folder/target")
    store.delete(["source"])
    assert store.get_bytes("folder/target") == b"hello"
    with pytest.raises(ObjectMissing):
        store.copy("source", "another")


def test_deleting_is_for_good_and_may_be_repeated(store):
    store.put_bytes("x", b"1", "text/plain")
    store.put_bytes("y", b"1", "text/plain")
    store.delete(["x", "never-there"])
    assert store.keys() == ["y"]
    store.delete([])


def test_what_is_not_there_is_told_apart(store, tmp_path):
    with pytest.raises(ObjectMissing):
        store.get_bytes("nope")
    with pytest.raises(ObjectMissing):
        store.get_file("nope", tmp_path / "x")


def test_a_store_that_is_down_is_our_own_error(store_settings, tmp_path):
    dead = ObjectStore(store_settings.model_copy(update={"endpoint": "http://127.0.0.1:1"}))
    (tmp_path / "file").write_bytes(b"1")
    for act in (
        lambda: dead.put_bytes("k", b"1", "text/plain"),
        lambda: dead.put_file("k", tmp_path / "file", "text/plain"),
        lambda: dead.get_bytes("k"),
        dead.ping,
        dead.ensure_bucket,
    ):
        with pytest.raises(StoreError):
            act()


def test_wrong_credentials_are_refused(store, store_settings):
    secret = type(store_settings.secret_access_key)("wrong-secret")
    with pytest.raises(StoreError):
        ObjectStore(store_settings.model_copy(update={"secret_access_key": secret})).get_bytes("k")


def test_a_signed_link_serves_the_object_under_its_name(store):
    store.put_bytes("a/b", b"hello", "text/plain")
    with urlopen(link(store)) as answer:  # noqa: S310
        assert answer.read() == b"hello"
        assert answer.headers["content-type"] == "application/x-test"
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''my%20file.bin"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url: url.replace("/a/b", "/a/c"),
        lambda url: url.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601"),
        lambda url: url.replace("application%2Fx-test", "text%2Fhtml"),
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url.split("?")[0],
    ],
)
def test_a_tampered_link_is_refused(store, tamper):
    store.put_bytes("a/b", b"hello", "text/plain")
    store.put_bytes("a/c", b"secret", "text/plain")
    changed = tamper(link(store))
    assert changed != link(store)
    assert status(changed) in {400, 403}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_link_is_for_reading_only(store, method):
    store.put_bytes("a/b", b"hello", "text/plain")
    assert status(link(store), method) in {400, 403}
    assert store.get_bytes("a/b") == b"hello"


def test_a_link_expires(store):
    store.put_bytes("a/b", b"hello", "text/plain")
    url = link(store, expires=timedelta(seconds=1))
    deadline = time.monotonic() + 20
    while (answer := status(url)) == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer in {400, 403}


def test_links_are_signed_for_the_public_endpoint(store_settings):
    public = ObjectStore(store_settings.model_copy(update={"public_endpoint": "https://files.example.org"}))
    assert link(public).startswith(f"https://files.example.org/{store_settings.bucket}/a/b?")


def test_the_self_test_passes_and_leaves_nothing(store):
    store.self_test()
    assert store.keys() == []


def test_an_endpoint_where_nobody_can_write_by_links_is_told_of_and_not_refused(store, monkeypatch, caplog):
    signed = store.presigned_put
    old, new = "X-Amz-Signature=", "X-Amz-Signature=00"
    monkeypatch.setattr(store, "presigned_put", lambda *given, **more: signed(*given, **more).replace(old, new))
    store.self_test()
    assert "uploads by link are refused" in caplog.text


def test_the_self_test_sees_a_store_that_does_not_look_at_the_time(store, monkeypatch):
    signed = Presigner.get
    monkeypatch.setattr(
        Presigner, "get", lambda self, key, **said: signed(self, key, **said | {"at": datetime.now(UTC)})
    )
    with pytest.raises(StoreMisconfigured, match="time is over"):
        store.self_test()
    assert store.keys() == []


def test_a_public_endpoint_that_leads_nowhere_from_here_is_tested_at_the_internal_one(store, store_settings, caplog):
    ObjectStore(store_settings.model_copy(update={"public_endpoint": "http://127.0.0.1:1"})).self_test()
    assert "tested at S3_ENDPOINT under the public name" in caplog.text
    assert store.keys() == []


def test_a_signature_for_another_name_does_not_pass_there(store, store_settings, monkeypatch):
    fetch = storage._fetch
    monkeypatch.setattr(
        storage, "_fetch", lambda url, **ways: fetch(url.replace("127.0.0.1:1/", "127.0.0.1:2/"), **ways)
    )
    with pytest.raises(StoreMisconfigured, match="S3_PUBLIC_ENDPOINT"):
        ObjectStore(store_settings.model_copy(update={"public_endpoint": "http://127.0.0.1:1"})).self_test()
    assert store.keys() == []


def test_the_bucket_is_made_once(store, store_settings):
    store.ensure_bucket()
    with pytest.raises(ObjectMissing):
        ObjectStore(store_settings.model_copy(update={"bucket": "not-there"})).ping()
