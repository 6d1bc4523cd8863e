"""The description of the processor, on which records of times depend."""

from __future__ import annotations

from pathlib import Path

from fluxtalk.devices.processor import this_processor


def test_models_and_instructions_tell_machines_apart(tmp_path: Path) -> None:
    found = []
    for name, text in (
        (
            "amd",
            "processor : 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f\n\nprocessor : 1\nmodel name : x\n",
        ),
        ("reordered", "model name\t: AMD EPYC\nflags\t\t: avx512f avx2 fpu\n"),
        ("older", "model name\t: AMD EPYC\nflags\t\t: fpu avx2\n"),
        ("arm", "processor\t: 0\nFeatures\t: fp asimd\n"),
    ):
        (tmp_path / name).write_text(text)
        found.append(this_processor(tmp_path / name))
    amd, reordered, older, arm = found
    assert amd == reordered
    assert (amd.model, older.model, arm.model) == ("AMD EPYC", "AMD EPYC", "")
    assert len({amd.instructions, older.instructions, arm.instructions, ""}) == 4


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert this_processor(tmp_path / "missing").instructions == ""
    assert this_processor().architecture
