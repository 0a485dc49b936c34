"""The processes that decode: what they may do, and what becomes of them and of us when one dies."""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import psutil
import pytest
from PIL import Image

from api.decoder.client import Decoder
from api.decoder.seccomp import obstacle
from api.decoder.wire import Bounds, ImageRefused
from tests.api.factories import encode, png
from tests.support.process_list import wait_until_gone

BOUNDS = Bounds(
    max_pixels=50_000_000, min_side_px=1, keep_side_px=2048, cpu_s=20, timeout_s=60, memory_bytes=2 * 1024**3
)
LARGE = encode(Image.new("RGB", (6000, 6000), "teal"), "PNG", compress_level=1)
MIB = 1024 * 1024


@pytest.fixture
def decoder():
    made = Decoder()
    yield made
    made.stop()


def bounds(**changes):
    return Bounds(**{name: getattr(BOUNDS, name) for name in Bounds.__slots__} | changes)


def decode(decoder, data, limits=BOUNDS):
    with tempfile.TemporaryFile() as target:
        size = decoder.decode(io.BytesIO(data), target.fileno(), limits)
        target.seek(0)
        return Image.frombytes("RGB", (size.width, size.height), target.read())


def refusal(decoder, data, limits):
    with pytest.raises(ImageRefused) as caught:
        decode(decoder, data, limits)
    return caught.value.code


def test_it_knows_neither_the_service_nor_the_engine():
    heavy = ("torch", "numpy", "sqlalchemy", "pydantic", "fastapi", "boto3", "redis", "api.settings", "api.db")
    code = f"import api.decoder.__main__, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_it_is_not_told_the_secrets_of_the_service(decoder, monkeypatch, tmp_path):
    told = tmp_path / "told"  # by itself: nobody else may look, unless it is root
    (tmp_path / "sitecustomize.py").write_text(f"import os; open({str(told)!r}, 'w').write(repr(os.environ))")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "swordfish")
    decode(decoder, png())
    assert "PYTHONPATH" in told.read_text()
    assert "swordfish" not in told.read_text()


SPY = """
import ctypes, errno, io, os, tempfile
from api.decoder.client import Decoder
from api.decoder.confinement import confine
from api.decoder.wire import Bounds
from tests.api.factories import png

class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def read(pid):
    copy = ctypes.create_string_buffer(len(secret))
    here, there = Span(ctypes.addressof(copy), len(secret)), Span(ctypes.addressof(secret), len(secret))
    count = libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return copy.raw if count > 0 else errno.errorcode[ctypes.get_errno()]

libc = ctypes.CDLL(None, use_errno=True)
secret = ctypes.create_string_buffer(b"swordfish")
api, decoder = os.getpid(), Decoder()
bounds = Bounds(max_pixels=4096, min_side_px=1, keep_side_px=64, cpu_s=5, timeout_s=60, memory_bytes=2 << 30)
with tempfile.TemporaryFile() as target:
    decoder.decode(io.BytesIO(png()), target.fileno(), bounds)
child = os.fork()
if child == 0:
    confine(bounds)
    ctypes.memset(secret, 0, len(secret))
    os.write(1, f"{os.geteuid() == 0} {read(api)} {read(decoder.pid)}".encode())
    os._exit(0)
os.waitpid(child, 0)
"""


AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
"""Before a command; what follows lets Python be found in a folder of root's, and is no right to look into processes."""
FIND_FILES = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


def test_a_decoder_of_the_same_user_reads_the_memory_of_nobody_else():
    words = [*AS_NOBODY, *FIND_FILES] if os.geteuid() == 0 else []
    words += [sys.executable, "-B", "-c", SPY]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("False EPERM EPERM", "")


def test_every_picture_has_a_process_of_its_own_that_does_not_stay(decoder):
    for color in ("red", "blue"):
        assert decode(decoder, png(color=color)).getpixel((3, 3)) == decode(decoder, png(color=color)).getpixel((9, 9))
    wait_until_gone((child.pid for child in psutil.Process(decoder.pid).children()), timeout_s=30)


def test_a_file_is_read_from_its_beginning_wherever_it_stands(decoder):
    with tempfile.SpooledTemporaryFile(10) as spooled, tempfile.TemporaryFile() as target:
        spooled.write(png((40, 30)))
        assert decoder.decode(spooled, target.fileno(), BOUNDS).width == 40


def test_one_that_takes_too_long_is_killed_and_its_picture_refused(decoder):
    decode(decoder, png())
    assert refusal(decoder, LARGE, bounds(timeout_s=0.1)) == "unreadable"
    assert decode(decoder, png()).size == (64, 48)


def test_one_that_takes_too_much_memory_has_its_picture_refused(decoder):
    assert refusal(decoder, LARGE, bounds(memory_bytes=100 * MIB)) == "unreadable"
    assert decode(decoder, LARGE).size == (2048, 2048)


