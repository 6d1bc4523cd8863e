"""What is released: the wheel and the sdist, built, installed and used; and the oldest versions that they allow."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Made

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINKS = ("train", "export", "runtime")
OLDEST_EXTRAS = ("cpu", "serve", "search", "data", "otel")
UNIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty"}


def checked_out(folder: Path, with_links: bool) -> Path:
    """Copy the files that git knows; without links as Windows checks them out: each is a file that names its target."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not with_links:
            target.write_text(os.readlink(source))
        elif source.is_symlink() or source.is_file():
            shutil.copy(source, target, follow_symlinks=False)
    return folder


def built(tree: Path, kind: str) -> Path:
    """Build a wheel or an sdist of a tree with setuptools."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build('dist'))"
    (tree / "dist").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return tree / "dist" / done.stdout.splitlines()[-1]


def run(*command: object) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout


def use(scripts: Path, bundle: Path, folder: Path) -> None:
    """Verify, embed, index, search and serve with what is installed."""
    assert "parity holds" in run(scripts / "fluxtalk-export", "verify", bundle)
    run(scripts / "fluxtalk", "embed", bundle, "text", "omega", "-o", folder / "omega.npy")
    run(scripts / "fluxtalk", "index", "build", bundle, "text", "omega", "black chess queen", "-o", folder / "t.index")
    assert "omega" in run(scripts / "fluxtalk", "index", "search", folder / "t.index", "text", "omega").splitlines()[0]
    command = [str(scripts / "fluxtalk"), "serve", str(bundle), "--port", "0", "--threads", "1"]
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd="/"
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            end = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/readyz").close()
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < end
                    time.sleep(0.2)
            for path in ("/", "/openapi.json", "/info"):
                with urllib.request.urlopen(url + path) as answer:
                    assert answer.status == 200
        finally:
            server.terminate()
            assert server.wait(60) == 0


@pytest.mark.slow
def test_the_wheel_and_the_sdist_are_installed_and_used(made: Made, tmp_path: Path) -> None:
    sdist = built(checked_out(tmp_path / "tree", with_links=True), "sdist")
    with tarfile.open(sdist) as file:
        assert not any(member.issym() or member.islnk() for member in file.getmembers())
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = built(unpacked, "wheel")
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    packages = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # The dependencies are those of the tests; the editable FluxTalk among them is behind the installed one.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    told = run(environment / "bin" / "python", "-c", "import fluxtalk.runtime.server as s; print(s.__file__)")
    assert told.startswith(str(packages))
    use(environment / "bin", made.bundle.folder, tmp_path)


@pytest.mark.slow
def test_the_wheel_needs_no_links(tmp_path: Path) -> None:
    wheels = {
        with_links: built(checked_out(tmp_path / str(with_links), with_links), "wheel") for with_links in (True, False)
    }
    contents = {with_links: sorted(zipfile.ZipFile(wheel).namelist()) for with_links, wheel in wheels.items()}
    assert contents[True] == contents[False]
    assert len([name for name in contents[False] if name.endswith(".py")]) > 300
    for name in ("fluxtalk/runtime/server/page/page.html", "fluxtalk/py.typed", "fluxtalk/train/cli.py"):
        assert name in contents[False]
    assert not [name for name in contents[False] if name.startswith(("tests/", "bench/", "train/"))]


def _oldest() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "constraints-oldest.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            yield name.lower().replace("_", "-"), version


def test_the_oldest_versions_are_those_that_pyproject_allows() -> None:
    asked = [*PROJECT["dependencies"], *(need for e in OLDEST_EXTRAS for need in PROJECT["optional-dependencies"][e])]
    lowest = {}
    for need in asked:
        found = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", need)
        assert found, need
        lowest[found[1].lower().replace("_", "-")] = [int(part) for part in found[2].split(".")]
    pinned = {name: [int(part) for part in version.split(".")] for name, version in _oldest()}
    assert pinned.keys() == lowest.keys()
    for name, version in lowest.items():
        assert pinned[name] == version + [0] * (len(pinned[name]) - len(version)), name


@pytest.mark.slow
def test_the_oldest_versions_serve(made: Made, tmp_path: Path) -> None:
    """Installed from the package index; what it does not have fails here by name."""
    wheel = built(checked_out(tmp_path / "tree", with_links=True), "wheel")
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    asked = f"{wheel}[{','.join(OLDEST_EXTRAS)}]"
    constraints = ROOT / "constraints-oldest.txt"
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, asked)
    listed = run(environment / "bin" / "python", "-m", "pip", "list", "--format", "freeze").lower().replace("_", "-")
    assert {f"{name}=={version}" for name, version in _oldest()} <= set(listed.splitlines())
    use(environment / "bin", made.bundle.folder, tmp_path)


def test_no_module_needs_unix_when_it_is_imported() -> None:
    """Windows has none of these; where they are used, they are asked for there."""
    wrong = []
    for room in ("fluxtalk", *LINKS):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                    wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names if name in UNIX_ONLY]
    assert wrong == []


def test_text_files_name_their_encoding_or_are_ascii() -> None:
    """Windows takes another encoding than UTF-8 unless it is told."""
    wrong = []
    for room in ("fluxtalk", *LINKS):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    named = any(k.arg == "encoding" for k in node.keywords)
                    if node.func.attr in ("read_text", "write_text") and not named:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
