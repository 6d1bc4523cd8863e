"""`fluxtalk-export`: export a run to a bundle, verify and compile the bundle."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import allow_code_option, debug_option, option, sentence_errors
from fluxtalk.export.options import DEFAULT_OPSET, INT8_METHODS, MAX_OPSET, MIN_OPSET, ExportOptions
from fluxtalk.export.to_tensorrt.cli import trt
from fluxtalk.export.to_triton.cli import triton
from fluxtalk.runtime.backends.command_options import backend_option, host_code_option
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.scoring.parity import PRECISIONS


@click.group(name="export")
def main() -> None:
    """Turn a training run into a bundle that serves without PyTorch."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Folder of the bundle, new or empty.")
@option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=("fp32",),
    show_default=True,
    help="Precision of the graphs; repeatable. Serving takes the first unless another is asked for.",
)
@option(
    "--int8",
    type=click.Choice(["auto", *INT8_METHODS]),
    default="auto",
    show_default=True,
    help="Method of int8: static is calibrated on training items; auto tries static, then weight-only.",
)
@option("--tokens", type=int, metavar="K", help="Keep the first K register tokens only, for good.  [default: all]")
@option("--attention", is_flag=True, help="Graphs also give where each register looked.")
@option(
    "--opset", type=click.IntRange(MIN_OPSET, MAX_OPSET), default=DEFAULT_OPSET, show_default=True, help="ONNX opset."
)
@option("--data", metavar="DATA", help="Data set of golden inputs and calibration.  [default: the run's]")
@option(
    "--eval_data",
    metavar="DATA",
    help="Data set on whose validation split quality is measured.  [default: that of --data]",
)
@option("--eval_items", default=1000, show_default=True, help="Largest number of ids that quality is measured on.")
@option("--allow_quality_loss", is_flag=True, help="Write the bundle although a precision fails the quality gate.")
@option(
    "--stage1_checkpoint", type=click.Path(path_type=Path), help="Stage 1 checkpoint, if it was moved since training."
)
@option("--cache_dir", metavar="DIR", help="Folder of the renderings' cache.  [default: the run's]")
@allow_code_option
@debug_option
@sentence_errors
def onnx(
    run: Path,
    output: Path,
    precisions: tuple[str, ...],
    int8: str,
    tokens: int | None,
    attention: bool,
    opset: int,
    data: str | None,
    eval_data: str | None,
    eval_items: int,
    allow_quality_loss: bool,
    stage1_checkpoint: Path | None,
    cache_dir: str | None,
    allow_code: bool,
) -> None:
    """Export RUN (OUTPUT_DIR/LOG_NAME of fluxtalk-train): one ONNX graph per modality and precision, each
    measured against eager PyTorch. A lower precision that fails its quality gate is left out; the others are
    written, and the exit code is 3.

    fluxtalk-export onnx runs/mine -o bundle --precision fp32 --precision fp16 --precision int8
    """
    # Imported here so that `--help` and `verify` do not wait for torch.
    from fluxtalk.datasets import default_cache_dir, load_dataset, load_recorded
    from fluxtalk.export.write_bundle import write_bundle
    from fluxtalk.model.checkpoints.trained_run import open_run, trust_code_of_run

    options = ExportOptions(
        precisions=precisions,
        int8=int8,
        tokens=tokens,
        attention=attention,
        opset=opset,
        eval_items=eval_items,
        allow_quality_loss=allow_quality_loss,
    )
    if allow_code:
        trust_code_of_run(run, stage1_checkpoint)
    opened = open_run(run, stage1_checkpoint)
    cache = default_cache_dir(cache_dir or opened.description.options["cache_dir"])
    dataset = load_recorded(data or opened.data, cache, opened.stage1.kinds, opened.description.folder.bad_items)
    held_out = load_dataset(eval_data, cache, opened.stage1.kinds) if eval_data is not None else None
    bundle = write_bundle(opened, dataset, output, options, click.echo, held_out)
    size = sum(file.stat().st_size for file in output.iterdir())
    click.echo(
        f"{bundle.folder}: {', '.join(bundle.manifest.modalities)} in {', '.join(bundle.manifest.precisions)}, "
        f"{size / 1e6:.1f} MB; serve it with fluxtalk.runtime.load"
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@backend_option
@option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Precision to verify; repeatable.  [default: all that the backend runs]",
)
@host_code_option
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@sentence_errors
def verify(bundle: Path, backend: str, precisions: tuple[str, ...], allow_host_code: bool, as_json: bool) -> None:
    """Check BUNDLE's hashes and replay its golden vectors, in every precision; needs no PyTorch."""
    from fluxtalk.runtime.verify import verify_bundle

    verification = verify_bundle(bundle, BackendOptions(backend, allow_host_code=allow_host_code), precisions)
    click.echo(verification.json() if as_json else verification.table())
    verification.require()


main.add_command(trt)
main.add_command(triton)
