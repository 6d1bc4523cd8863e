"""The newest of what the index has, on each Python: the wheel is installed, and serves a bundle made by the tests'.

An interpreter that is not here is a skip that names it. `make test-pythons`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Made
from tests.release.test_release import OLDEST_EXTRAS, built, checked_out, run, use


@pytest.mark.slow
@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_the_newest_versions_serve(minor: int, made: Made, tmp_path: Path) -> None:
    python = sys.executable if sys.version_info.minor == minor else shutil.which(f"python3.{minor}")
    asked = [python or "", "-c", "import sys; print(sys.version_info.minor)"]
    if python is None or subprocess.run(asked, capture_output=True, text=True).stdout.strip() != str(minor):
        pytest.skip(f"Python 3.{minor} is not on this machine's PATH")
    wheel = built(checked_out(tmp_path / "tree", with_links=True), "wheel")
    environment = tmp_path / "environment"
    run(python, "-m", "venv", environment)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[{','.join(OLDEST_EXTRAS)}]")
    print(run(environment / "bin" / "python", "-m", "pip", "list", "--format", "freeze"))
    package = environment / "lib" / f"python3.{minor}" / "site-packages" / "fluxtalk"
    run(environment / "bin" / "python", "-W", "error", "-m", "compileall", "-q", "-f", package)
    use(environment / "bin", made.bundle.folder, tmp_path)
