"""A disk that is full: what a checkpoint's writer says, and that nothing half-written stays."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxtalk.artifacts.files import atomic_file

LIMIT = 1 << 20


@pytest.fixture
def _no_large_files() -> Iterator[None]:
    """No file of this process may grow beyond the limit, as on a disk without more space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_no_large_files")
@pytest.mark.parametrize(("save", "why"), [(torch.save, "could not be written whole"), (save_file, "File too large")])
def test_what_does_not_fit_is_an_error_of_the_path(tmp_path: Path, save: Callable[..., None], why: str) -> None:
    path = tmp_path / "large"
    with pytest.raises(OSError, match=why) as caught, atomic_file(path) as temporary:
        save({"weights": torch.zeros(LIMIT)}, temporary)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
