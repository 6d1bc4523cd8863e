"""`fluxtalk-export triton`: a bundle as a model repository of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The repository, new or empty.")
@click.option(
    "--platform",
    default="onnx",
    show_default=True,
    help="onnx: Triton's ONNX Runtime backend; tensorrt: plans, compiled on the GPU here.",
)
@click.option("--precision", help="One of the bundle's.  [default: its first]")
@click.option("--profile", "profiles", multiple=True, metavar="SIZES", help="tensorrt: as of `fluxtalk-export trt`.")
@option(
    "--max_batch_size",
    type=int,
    help="Rows that Triton puts into one batch.  [default: 64, or what all profiles of a plan take]",
)
@click.option("--instances", default=1, show_default=True, help="Copies of each model per device.")
@click.option("--device", default="auto", show_default=True, help="auto, gpu or cpu.")
@option("--queue_delay", default=0, show_default=True, help="Microseconds that a request may wait for company.")
@click.option("--prefix", default="fluxtalk", show_default=True, help="Of the models' names: PREFIX_MODALITY.")
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
    # Only here: `--help` must not wait for onnx.
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.export.to_triton.model import TritonOptions
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
