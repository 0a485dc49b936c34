"""What is handed on of `tracestate`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.telemetry import bind_request, current_tracestate
from api.tracestate import MOST_CHARACTERS, read_tracestate

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("fields", "handed_on"),
    [
        ([], None),
        ([""], None),
        ([" , "], None),
        (["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7"),
        (["rojo=1,congo=t61"], "rojo=1,congo=t61"),
        (["rojo=1", "congo=t61"], "rojo=1,congo=t61"),
        ([" rojo=1 ,\t, congo=t 61"], "rojo=1,congo=t 61"),
        (["0tenant@system=1"], "0tenant@system=1"),
        (["a" * 256 + "=1"], "a" * 256 + "=1"),
        (["a=" + "x" * 256], "a=" + "x" * 256),
        ([",".join(f"k{n}=1" for n in range(32))], ",".join(f"k{n}=1" for n in range(32))),
    ],
)
def test_what_is_well_formed_is_handed_on_in_one_field(fields, handed_on):
    assert read_tracestate(fields) == handed_on


@pytest.mark.parametrize(
    "field",
    [
        "rojo",
        "rojo=",
        "=1",
        "Rojo=1",
        "0rojo=1",
        "rojo=1=2",
        "rojo =1",
        "rojo=é",
        "rojo=a\nb",
        "rojo=1,congo",
        "rojo=1,rojo=2",
        "a@b@c=1",
        "tenant@0system=1",
        "a" * 257 + "=1",
        "a=" + "x" * 257,
        ",".join(f"k{n}=1" for n in range(33)),
    ],
)
def test_what_is_not_is_dropped_as_a_whole(field):
    assert read_tracestate([field]) is None


def test_what_is_too_long_loses_long_members_first_and_then_the_last():
    long, short = "long=" + "x" * 200, [f"k{n}=" + "x" * 60 for n in range(7)]
    assert read_tracestate([",".join([short[0], long, *short[1:]])]) == ",".join(short)
    many = [f"k{n}=" + "x" * 90 for n in range(8)]
    assert read_tracestate([",".join(many)]) == ",".join(many[:5])


@given(st.lists(st.text(max_size=600), max_size=5))
def test_whatever_comes_what_is_handed_on_is_short_and_well_formed(fields):
    state = read_tracestate(fields)
    assert state is None or (len(state) <= MOST_CHARACTERS and read_tracestate([state]) == state)


def test_without_a_trace_of_the_callers_it_means_nothing():
    bind_request(request_id=None, traceparent=TRACE, tracestate=["rojo=1"])
    assert current_tracestate() == "rojo=1"
    for bad in (None, "nonsense"):
        bind_request(request_id=None, traceparent=bad, tracestate=["rojo=1"])
        assert current_tracestate() is None
