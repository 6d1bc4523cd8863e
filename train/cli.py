"""`fluxtalk-train`: options in, a run's folder out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from fluxtalk.config import AGGREGATIONS, BLOCK_WEIGHTS, OUTPUT_PROJECTIONS, SCHEDULES
from fluxtalk.console import Command, debug_option, option, sentence_errors
from fluxtalk.train.config import CHOICES, RECIPES, TrainConfig

_DEFAULTS = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}


def _setting(name: str, help_: str, **settings: Any) -> Callable[[Command], Command]:
    """An option whose default, and whose choices, are the configuration's."""
    if name in CHOICES:
        settings["type"] = click.Choice(CHOICES[name])
    return option(
        f"--{name}", default=_DEFAULTS[name], show_default=_DEFAULTS[name] is not None, help=help_, **settings
    )


@click.command(name="train", context_settings={"max_content_width": 110})
@option("--stage1_checkpoint", required=True, metavar="PATH", help="Frozen encoders, as `fluxtalk stage1` writes them.")
@option("--output_dir", required=True, metavar="DIR", help="Where runs lie.")
@option("--log_name", required=True, metavar="NAME", help="This run's folder in OUTPUT_DIR.")
@_setting("batch_size", "Pairs per process and step.", type=int)
@_setting("accum_steps", "Forward passes per process and step; negatives span them all.", type=int)
@_setting("items_per_id", "Rows of each id in a batch, of different items where it has them.", type=int)
@_setting("epochs", "Passes over the training ids.", type=int)
@_setting("num_register_tokens", "Register tokens.", type=int)
@_setting("num_overlapping_tokens", "How many of them, from the first, are shared between modalities.", type=int)
@_setting("nested_dropout_rate", "Probability that the last token is dropped; the first never is.", type=float)
@_setting("complementary_reg_weight", "Weight of L2 + diversity on the complementary tokens.", type=float)
@_setting("complementary_objective", "What complementary tokens are trained for besides.")
@_setting("complementary_objective_weight", "Weight of that objective.", type=float)
@_setting("complementary_correlation_weight", "Weight, in it, of repeating what is shared.", type=float)
@_setting("view_dropout", "Share of feature vectors hidden in the second view of `contrast`.", type=float)
@_setting("contrastive", "Loss between modalities.")
@_setting("nested_draw", "Draw k per sample and modality, once per batch, or train several k in every step.")
@_setting("recipe", "Begin with these options; `recommended` trains complementary tokens too. Others still count.")
@_setting(
    "data",
    "`glyphs`, a table of pairs, a folder of features or tar shards.  [default: the one that stage 1 names]",
    metavar="DATA",
)
@_setting("dim", "Width of the tokens and embeddings.", type=int)
@_setting("heads", "Attention heads.", type=int)
@_setting("depth", "Blocks of the head.", type=int)
@_setting("self_attention", "Causal self-attention among the register tokens.", is_flag=True)
@_setting(
    "block_weights", "Whether modalities share queries, outputs and feed-forward.", type=click.Choice(BLOCK_WEIGHTS)
)
@_setting(
    "output_projection",
    "Whether registers share the last linear map; `per_register` makes tokens repeat each other less.",
    type=click.Choice(OUTPUT_PROJECTIONS),
)
@_setting("dropout", "Inside the head.", type=float)
@_setting("feature_dropout", "On single numbers of the features.", type=float)
@_setting("token_dropout", "Share of feature vectors hidden in each step.", type=float)
@_setting("nested_dropout_schedule", "How the drop probability rises.", type=click.Choice(SCHEDULES))
@_setting("aggregation", "What is compared between modalities.", type=click.Choice(AGGREGATIONS))
@_setting("learning_rate", "Peak of AdamW's rate.", type=float)
@_setting("weight_decay", "On matrices.", type=float)
@_setting("warmup_fraction", "Share of steps with a rising rate.", type=float)
@_setting("gradient_clip", "Largest gradient norm.", type=float)
@_setting("ema_decay", "Keep a moving average of the head; 0 is off.", type=float)
@_setting("encode", "Encode every item once, or in every step.")
@_setting("feature_dtype", "How the cache holds features.")
@_setting("feature_pca", "Reduce features to so many principal components; 0 is off.", type=int)
@_setting("feature_pool", "Average so many consecutive features into one.", type=int)
@_setting("precision", "Arithmetic of the head in training.")
@_setting("compile", "Compile the head with torch.compile.", is_flag=True)
@_setting("checkpoint_every", "Steps between checkpoints, beside those after validations; 0 is off.", type=int)
@_setting("init_from", "Begin with the head of this run; modalities may be added.", metavar="RUN")
@_setting("freeze_registers", "Train only what modalities that INIT_FROM lacks use alone.", is_flag=True)
@_setting("eval_every", "Epochs between validations.", type=int)
@_setting("seed", "Of everything random.", type=int)
@_setting("cache_dir", "For renderings and features.  [default: ~/.cache/fluxtalk]", metavar="DIR")
@_setting("device", "Where to train.", type=click.Choice(("auto", "cpu", "cuda")))
@_setting("experiment_id", "Written into every record.")
@_setting("implementation", "Written into every record; its capitals prefix log lines.")
@option("--resume", is_flag=True, help="Continue the run in OUTPUT_DIR/LOG_NAME from its last checkpoint.")
@debug_option
@click.pass_context
@sentence_errors
def main(context: click.Context, /, resume: bool, **options: Any) -> None:
    """Train register tokens over frozen encoders (stage 2).

    Works alone and under torchrun: torchrun --nproc_per_node=N -m fluxtalk.train OPTIONS
    """
    # Only here: `--help` and bad options must not wait for torch.
    from fluxtalk.train.run import fit

    typed = {n: v for n, v in options.items() if context.get_parameter_source(n) != ParameterSource.DEFAULT}
    config = TrainConfig(**{**options, **RECIPES[options["recipe"]], **typed})
    sys.exit(fit(config, resume).exit_code)
