"""Archives: what is read of them, and everything that is refused before it is inflated."""

import io
import struct
import zipfile
from contextlib import contextmanager

import pytest

from api.errors import InvalidParameters
from api.jobs.archive import MAX_DIRECTORY_BYTES, MAX_ENTRIES, ArchiveLimits, unpacked
from tests.api.factories import png
from tests.api.jobs.test_routes import pointers, problem

LIMITS = ArchiveLimits(entry_bytes=3_000_000, all_bytes=5_000_000)
WHOLE = {"content/1.png": png(), "style/1.png": png(color=(1, 2, 3))}


def archive(entries, compression=zipfile.ZIP_DEFLATED):
    """A zip of names, or entries, and their bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for entry, data in entries.items() if isinstance(entries, dict) else entries:
            made.writestr(entry, data)
    return buffer.getvalue()


@contextmanager
def read(data, **options):
    with unpacked(io.BytesIO(data), LIMITS, **options) as contents:
        yield contents


def refusal(data, **options):
    with pytest.raises(InvalidParameters) as caught, read(data, **options):
        pass
    return [(entry.pointer, entry.code) for entry in caught.value.errors]


def entry(name, **changes):
    made = zipfile.ZipInfo(name)
    made.compress_type = zipfile.ZIP_DEFLATED
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def test_pictures_come_in_the_order_of_their_names_with_numbers_as_numbers():
    names = ["content/10.png", "content/b.png", "content/9.png", "style/x.jpg", "content/A.png"]
    with read(archive({name: name.encode() for name in names})) as contents:
        assert [file.pointer for file in contents.content] == [
            f"/archive/content/{name}.png" for name in ("9", "10", "A", "b")
        ]
        assert [(file.file.read(), file.size) for file in contents.style] == [(b"style/x.jpg", 11)]
    assert all(file.file.closed for file in (*contents.content, *contents.style))


def test_parameters_may_be_inside_or_beside_but_not_both():
    inside = archive({**WHOLE, "params.json": b'{"rank": 3}'})
    with read(inside) as contents:
        assert contents.params.rank == 3
    with read(archive(WHOLE), params='{"rank": 4}') as contents:
        assert contents.params.rank == 4
    with read(archive(WHOLE)) as contents:
        assert contents.params.model_fields_set == set()
    assert refusal(inside, params="{}") == [("/archive/params.json", "too_many")]
    assert refusal(archive({"params.json": b'{"rank": "x"}'})) == [("/archive/params.json/rank", "int_type")]
    assert refusal(archive({"params.json": b'{"a": "' + b"x" * 70_000 + b'"}'})) == [
        ("/archive/params.json", "too_large")
    ]


def test_what_desktops_add_is_left_out():
    clutter = {"__MACOSX/content/._1.png": b"x", "content/.DS_Store": b"x", "style/Thumbs.db": b"x", "content/": b""}
    with read(archive({**clutter, **WHOLE})) as contents:
        assert (len(contents.content), len(contents.style)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../content/1.png", "unsafe_name"),
        ("content/../../1.png", "unsafe_name"),
        ("/content/1.png", "unsafe_name"),
        ("content//1.png", "unsafe_name"),
        ("content\\1.png", "unsafe_name"),
        ("content/a\nb.png", "unsafe_name"),
        ("content/" + "x" * 300, "unsafe_name"),
        ("1.png", "out_of_place"),
        ("pictures/content/1.png", "out_of_place"),
        ("content/deeper/1.png", "out_of_place"),
        ("Content/1.png", "out_of_place"),
        ("style/params.json/x", "out_of_place"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name, code):
    [(pointer, found)] = refusal(archive({**WHOLE, name: b"x"}))
    assert found == code
    assert pointer.startswith("/archive/")
    assert pointer.isprintable()


def test_links_and_devices_are_refused():
    link = entry("content/2.png", create_system=3, external_attr=0o120777 << 16)
    assert refusal(archive([(link, b"/etc/passwd")])) == [("/archive/content/2.png", "not_a_file")]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_of_a_name_are_refused():
    assert refusal(archive([("content/1.png", b"a"), ("content/1.png", b"b")])) == [
        ("/archive/content/1.png", "duplicate")
    ]


@pytest.mark.parametrize(("field", "value", "code"), [(6, 1, "encrypted"), (8, 12, "unsupported")])
def test_encryption_and_other_compressions_are_refused(field, value, code):
    data = bytearray(archive({"content/1.png": b"x" * 100}))
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<H", data, directory + field + 2, value)
    assert refusal(bytes(data)) == [("/archive/content/1.png", code)]


def test_bombs_are_refused_by_what_they_announce():
    assert refusal(archive({"content/1.png": bytes(2_000_000)})) == [("/archive/content/1.png", "too_compressed")]
    assert refusal(archive({"content/1.png": bytes(3_000_001)})) == [("/archive/content/1.png", "too_large")]
    stored = {f"content/{number}.png": bytes(2_000_000) for number in range(3)}
    assert refusal(archive(stored, zipfile.ZIP_STORED)) == [("/archive", "too_large")]


def test_one_that_inflates_to_more_than_it_announces_is_damaged():
    data = bytearray(archive({"content/1.png": bytes(1_000_000)}))
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, 1000)
    assert refusal(bytes(data)) == [("/archive/content/1.png", "damaged")]


def test_many_entries_are_not_even_listed():
    assert refusal(archive({f"content/{number}": b"" for number in range(MAX_ENTRIES + 1)})) == [
        ("/archive", "too_many")
    ]
    many = archive({f"content/{number}": b"" for number in range(MAX_DIRECTORY_BYTES // 46)})
    assert refusal(many) == [("/archive", "damaged")]


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip", png(), archive(WHOLE)[:-30], archive(WHOLE)[40:]])
def test_what_is_no_whole_zip_is_refused(data):
    assert {code for _, code in refusal(data)} == {"damaged"}


def test_a_bit_that_fell_over_is_seen():
    data = bytearray(archive(WHOLE, zipfile.ZIP_STORED))
    data[80] ^= 1
    assert refusal(bytes(data)) == [("/archive/content/1.png", "damaged")]


class TestSubmit:
    def submit(self, caller, data, **parts):
        return caller.post("/jobs", files={"archive": ("job.zip", data), **parts})

    def test_a_job_by_archive_is_as_one_by_pictures(self, caller):
        answer = self.submit(caller, archive({**WHOLE, "params.json": b'{"rank": 3}'}))
        assert answer.status_code == 202, answer.text
        by_pictures = caller.submit(list(WHOLE.values())[:1], list(WHOLE.values())[1:], {"rank": 3}).json()
        assert (answer.json()["params"], answer.json()["images"]) == (by_pictures["params"], by_pictures["images"])

    def test_what_is_refused_is_named_by_its_place_in_the_archive(self, caller, store):
        bad = {**WHOLE, "content/2.png": b"no picture", "params.json": b'{"rank": 0}'}
        assert pointers(problem(self.submit(caller, archive(bad)), 422)) == ["/archive/params.json/rank"]
        del bad["params.json"]
        assert pointers(problem(self.submit(caller, archive(bad)), 422)) == ["/archive/content/2.png"]
        assert pointers(problem(self.submit(caller, archive({"content/1.png": png()})), 422)) == ["/archive/style"]
        beside = {"content_images": ("1.png", png())}
        assert pointers(problem(self.submit(caller, archive(WHOLE), **beside), 422)) == ["/archive"]
        assert store.keys() == []

    def test_sent_again_it_is_known_again(self, caller):
        key = {"Idempotency-Key": "archive"}
        first = caller.post("/jobs", files={"archive": ("a.zip", archive(WHOLE))}, headers=key)
        again = caller.post("/jobs", files={"archive": ("b.zip", archive(WHOLE, zipfile.ZIP_STORED))}, headers=key)
        assert first.json() == again.json()
