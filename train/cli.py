"""`fluxtalk-train`: options in, a run's folder out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from fluxtalk.console import Function, GroupedCommand, allow_code_option, debug_option, option, sentence_errors
from fluxtalk.train.config import CHOICES, TrainConfig
from fluxtalk.train.config_file import merge_options, read_options

_GROUPS: dict[str, dict[str, str]] = {
    "Data": {
        "stage1_checkpoint": "Frozen encoders, as `fluxtalk stage1` writes them.",
        "data": "`glyphs`, a table of pairs, a folder of features or tar shards.  [default: what stage 1 names]",
        "on_bad_item": "List items that cannot be used, after encoding, and end; or leave them out.",
        "bad_items_limit": "Largest share of a modality's items that `skip` leaves out.",
        "batch_size": "Pairs per process and forward pass.",
        "accum_steps": "Forward passes per process and step; negatives span them all.",
        "items_per_id": "Rows of each id in a batch, of different items if it has as many.",
        "hard_negatives": "Nearest ids, by the head itself once an epoch, beside each anchor in its batch; 0 is off.",
        "hard_negative_margin": "Similarity by which they are below the positive's; nearer ones may be positives.",
        "hard_negative_relative_margin": "The same as a share of the positive's; the larger margin counts.",
        "hard_negative_max_score": "Largest similarity of a hard negative.",
        "encode": "Encode every item once, or in every step.",
        "cache_dir": "Folder for renderings and features.  [default: ~/.cache/fluxtalk]",
        "feature_dtype": "Number format of cached features.",
        "feature_pca": "Principal components that features are reduced to; 0 is off.",
        "feature_pool": "Consecutive features averaged into one; 1 is off.",
    },
    "Head": {
        "num_register_tokens": "Number of register tokens.",
        "num_overlapping_tokens": "Number of them, from the first, that modalities share.",
        "dim": "Width of tokens and embeddings.",
        "heads": "Number of attention heads.",
        "depth": "Number of blocks.",
        "self_attention": "Causal self-attention among the register tokens.",
        "block_weights": "Share queries, outputs and feed-forward between modalities, or give each its own.",
        "output_projection": "One last linear map, or one per register, which makes tokens repeat each other less.",
        "mean_path": "Map of the features' mean that every token begins with, as mean pooling does.",
        "mean_path_width": "Width of the hidden layer of that map's `mlp`, in widths of the head.",
        "regions": "Give each register a mean of its own, by what features hold and by their place, as image=7x7 or "
        "image=1+14x14 (behind a class token); auto finds the grids.",
        "token_dim": "Numbers in a token; 0 is the width.",
        "feed_forward": "Width of a block's feed-forward, in widths of the head; 1 makes steps faster.",
        "summary_registers": "Registers whose reads the first token adds up; 1 is its own, 0 all overlapping ones.",
        "nested_dims": "Smaller sizes of a token, as 8,16,32, trained too, so that `dimensions` may cut it.",
        "aggregation": "Representation compared between modalities.",
        "dropout": "Dropout inside the head.",
        "feature_dropout": "Dropout on single numbers of the features.",
        "token_dropout": "Probability that a feature vector is hidden in a step.",
        "init_from": "Run whose best head is the initial one; modalities may be added.",
        "freeze_registers": "Train only parameters that modalities missing from INIT_FROM use alone.",
    },
    "Nested dropout": {
        "nested_dropout_rate": "Probability that the last token is dropped; the first never is.",
        "nested_dropout_schedule": "Rise of the drop probability from the first token to the last.",
        "nested_draw": "Draw k per sample and modality, once per batch, or train several k in every step.",
        "k_values": "k of `all`, as 1,2,4: each in every step, with its own temperature.  [default: drawn]",
    },
    "Losses": {
        "contrastive": "Loss between modalities.",
        "maxsim_sharpness": "Log-mean-exp of this sharpness for the maximum of `maxsim`; 0 is the maximum.",
        "complementary_reg_weight": "Weight of L2 + diversity on the complementary tokens.",
        "complementary_objective": "Further objective of the complementary tokens.",
        "complementary_objective_weight": "Weight of that objective.",
        "complementary_correlation_weight": "Weight of the cross-correlation penalty in that objective.",
        "view_dropout": "Probability that a feature vector is hidden in the second view of `contrast`.",
    },
    "Optimization": {
        "epochs": "Passes over the training ids.",
        "learning_rate": "Peak learning rate of AdamW.",
        "weight_decay": "Weight decay of matrices; vectors do not decay.",
        "warmup_fraction": "Share of steps with a rising learning rate.",
        "gradient_clip": "Largest norm of the gradient.",
        "ema_decay": "Decay of the moving average of the head that is kept; 0 is off.",
        "eval_every": "Epochs between validations.",
        "patience": "Validations without a better one that end a run; 0 is off.",
        "sweep": "Choose rate, epochs (EPOCHS at most), dropouts and weight decay by validation first: 2 runs' time.",
        "sweep_minutes": "Minutes after which the sweep begins no further trial.",
        "seed": "Random seed.",
    },
    "Runtime": {
        "device": "Device to train on.",
        "precision": "Arithmetic of the head in training.",
        "compile": "Compile the head with torch.compile.",
        "checkpoint_every": "Steps between checkpoints, besides those after validations; 0 is off.",
    },
    "Identity": {
        "output_dir": "Folder of all runs.",
        "log_name": "Name of this run's folder in OUTPUT_DIR.",
        "recipe": "Named set of options to begin with; `private` trains a complementary token, `recommended` none.",
        "track": "Send the numbers to Weights & Biases or MLflow too: wandb, mlflow, or both with a comma.",
        "experiment_id": "Experiment that every record names.",
        "implementation": "Implementation that every record names; log lines begin with it in capitals.",
    },
}
"""Title to option to help text. Types, choices and defaults are those of `TrainConfig`."""

_METAVARS = {
    "stage1_checkpoint": "PATH", "data": "DATA", "cache_dir": "DIR", "init_from": "RUN", "output_dir": "DIR",
    "log_name": "NAME",
}  # fmt: skip


def _settings(command: Function) -> Function:
    """Add every option of `_GROUPS`."""
    for group, helps in reversed(_GROUPS.items()):
        for name, help_ in reversed(helps.items()):
            command = _setting(name, help_, group)(command)
    return command


def _setting(name: str, help_: str, group: str) -> Callable[[Function], Function]:
    settings: dict[str, Any] = {"help": help_, "group": group, "metavar": _METAVARS.get(name)}
    if name in TrainConfig.required():
        return option(f"--{name}", **{**settings, "help": f"{help_}  [required, here or in --config]"})
    settings["default"] = TrainConfig.__dataclass_fields__[name].default
    hint = get_type_hints(TrainConfig)[name]
    if hint is bool:
        # The second spelling overrides a file that turns the option on.
        return option(f"--{name}/--no_{name}", **settings)
    settings["type"] = click.Choice(CHOICES[name]) if name in CHOICES else hint if hint in (int, float) else str
    return option(f"--{name}", show_default=settings["default"] is not None, **settings)


@click.command(name="train", cls=GroupedCommand, context_settings={"max_content_width": 110})
@_settings
@option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    group="Identity",
    help="TOML or JSON file of options by name, or a run's run.json; options typed here override it.",
)
@option(
    "--resume",
    is_flag=True,
    group="Runtime",
    help="Continue the run in OUTPUT_DIR/LOG_NAME from its last checkpoint.",
)
@partial(allow_code_option, group="Runtime")
@debug_option
@click.pass_context
@sentence_errors
def main(context: click.Context, /, config_file: Path | None, resume: bool, allow_code: bool, **options: Any) -> None:
    """Train register tokens over frozen encoders (stage 2).

    Works alone and under torchrun: torchrun --nproc-per-node=N -m fluxtalk.train OPTIONS
    """
    # Imported here, so that `--help` and bad options do not wait for torch.
    from fluxtalk.model.checkpoints.stage1 import trust_code
    from fluxtalk.train.run import fit

    typed = {n: v for n, v in options.items() if context.get_parameter_source(n) != ParameterSource.DEFAULT}
    config = merge_options(read_options(config_file) if config_file is not None else {}, typed)
    if allow_code:
        trust_code(Path(config.stage1_checkpoint))
    sys.exit(fit(config, resume).exit_code)
