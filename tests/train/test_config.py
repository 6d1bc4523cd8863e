"""The options of a run: what Python gives, and what cannot be meant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.option_types import spelled

REQUIRED = {"stage1_checkpoint": "stage1.pth", "output_dir": "runs", "log_name": "run"}


def test_paths_and_numpys_numbers_become_plain() -> None:
    """They are written into run.json, which has no other types."""
    config = TrainConfig(
        stage1_checkpoint=Path("a/stage1.pth"), output_dir=Path("runs"), log_name=np.str_("run"),  # type: ignore[arg-type]
        cache_dir=Path("cache"), seed=np.int64(3), batch_size=np.int32(8), learning_rate=np.float32(0.25),  # type: ignore[arg-type]
        weight_decay=1,
    )  # fmt: skip
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.stage1_checkpoint, config.output_dir, config.cache_dir) == ("a/stage1.pth", "runs", "cache")
    assert (config.seed, config.batch_size, config.learning_rate, config.weight_decay) == (3, 8, 0.25, 1.0)
    plain = {"str", "int", "float", "bool", "NoneType"}
    assert {type(value).__name__ for value in config.to_dict().values()} == plain


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", "32", "is an integer; got '32'"),
        ("batch_size", 32.0, "is an integer; got 32.0"),
        ("epochs", True, "is an integer; got True"),
        ("learning_rate", "0.1", "is a finite number; got '0.1'"),
        ("dropout", False, "is a finite number; got False"),
        ("compile", 1, "is True or False; got 1"),
        ("output_dir", None, "is a string or a path; got None"),
        ("data", 7, "is a string or a path; got 7"),
        ("stage1_checkpoint", b"stage1.pth", "is a string or a path; got b'stage1.pth'"),
    ],
)
def test_an_option_of_another_type_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{spelled(name)} {words}"):
        TrainConfig(**{**REQUIRED, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, number) for name in ("learning_rate", "gradient_clip", "weight_decay", "complementary_reg_weight")
          for number in (float("inf"), float("nan"), 10**400, 1e38)),
        ("learning_rate", 101.0), ("seed", 2**63), ("seed", -(2**63) - 1), ("batch_size", 0),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_meant_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{spelled(name)} [^\n]*; got [^\n]*\.$"):
        TrainConfig(**{**REQUIRED, name: value})


def test_the_largest_numbers_are_taken() -> None:
    config = TrainConfig(**REQUIRED, seed=2**63 - 1, learning_rate=100.0, weight_decay=1e30)  # type: ignore[arg-type]
    assert config.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k_values": "1,2", "nested_draw": "independent"}, "--k-values names the k of --nested-draw all"),
        ({"k_values": "2,1"}, "--k-values is rising integers from 1 to 4, such as 1,2,4; got '2,1'"),
        ({"k_values": "1,8"}, "--k-values is rising integers from 1 to 4"),
        ({"k_values": "0,1"}, "--k-values is rising"),
        ({"k_values": "one"}, "--k-values is rising"),
        ({"patience": -1}, "--patience is at least 0"),
        ({"maxsim_sharpness": -1.0}, "--maxsim-sharpness is at least 0"),
        ({"mean_path": "cubic"}, "--mean-path is one of none, linear, mlp"),
        ({"token_dim": -8}, "--token-dim is at least 0"),
    ],
)
def test_options_of_the_mean_path_and_fixed_k_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainConfig(**{**REQUIRED, "nested_draw": "all", **options})


def test_k_values_are_numbers_of_tokens() -> None:
    drawn = TrainConfig("stage1.pth", "runs", "run", nested_draw="all")
    assert drawn.k_list == ()
    assert dataclasses.replace(drawn, k_values="1,2,4").k_list == (1, 2, 4)
