"""The matrix of encoders is committed: every family has a result, and what was promised of each holds."""

from __future__ import annotations

import json

import pytest

from bench.encoders.__main__ import RESULTS
from bench.encoders.families import families
from bench.encoders.proof import Proof
from tests.contracts.test_make import ROOT

PROOFS = {name: Proof(**values) for name, values in json.loads((ROOT / RESULTS).read_text())["families"].items()}


def test_every_family_has_a_result() -> None:
    assert list(PROOFS) == [family.name for family in families()]


@pytest.mark.parametrize("name", list(PROOFS))
def test_what_is_written_down_holds(name: str) -> None:
    proof = PROOFS[name]
    if proof.stopped is not None:
        assert proof.stopped.endswith(".")
        return
    assert proof.trained
    assert proof.features is not None
    assert proof.features <= 1e-5
    assert proof.preprocessing is not None
    assert proof.preprocessing <= {"image": 1.0, "text": 0.0, "audio": 1e-4}[proof.kind]
    assert proof.parity is not None
    assert proof.promise is not None
    assert proof.parity <= proof.promise <= 1e-5
    assert proof.engine == "compiled"
