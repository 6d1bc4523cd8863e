"""`fluxtalk-export triton`: write a bundle as a model repository of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.export.to_triton.options import DEVICES, PLATFORMS, TritonOptions
from fluxtalk.scoring.parity import PRECISIONS


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="Folder of the repository, new or empty."
)
@option(
    "--platform",
    type=click.Choice(list(PLATFORMS)),
    default="onnx",
    show_default=True,
    help="onnx: Triton's ONNX Runtime backend; tensorrt: plans, compiled on the GPU here.",
)
@option("--precision", type=click.Choice(PRECISIONS), help="Precision of the bundle to serve.  [default: its first]")
@option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="SIZES",
    help="tensorrt: sizes to compile for, as for `fluxtalk-export trt`; repeatable.",
)
@option(
    "--max_batch_size",
    type=int,
    help="Rows that Triton puts into one batch.  [default: 64, or what all profiles of a plan take]",
)
@option("--instances", default=1, show_default=True, help="Copies of each model per device.")
@option(
    "--device",
    type=click.Choice(list(DEVICES)),
    default="auto",
    show_default=True,
    help="Device that the instances run on.",
)
@option("--queue_delay", default=0, show_default=True, help="Microseconds that a request may wait to be batched.")
@option("--prefix", default="fluxtalk", show_default=True, help="Beginning of the models' names, PREFIX_MODALITY.")
@debug_option
@sentence_errors
def triton(
    bundle: Path,
    output: Path,
    platform: str,
    precision: str | None,
    profiles: tuple[str, ...],
    max_batch_size: int | None,
    instances: int,
    device: str,
    queue_delay: int,
    prefix: str,
) -> None:
    """Write BUNDLE as a Triton model repository: k is an input, preprocessing stays with the client."""
    # Imported here so that `--help` does not wait for onnx.
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.export.to_triton.repository import write_repository

    options = TritonOptions(
        platform=platform,
        max_batch_size=max_batch_size,
        instances=instances,
        device=device,
        queue_delay=queue_delay,
        prefix=prefix,
    )
    names = write_repository(read_bundle(bundle), output, options, precision, profiles)
    click.echo(f"{output}: {', '.join(names)}; serve it with tritonserver --model-repository={output}")
