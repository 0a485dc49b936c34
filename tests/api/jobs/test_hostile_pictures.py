"""The corpus of hostile pictures, sent to the service as anybody would."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from api.jobs.images import ImageRefused, clean
from api.settings import ImageLimits
from tests.api.factories import encode, png
from tests.api.hostile_pictures import ACCEPTED, FILE_NAMES, MARK, MORE_ACCEPTED, NOISE, REFUSED, endless_scans

A_SIDE = 20
KNOWN = {"heic", "not_an_image", "damaged", "too_many_pixels", "too_small", "animated", "empty", "unreadable"}


def test_every_hostile_picture_is_refused_by_its_own_code(caller, store):
    corpus = list(REFUSED)
    for names in (corpus[at : at + A_SIDE] for at in range(0, len(corpus), A_SIDE)):
        answer = caller.submit(content=[REFUSED[name][0] for name in names])
        assert answer.status_code == 422
        said = {error["pointer"]: error for error in answer.json()["errors"]}
        codes = {name: said.get(f"/content_images/{at}", {}).get("code") for at, name in enumerate(names)}
        assert codes == {name: REFUSED[name][1] for name in names}
        assert all(len(error["detail"]) > 20 for error in said.values())
    assert caller.get("/jobs").json()["items"] == []
    assert store.keys() == []


@pytest.mark.parametrize("corpus", [ACCEPTED, MORE_ACCEPTED], ids=["first", "second"])
def test_every_odd_but_healthy_picture_is_kept_as_bare_pixels(corpus, caller, store):
    answer = caller.submit(content=[data for data, _ in corpus.values()])
    assert answer.status_code == 202, answer.text
    rows = [row for row in answer.json()["images"] if row["side"] == "content"]
    assert {name: (row["width"], row["height"]) for name, row in zip(corpus, rows, strict=True)} == {
        name: size for name, (_, size) in corpus.items()
    }
    kept = [store.get_bytes(key) for key in store.keys(prefix="") if "content" in key]
    assert len(kept) == len(corpus)
    for data in kept:
        assert MARK not in data
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            assert (image.mode, image.info) == ("RGB", {})


def test_nobody_asks_what_a_file_is_called(caller):
    files = [("content_images", (name, png(color=(at, 0, 0)), "text/html")) for at, name in enumerate(FILE_NAMES)]
    answer = caller.post("/jobs", files=[*files, ("style_images", ("s", png()))])
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["images"]) == len(FILE_NAMES) + 1


def test_what_costs_its_decoder_too_much_is_refused(serve, api_settings, sessions, caller):
    limits = api_settings.images.model_copy(update={"cpu_s": 1})
    strict = type(caller)(serve(images=limits), caller.key)
    answer = strict.submit(content=[png(), endless_scans((3000, 3000), 3000)])
    assert answer.status_code == 422
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [
        ("/content_images/1", "unreadable")
    ]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    wounds=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    kept=st.floats(0.3, 1),
)
def test_a_wounded_picture_is_refused_or_taken_and_nothing_else(form, wounds, kept, tmp_path):
    data = bytearray(encode(NOISE, form))
    for place, wound in wounds:
        at = int(place * (len(data) - len(wound)))
        data[at : at + len(wound)] = wound
    del data[int(len(data) * kept) :]
    try:
        result = clean(io.BytesIO(data), len(data), tmp_path / "out.png", ImageLimits())
        outcome = result.path.read_bytes()[1:4]
    except ImageRefused as refusal:
        outcome = refusal.code
    assert outcome in {b"PNG", *KNOWN}
