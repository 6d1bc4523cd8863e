"""`fluxtalk-train`: options in, a run's folder out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from fluxtalk.config import BLOCK_WEIGHTS, SCHEDULES
from fluxtalk.console import Command, debug_option, option, sentence_errors
from fluxtalk.train.config import ENCODE, PRECISIONS, TrainConfig

_DEFAULTS = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}


def _setting(name: str, help_: str, **settings: Any) -> Callable[[Command], Command]:
    """An option whose default is the configuration's."""
    return option(
        f"--{name}", default=_DEFAULTS[name], show_default=_DEFAULTS[name] is not None, help=help_, **settings
    )


@click.command(name="train", context_settings={"max_content_width": 110})
@option("--stage1_checkpoint", required=True, metavar="PATH", help="Frozen encoders, as `fluxtalk stage1` writes them.")
@option("--output_dir", required=True, metavar="DIR", help="Where runs lie.")
@option("--log_name", required=True, metavar="NAME", help="This run's folder in OUTPUT_DIR.")
@_setting("batch_size", "Pairs per process and step.", type=int)
@_setting("epochs", "Passes over the training ids.", type=int)
@_setting("num_register_tokens", "Register tokens.", type=int)
@_setting("num_overlapping_tokens", "How many of them, from the first, are shared between modalities.", type=int)
@_setting("nested_dropout_rate", "Probability that the last token is dropped; the first never is.", type=float)
@_setting("complementary_reg_weight", "Weight of L2 + diversity on the complementary tokens.", type=float)
@_setting("data", "`glyphs`, or a .csv table of pairs.  [default: the one that stage 1 names]", metavar="DATA")
@_setting("dim", "Width of the tokens and embeddings.", type=int)
@_setting("heads", "Attention heads.", type=int)
@_setting("depth", "Blocks of the head.", type=int)
@_setting("self_attention", "Causal self-attention among the register tokens.", is_flag=True)
@_setting(
    "block_weights", "Whether modalities share queries, outputs and feed-forward.", type=click.Choice(BLOCK_WEIGHTS)
)
@_setting("dropout", "Inside the head.", type=float)
@_setting("feature_dropout", "On single numbers of the features.", type=float)
@_setting("token_dropout", "Share of feature vectors hidden in each step.", type=float)
@_setting("nested_dropout_schedule", "How the drop probability rises.", type=click.Choice(SCHEDULES))
@_setting("learning_rate", "Peak of AdamW's rate.", type=float)
@_setting("weight_decay", "On matrices.", type=float)
@_setting("warmup_fraction", "Share of steps with a rising rate.", type=float)
@_setting("gradient_clip", "Largest gradient norm.", type=float)
@_setting("ema_decay", "Keep a moving average of the head; 0 is off.", type=float)
@_setting("encode", "Encode every item once, or in every step.", type=click.Choice(ENCODE))
@_setting("precision", "Arithmetic of the head in training.", type=click.Choice(PRECISIONS))
@_setting("eval_every", "Epochs between validations.", type=int)
@_setting("seed", "Of everything random.", type=int)
@_setting("cache_dir", "For renderings and features.  [default: ~/.cache/fluxtalk]", metavar="DIR")
@_setting("device", "Where to train.", type=click.Choice(("auto", "cpu", "cuda")))
@_setting("experiment_id", "Written into every record.")
@_setting("implementation", "Written into every record; its capitals prefix log lines.")
@option("--resume", is_flag=True, help="Continue the run in OUTPUT_DIR/LOG_NAME from its last checkpoint.")
@debug_option
@sentence_errors
def main(resume: bool, **options: Any) -> None:
    """Train register tokens over frozen encoders (stage 2).

    Works alone and under torchrun: torchrun --nproc_per_node=N -m fluxtalk.train OPTIONS
    """
    # Only here: `--help` and bad options must not wait for torch.
    from fluxtalk.train.run import train

    sys.exit(train(TrainConfig(**options), resume))
