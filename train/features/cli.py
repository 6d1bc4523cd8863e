"""`fluxtalk features`: build the feature cache ahead of training, and see what is cached."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from fluxtalk.console import allow_code_option, debug_option, option, sentence_errors
from fluxtalk.datasets import SPLIT_NAMES, default_cache_dir
from fluxtalk.datasets.bad_items import BadItemPolicy, bad_item_options
from fluxtalk.errors import ArtifactError
from fluxtalk.train.config import DEVICES, FEATURE_DTYPES
from fluxtalk.train.features.options import CacheOptions

_DEFAULTS = CacheOptions()
_CACHE_HELP = "Folder for renderings and features.  [default: ~/.cache/fluxtalk]"


@click.group(name="features")
def main() -> None:
    """Encode data once for training, and see what is cached."""


@main.command()
@option("--stage1_checkpoint", required=True, metavar="PATH", help="Frozen encoders, as `fluxtalk stage1` writes them.")
@option("--data", metavar="DATA", help="Data set.  [default: the one that stage 1 names]")
@option(
    "--splits", metavar="LIST", help=f"Splits, separated by commas.  [default: those of {','.join(SPLIT_NAMES)} it has]"
)
@bad_item_options()
@option("--cache_dir", metavar="DIR", help=_CACHE_HELP)
@option(
    "--feature_dtype",
    default=_DEFAULTS.dtype,
    show_default=True,
    type=click.Choice(FEATURE_DTYPES),
    help="Number format; int8 is half the size, with one scale per feature vector.",
)
@option(
    "--feature_pca",
    default=_DEFAULTS.pca,
    show_default=True,
    type=int,
    help="Principal components that features are reduced to; 0 is off.",
)
@option(
    "--feature_pool",
    default=_DEFAULTS.pool,
    show_default=True,
    type=int,
    help="Consecutive feature vectors averaged into one; 1 is off.",
)
@option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(DEVICES),
    help="Device to encode on.",
)
@option("--ray", is_flag=True, help="Encode on all GPUs (else CPUs) of Ray, of this machine or of its cluster.")
@allow_code_option
@debug_option
@sentence_errors
def build(
    stage1_checkpoint: str,
    data: str | None,
    splits: str | None,
    on_bad_item: str,
    bad_items_limit: float,
    cache_dir: str | None,
    feature_dtype: str,
    feature_pca: int,
    feature_pool: int,
    device: str,
    ray: bool,
    allow_code: bool,
) -> None:
    """Encode every item once; what an interrupted build finished is kept.

    Training with the same encoders, data and options then reads it. On several GPUs or processes:
    torchrun --nproc-per-node=N -m fluxtalk.train.features.cli build OPTIONS
    """
    options = CacheOptions(feature_dtype, feature_pca, feature_pool)
    policy = BadItemPolicy(on_bad_item, bad_items_limit)
    # Imported here, so that `--help` and bad options do not wait for torch.
    from fluxtalk.model.checkpoints.stage1 import trust_code
    from fluxtalk.train.distributed import join_process_group
    from fluxtalk.train.features.prebuild import prebuild

    if allow_code:
        trust_code(Path(stage1_checkpoint))

    wanted = None if splits is None else tuple(name.strip() for name in splits.split(","))
    folder = default_cache_dir(cache_dir)
    if ray:
        from fluxtalk.datasets.data_paths import with_absolute_path
        from fluxtalk.train.features.on_ray import prebuild_on_ray

        named = data and with_absolute_path(data)
        cache = folder.absolute()
        work = partial(prebuild, data=named, splits=wanted, cache_dir=cache, options=options, policy=policy)
        path = Path(stage1_checkpoint).absolute()
        prebuild_on_ray(work, device, path, partial(trust_code, path) if allow_code else None)
        return
    with join_process_group(device) as (group, torch_device):
        talk = click.echo if group.rank == 0 else lambda _: None
        prebuild(Path(stage1_checkpoint), data, wanted, folder, options, torch_device, group, talk, policy)


@main.command(name="list")
@option("--cache_dir", metavar="DIR", help=_CACHE_HELP)
@debug_option
@sentence_errors
def list_(cache_dir: str | None) -> None:
    """List what is cached, with sizes."""
    _report(cache_dir, verify=False)


@main.command()
@option("--cache_dir", metavar="DIR", help=_CACHE_HELP)
@debug_option
@sentence_errors
def verify(cache_dir: str | None) -> None:
    """Compare everything that is cached with its checksums."""
    _report(cache_dir, verify=True)


def _report(cache_dir: str | None, verify: bool) -> None:
    from fluxtalk.train.features.report import report_caches

    folder = default_cache_dir(cache_dir)
    entries = list(report_caches(folder, verify))
    for entry in entries:
        click.echo(entry.line())
    click.echo(f"{folder}: {len(entries)} feature caches, {sum(entry.bytes for entry in entries) / 1e9:.2f} GB")
    damaged = [entry.name for entry in entries if entry.problem is not None]
    if damaged:
        raise ArtifactError(f"{len(damaged)} of {len(entries)} feature caches are damaged: {', '.join(damaged)}.")


if __name__ == "__main__":
    main()
