"""`fluxtalk compare`: runs made by hand, of which it is known what differs and what may not be compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fluxtalk.errors import ArtifactError, UsageError
from fluxtalk.train.records.history import read_history
from fluxtalk.train.results.compare import REGISTER_CONFIGURATION, Comparison, compare
from fluxtalk.train.results.compare_cli import main
from fluxtalk.train.results.compare_table import table_lines

REGISTERS = {
    "num_register_tokens": 4, "num_overlapping_tokens": 3, "nested_dropout_rate": 0.5,
    "nested_dropout_schedule": "linear", "complementary_reg_weight": 0.01,
}  # fmt: skip
OURS = {"experiment_id": "mine", "implementation": "cursor", "implementation_version": "1.0", "git_revision": None}
FOREIGN = {"experiment_id": "theirs", "implementation": "other"}
CHANCE = {"text->image": {"1": 0.01, "10": 0.1}}


def recall(value: float, tokens: int = 4) -> dict[str, Any]:
    """R@10 grows by a tenth of the value with every token; R@1 is half of it."""
    by_k = {str(k): {"1": value * (1 + k / 10) / 2, "10": value * (1 + k / 10)} for k in range(1, tokens + 1)}
    return {"text->image": by_k}


def our_run(
    root: Path, options: dict[str, Any] | None = None, facts: dict[str, Any] | None = None, scored: bool = True
) -> Path:
    """A run's folder: 4 steps, validations of 0.2, 0.4 and 0.3, and (``scored``) a test of 0.5."""
    root.mkdir(parents=True)
    records: list[dict[str, Any]] = [{"kind": "train", **OURS, "step": s, "total": 4.0 / s} for s in range(1, 5)]
    records += [
        {"kind": "validation", **OURS, "step": s, "score": v, "recall": recall(v), "chance": CHANCE}
        for s, v in ((2, 0.2), (3, 0.4), (4, 0.3))
    ]
    description = {
        "format": "fluxtalk.run",
        **OURS,
        "options": {**REGISTERS, "learning_rate": 0.001, "log_name": root.name, **(options or {})},
        "facts": {
            "data_hash": "d" * 64, "encoder_hashes": {"image": "a" * 64}, "parameters": 12345, **(facts or {}),
        },
    }  # fmt: skip
    (root / "run.json").write_text(json.dumps(description))
    write_records(root / "metrics.jsonl", records)
    if scored:
        results = {**OURS, "split": "test", "seconds": 61.25, "recall": recall(0.5), "chance": CHANCE}
        (root / "results.json").write_text(json.dumps(results))
    return root


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def foreign_run(path: Path, **run: Any) -> Path:
    """The least that another implementation writes, and one record of kind ``run`` where there is any of it."""
    records: list[dict[str, Any]] = [{"kind": "run", **FOREIGN, **run}] if run else []
    records += [{"kind": "train", **FOREIGN, "step": step, "total": 1.0 * step} for step in (1, 2)]
    records += [{"kind": "validation", **FOREIGN, "step": step, "recall": recall(0.1 * step)} for step in (2, 1)]
    return write_records(path, records)


