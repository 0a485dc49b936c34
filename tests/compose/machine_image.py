"""A base image made of this machine: its Python, a few programs, and the libraries that they load.

It stands in for a Debian image with Python where no registry can be reached. Nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

PROGRAMS = (
    *(
        "sh",
        "env",
        "cat",
        "chmod",
        "chown",
        "cp",
        "grep",
        "id",
        "install",
        "ln",
        "ls",
        "mkdir",
        "mv",
        "rm",
        "sleep",
        "tail",
    ),
    *("groupadd", "useradd", "setpriv"),
)
ALSO = ("/etc/login.defs", "/etc/ssl/certs/ca-certificates.crt", "/usr/share/zoneinfo")
SUPPORT = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
    "libm.so.6",
)
"""Libraries that wheels may expect of every Linux."""
WITHOUT = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "config-*",
    "__pycache__", "*.a",
)  # fmt: skip
FOLDERS = ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "root", "var/lib", "var/cache", "run", "proc", "sys")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def write_tree(root: Path) -> None:
    """Fill an empty folder with what becomes the image's file system."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("../run")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    _users(root)
    copied = [_copy_program(root, name) for name in PROGRAMS]
    copied += _copy_python(root)
    _copy_libraries(root, copied)
    for path in map(Path, ALSO):
        _copy(path, root / path.relative_to("/"))


def changes() -> list[str]:
    """What the image says of itself, for `docker import --change`."""
    return [
        f"ENV PATH={SEARCH}",
        "ENV LANG=C.UTF-8",
        f"ENV SSL_CERT_FILE={CERTIFICATES}",
        f"ENV PIP_CERT={CERTIFICATES}",
        'CMD ["python3"]',
    ]


def _users(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/shadow").touch(mode=0o600)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def _tool(name: str) -> str:
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise FileNotFoundError(f"a stand-in image needs {name}, which this machine lacks")
    return found


def _copy_program(root: Path, name: str) -> Path:
    program = Path(_tool(name))
    _copy(program, root / "usr/bin" / name)
    return program


def _copy_python(root: Path) -> list[Path]:
    """Put the interpreter of this environment under /usr/local, with pip; return the files that load libraries."""
    program = Path(sys.base_prefix) / "bin" / PYTHON
    library = Path(sysconfig.get_path("stdlib"))
    local = root / "usr/local"
    _copy(program, local / "bin" / PYTHON)
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(PYTHON)
    shutil.copytree(library, local / "lib" / PYTHON, symlinks=True, ignore=WITHOUT)
    pip = find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    shutil.copytree(Path(pip.origin).parent, local / "lib" / PYTHON / "site-packages/pip", ignore=WITHOUT)
    return [program, *(each for each in library.glob("lib-dynload/*.so") if not each.name.startswith("_tkinter"))]


def _copy_libraries(root: Path, files: list[Path]) -> None:
    """Copy what the dynamic linker would load for the files, at the paths where it finds them."""
    answer = subprocess.run([_tool("ldd"), *map(str, files)], capture_output=True, text=True, check=False).stdout
    found = set(re.findall(r"(/\S+) \(0x", answer))
    known = subprocess.run([_tool("ldconfig"), "-p"], capture_output=True, text=True, check=True).stdout
    for name in SUPPORT:
        if path := re.search(rf"{re.escape(name)} .*=> (\S+)", known):
            found.add(path[1])
    for path in map(Path, found):
        if path.is_relative_to(sys.base_prefix):
            _copy(path, root / "usr/lib" / path.name)
        else:
            _copy(path, root / path.relative_to("/"))


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with its links; a link's target for a single file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)
