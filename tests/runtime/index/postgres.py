"""A PostgreSQL server of the tests' own, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path:
    """Folder of the newest installed server's programs."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    folders = [folder for folder in folders if (folder / "initdb").exists()]
    if found is None and not folders:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    programs = folders[-1] if folders else Path(str(found)).resolve().parent
    shared = subprocess.run([programs / "pg_config", "--sharedir"], capture_output=True, text=True).stdout.strip()
    if not (Path(shared) / "extension" / "vector.control").exists():
        pytest.skip("PostgreSQL has no pgvector, which not every distribution packages (github.com/pgvector/pgvector)")
    return programs


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server with pgvector on a socket in a temporary folder, and give its address.

    PostgreSQL refuses to run as root, so there it runs as the user ``postgres``.
    """
    programs, root = _programs(), os.name == "posix" and os.getuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if root:
        shutil.chown(folder, "postgres", "postgres")
    user = "postgres" if root else None

    def run(program: str, *options: str) -> None:
        # To a file: the server would keep a pipe open.
        with (folder.parent / f"{folder.name}.out").open("w+") as said:
            done = subprocess.run(
                [programs / program, "-D", folder / "data", *options], cwd="/", user=user, stdout=said, stderr=said
            )
            said.seek(0)
            assert done.returncode == 0, said.read()

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -F -k {folder}", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.out").unlink(missing_ok=True)