def compared(*paths: Path, align_by: Sequence[str] = REGISTER_CONFIGURATION) -> Comparison:
    return compare([read_history(path) for path in paths], align_by)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_runs_with_an_equal_register_configuration_stand_together(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    b = our_run(tmp_path / "b", {"num_register_tokens": 8})
    c = our_run(tmp_path / "c", {"learning_rate": 0.002})
    # A whole number in another spelling is the same number.
    d = our_run(tmp_path / "d", {"num_register_tokens": 8.0, "learning_rate": 0.003})
    comparison = compared(a, b, c, d)
    assert comparison.names == ("a", "c", "b", "d")
    assert comparison.groups == (1, 1, 2, 2)
    assert comparison.differing == ("num_register_tokens", "learning_rate")
    assert comparison.notes == ()


def test_other_options_to_align_by(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    b = our_run(tmp_path / "b", {"num_register_tokens": 8})
    c = our_run(tmp_path / "c", {"learning_rate": 0.002})
    comparison = compared(a, c, b, align_by=["learning_rate"])
    assert (comparison.names, comparison.groups) == (("a", "b", "c"), (1, 1, 2))
    assert comparison.differing == ("learning_rate", "num_register_tokens")
    with pytest.raises(UsageError, match="'learning_rat'"):
        compared(a, b, align_by=["learning_rat"])


def test_the_global_batch_counts_as_an_option(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a", {"batch_size": 64}, {"processes": 1, "global_batch": 64})
    b = our_run(tmp_path / "b", {"batch_size": 64}, {"processes": 2, "global_batch": 128})
    assert compared(a, b).differing == ("processes", "global_batch")


def test_the_test_is_shown_where_there_is_one(tmp_path: Path) -> None:
    tested, untested = our_run(tmp_path / "tested"), our_run(tmp_path / "untested", scored=False)
    shown = {entry["name"]: entry for entry in compared(tested, untested).to_dict()["runs"]}
    assert shown["tested"]["recall"] == recall(0.5)
    assert shown["tested"]["scored_on"] == "test"
    assert shown["untested"]["recall"] == recall(0.4)
    assert shown["untested"]["scored_on"] == "validation"
    for entry in shown.values():
        assert entry["best_validation"] == {"step": 3, "score": 0.4}
        assert (entry["parameters"], entry["steps"]) == (12345, 4)
    assert (shown["tested"]["seconds"], shown["untested"]["seconds"]) == (61.25, None)
    assert any("other splits (tested: test; untested: validation)" in n for n in compared(tested, untested).notes)


def test_the_table_reads_as_it_should(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    b = foreign_run(tmp_path / "b.jsonl", options={**REGISTERS, "nested_dropout_rate": 0.25}, parameters=9, seconds=2)
    rows = {line.split("  ")[0] or line.strip().split("  ")[0]: line for line in table_lines(compared(a, b))}
    cells = {name: re.split(r"\s{2,}", line.strip())[1:] for name, line in rows.items()}
    assert cells["group"] == ["1", "2"]
    assert cells["nested_dropout_rate"] == ["0.5", "0.25"]
    assert "num_register_tokens" not in cells
    assert cells["implementation"] == ["cursor", "other"]
    assert cells["experiment_id"] == ["mine", "theirs"]
    assert cells["parameters"] == ["12,345", "9"]
    assert cells["time (s)"] == ["61.2", "2.0"]
    assert cells["steps"] == ["4", "2"]
    # The foreign score is the mean of 0.11 .. 0.14 times 2 and their halves.
    assert cells["best validation score (%)"] == ["40.00 (step 3)", "18.75 (step 2)"]
    assert cells["recall below is of"] == ["test", "validation, step 2"]
    assert cells["k=2"] == ["30.0 / 60.0", "12.0 / 24.0"]
    assert "text->image, recall@1/10 (%)" in rows


def test_what_may_not_be_compared_is_said(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    b = our_run(tmp_path / "b", facts={"data_hash": "e" * 64})
    c = our_run(tmp_path / "c", facts={"encoder_hashes": {"image": "f" * 64}})
    notes = "\n".join(compared(a, b, c).notes)
    assert "other data (a, c: data_hash dddddddd; b: data_hash eeeeeeee)" in notes
    assert "other encoders (a, b: image aaaaaaaa; c: image ffffffff)" in notes
    smaller = json.loads((c / "results.json").read_text()) | {"chance": {"text->image": {"1": 0.02, "10": 0.2}}}
    (c / "results.json").write_text(json.dumps(smaller))
    assert "other test split (text->image) (a: chance@10 10.000%; c: chance@10 20.000%)" in "".join(
        compared(a, c).notes
    )


def test_what_another_implementation_leaves_unsaid_is_said(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    silent = foreign_run(tmp_path / "silent.jsonl")
    comparison = compared(a, silent)
    assert comparison.groups == (1, 2)
    assert comparison.differing == ()
    notes = "\n".join(comparison.notes)
    assert "silent does not state its data_hash" in notes
    assert "silent does not state its encoder_hashes" in notes
    assert f"silent does not state {', '.join(REGISTERS)}, learning_rate" in notes
    spoken = foreign_run(
        tmp_path / "spoken.jsonl", options={**REGISTERS, "learning_rate": 0.001}, data_hash="d" * 64,
        encoder_hashes={"image": "a" * 64},
    )  # fmt: skip
    comparison = compared(a, spoken)
    assert comparison.groups == (1, 1)
    assert [note for note in comparison.notes if "split" not in note] == []


def test_the_documented_example_is_a_run(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "docs" / "runs.md").read_text()
    [example] = re.findall(r"```jsonl\n(.*?)```", document, re.DOTALL)
    (tmp_path / "example.jsonl").write_text(example)
    [entry] = compared(tmp_path / "example.jsonl").to_dict()["runs"]
    assert (entry["implementation"], entry["experiment_id"]) == ("other", "flux")
    assert (entry["parameters"], entry["seconds"], entry["steps"]) == (1234567, 310.5, 100)
    assert entry["options"]["num_register_tokens"] == 4
    assert entry["scored_on"] == "test"
    assert entry["recall"]["text->image"]["4"]["10"] == 0.45
    assert entry["best_validation"] == {"step": 100, "score": pytest.approx((0.12 + 0.41 + 0.15 + 0.46) / 4)}


def test_a_run_at_work_can_be_looked_at(tmp_path: Path) -> None:
    young = our_run(tmp_path / "young", scored=False)
    (young / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "to')
    comparison = compared(our_run(tmp_path / "a"), young)
    assert "young has not been scored yet." in comparison.notes
    assert any(note.startswith("young: the last line of its records is torn") for note in comparison.notes)
    assert table_lines(comparison)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = our_run(tmp_path / "x" / "run"), our_run(tmp_path / "y" / "run")
    assert compared(first, second).names == (str(first), str(second))
    with pytest.raises(UsageError, match="named twice"):
        compared(first, tmp_path / "x" / ".." / "x" / "run")


BAD_RECORDS = [
    ({"kind": "train", "step": 1}, "experiment_id"),
    ({"kind": "train", **FOREIGN}, "step"),
    ({"kind": "train", **FOREIGN, "step": "1"}, "step"),
    ({"kind": "train", **FOREIGN, "step": 1, "total": "low"}, "total"),
    ({"kind": "test", **FOREIGN, "step": 1, "recall": {"a->b": {"1": {"10": 45.2}}}}, "45.2"),
    ({"kind": "test", **FOREIGN, "step": 1, "recall": {"a->b": {"k1": {"10": 0.4}}}}, "k1"),
    ({"kind": "test", **FOREIGN, "step": 1, "recall": {"a->b": {"1": 0.4}}}, "0.4"),
    ({"kind": "test", **FOREIGN, "step": 1, "chance": {"a->b": 0.4}}, "chance"),
    ({"kind": "run", **FOREIGN, "options": [1]}, "options"),
    ({"kind": "run", **FOREIGN, "parameters": "many"}, "parameters"),
    ({"kind": "validation", **FOREIGN, "step": 1, "score": 10**400}, "more than 64 bits"),
    *(
        ({"kind": "test", **FOREIGN, "step": 1, "recall": {"a->b": {k: {"10": 0.4}}}}, "such as")
        for k in ("01", "0", "\u0663", "+1", "1" * 5000)
    ),
    ({"kind": "test", **FOREIGN, "step": 1, "recall": {"a->b": {"1": {"010": 0.4}}}}, "010"),
    ({**FOREIGN, "step": 1}, "kind"),
]


@pytest.mark.parametrize(("record", "word"), BAD_RECORDS)
def test_a_record_that_breaks_the_schema_is_named(tmp_path: Path, record: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {"kind": "train", **FOREIGN, "step": 1, "total": None}
    path = write_records(tmp_path / "run.jsonl", [good, record, good])
    with pytest.raises(ArtifactError, match=rf"run\.jsonl line 2 .*{word}"):
        read_history(path)


@pytest.mark.parametrize("digits", ["1e999", "-1e999", "Infinity"])
@pytest.mark.parametrize("name", ["score", "total", "options"])
def test_a_number_beyond_all_floats_is_no_number(tmp_path: Path, name: str, digits: str) -> None:
    kind = "run" if name == "options" else "validation"
    value = f'{{"dim": {digits}}}' if name == "options" else digits
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"kind": kind, **FOREIGN, "step": 1})[:-1] + f', "{name}": {value}}}\n')
    with pytest.raises(ArtifactError, match=rf"run\.jsonl line 1 is not valid JSON \({digits} is"):
        read_history(path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("run.json", {"parameters": "abc"}, "needs a number as parameters; got 'abc'"),
        ("run.json", {"encoder_hashes": [1]}, "needs an object as encoder_hashes"),
        ("run.json", {"data_hash": None}, "needs a string as data_hash"),
        ("results.json", {"step": "x"}, "needs step, the number of optimizer steps done; got 'x'"),
        ("results.json", {"seconds": "long"}, "needs a number as seconds"),
    ],
)
def test_a_run_of_ours_that_was_changed_is_named(tmp_path: Path, file: str, change: dict[str, Any], words: str) -> None:
    path = our_run(tmp_path / "a") / file
    content = json.loads(path.read_text())
    (content["facts"] if file == "run.json" else content).update(change)
    path.write_text(json.dumps(content))
    done = run(tmp_path / "a")
    assert done.exit_code == 1
    assert re.match(rf"error: .*{re.escape(file)} {words}.*\n$", done.stderr), done.stderr


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    other = write_records(tmp_path / "other.jsonl", [{"kind": "train", **who, "step": 1} for who in (FOREIGN, OURS)])
    empty = write_records(tmp_path / "empty.jsonl", [])
    (tmp_path / "text.jsonl").write_text("loss 0.3\nloss 0.2\n")
    (tmp_path / "nan.jsonl").write_text(f'{{"kind": "train", "total": NaN}}\n{json.dumps(FOREIGN)}\n')
    for path, words in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path, "no run.json"),
        (other, "several runs"),
        (empty, "no records"),
        (tmp_path / "text.jsonl", "line 1 is not valid JSON"),
        (tmp_path / "nan.jsonl", "NaN"),
    ):
        done = run(path)
        assert done.exit_code == 1
        assert re.match(rf"error: .*{words}.*\n$", done.stderr), done.stderr


def test_bad_usage_is_one_sentence(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    for arguments, words in (
        ((a, "-o", tmp_path / "plot.jpg"), ".png"),
        ((a, "--align_by", "dim,"), "--align-by"),
        ((a, "--align-by", "dimension"), "dimension"),
        ((a, a), "named twice"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
    assert not (tmp_path / "plot.jpg").exists()


def test_comparing_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    a = our_run(tmp_path / "a")
    code = f"""
import sys
from click.testing import CliRunner
from fluxtalk.cli import main
done = CliRunner().invoke(main, ["compare", {str(a)!r}])
assert done.exit_code == 0, done.output
print([name for name in ("torch", "matplotlib", "tensorboard") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
