"""Which user Postgres runs as, and where its files may lie for that user.

Postgres refuses to run as root. An ordinary user starts it directly. Root starts it in a user namespace of its own,
where the same user has another number; files stay root's and nothing else changes. Where namespaces are blocked (the
default of many containers), it runs as `nobody`, from folders that `nobody` can enter. No permission of an existing
folder is ever changed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

from deploy.local.processes import Identity, LocalStackError

STATE_FOLDER = Path("/var/lib/duolora")
"""Home of what `nobody` must reach when the data folder or the virtual environment lies behind a closed folder."""


@functools.cache
def postgres_identity() -> Identity:
    """The identity for this process: itself, a user namespace, or `nobody`."""
    if os.geteuid() != 0:
        return Identity()
    return namespace_identity() or nobody_identity()


def namespace_identity() -> Identity | None:
    """Root under another number, by `unshare`; None where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    prefix = (unshare, "--user", "--map-user=1000", "--map-group=1000")
    probe = subprocess.run([*prefix, "true"], check=False, capture_output=True)
    return Identity(prefix=prefix) if probe.returncode == 0 else None


def nobody_identity() -> Identity:
    """The unprivileged user that every system has."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise LocalStackError(
            "Postgres does not run as root, and there is no user `nobody`: start as an ordinary user"
        ) from error
    return Identity(uid=entry.pw_uid, gid=entry.pw_gid)


def reachable_folder(folder: Path, identity: Identity, *, installation: str) -> Path:
    """`folder` itself, or a stand-in under STATE_FOLDER when the identity cannot enter it; made and owned as needed.

    `installation` tells a data folder from one made anew at the same place: it must not find the old stand-in, whose
    password is gone.
    """
    place = folder.absolute()
    if identity.uid is not None and not _open_to_others(place.parent):
        place = _state_folder() / f"postgres-{_digest(str(place), installation)}"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    own_tree(place, identity)
    return place


def reachable_binaries(install: Path, identity: Identity, *, version: str) -> Path:
    """`install` itself, or a copy of this version that the identity can enter."""
    if identity.uid is None or _open_to_others(install):
        return install
    copy = _state_folder() / f"{install.name}-{_digest(str(install), version)}"
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copytree(install, partial, symlinks=True)
        try:
            partial.rename(copy)
        except OSError:  # another process was faster; its copy is as good
            shutil.rmtree(partial)
    return copy


def own_tree(folder: Path, identity: Identity) -> None:
    """Give a folder and all in it to the identity; nothing to do when it is the owner already."""
    uid = os.geteuid() if identity.uid is None else identity.uid
    gid = os.getegid() if identity.gid is None else identity.gid
    if folder.stat().st_uid == uid:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, uid, gid, follow_symlinks=False)


def _digest(*parts: str) -> str:
    """A short name for several strings together."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _state_folder() -> Path:
    STATE_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    return STATE_FOLDER


def _open_to_others(folder: Path) -> bool:
    """Whether any user may walk down to `folder`, judged by the permission bits of those parts that exist."""
    resolved = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (resolved, *resolved.parents) if part.exists())