def test_one_that_writes_more_than_it_may_has_its_picture_refused(decoder, tmp_path):
    code = (
        "import os, sys; from api.decoder.confinement import confine; from api.decoder.wire import Bounds;"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT);"
        "confine(Bounds(max_pixels=10, min_side_px=1, keep_side_px=1, cpu_s=5, timeout_s=5, memory_bytes=1 << 30));"
        "os.write(file, bytes(31)); os.write(file, bytes(1))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert (tmp_path / "out").stat().st_size == 30


@contextmanager
def confined(body):
    """A process that gave up what a decoder gives up, and then tries something."""
    start = (
        "import ctypes, os, resource, signal, socket, sys, threading, time\n"
        "from api.decoder.confinement import confine\nfrom api.decoder.wire import Bounds\n"
        "confine(Bounds(max_pixels=100, min_side_px=1, keep_side_px=1, cpu_s=1, timeout_s=5, memory_bytes=1 << 30))\n"
    )
    yield subprocess.run([sys.executable, "-c", start + body], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("body", "fails_by"),
    [
        ("open('/etc/passwd')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("os.pipe()", "Too many open files"),
        ("os.memfd_create('x')", "Too many open files"),
        ("bytearray(2 << 30)", "MemoryError"),
        ("resource.setrlimit(resource.RLIMIT_CPU, (1, 2))", "not allowed to raise"),
        ("os.fork()", "Resource temporarily unavailable"),
        ("threading.Thread(target=print).start()", "can't start new thread"),
    ],
)
def test_what_was_given_up_is_not_had_again(body, fails_by):
    with confined(body) as done:
        assert done.returncode != 0
        assert fails_by in done.stderr


REACH = """
import errno, fcntl, os, resource, signal, struct, sys, threading
from api.decoder import confinement
from api.decoder.wire import Bounds

def asked(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "did"

if sys.argv[1:] == ["unfiltered"]:
    confinement.keep_to_itself = lambda: None
pid = os.getpid()
child = os.fork()
if child == 0:
    confinement.confine(
        Bounds(max_pixels=99, min_side_px=1, keep_side_px=1, cpu_s=5, timeout_s=5, memory_bytes=1 << 30)
    )
    others = [
        asked(call, *arguments)
        for call, *arguments in (
            (os.kill, pid, 0),
            (signal.pthread_kill, threading.main_thread().ident, 0),
            (os.sched_setaffinity, pid, os.sched_getaffinity(0)),
            (os.setpriority, os.PRIO_PROCESS, pid, 19),
            (resource.prlimit, pid, resource.RLIMIT_CORE, (0, 0)),
            (fcntl.fcntl, 0, fcntl.F_SETOWN, pid),
            (fcntl.fcntl, 0, 10, signal.SIGKILL),
            (fcntl.ioctl, 0, 0x8901, struct.pack("i", pid)),
        )
    ]
    own = [asked(fcntl.fcntl, 0, fcntl.F_GETFL), asked(resource.prlimit, 0, resource.RLIMIT_CPU), asked(os.fstat, 0)]
    os.write(1, f"{set(others)} {set(own)}".encode())
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(("words", "others"), [([], "EPERM"), (["unfiltered"], "did")])
def test_a_decoder_reaches_no_other_process_of_its_user_only_itself(words, others):
    command = [*AS_NOBODY, *FIND_FILES] if os.geteuid() == 0 else []
    command += [sys.executable, "-B", "-c", REACH, *words]
    ours, theirs = socket.socketpair()  # what can be told whom to signal
    with ours, theirs:
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == (f"{ {others} } { {'did'} }", "")


def test_a_machine_without_such_filters_is_said_so_at_the_start(decoder, monkeypatch, caplog):
    monkeypatch.setattr("api.decoder.client.obstacle", lambda: "no such thing")
    decoder.start()
    assert "could signal this process: no such thing" in caplog.text


def test_this_machine_has_them():
    assert obstacle() is None


def test_computing_ends_after_its_time():
    with confined("while True: pass") as done:
        assert done.returncode in {-signal.SIGXCPU, -signal.SIGKILL}


def test_a_decoder_that_is_killed_is_a_refusal_and_no_more(decoder):
    decode(decoder, png())
    os.kill(decoder.pid, signal.SIGSTOP)  # so that the next picture waits in the socket
    os.kill(decoder.pid, signal.SIGKILL)  # and what was to fork for it is gone
    assert decode(decoder, png()).size == (64, 48)  # it is started again, and asked again


def test_it_ends_when_the_api_is_gone():
    code = (
        "import os, signal; from api.decoder.client import Decoder; made = Decoder(); made.start();"
        "print(made.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    try:
        psutil.Process(int(done.stdout)).wait(30)
    except psutil.NoSuchProcess:
        return
