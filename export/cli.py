"""`fluxtalk-export`: a run in, a bundle out; and a bundle verified anywhere."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors


@click.group(name="export")
def main() -> None:
    """Turn a training run into a bundle that serves without PyTorch."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle's folder, new or empty."
)
@click.option("--opset", default=20, show_default=True, help="ONNX opset, 18 to 22.")
@click.option("--data", metavar="DATA", help="Data set of the golden inputs.  [default: the run's]")
@option(
    "--stage1_checkpoint", type=click.Path(path_type=Path), help="Where stage 1 lies, if it was moved since training."
)
@option("--cache_dir", metavar="DIR", help="For renderings.  [default: the run's]")
@debug_option
@sentence_errors
def onnx(
    run: Path, output: Path, opset: int, data: str | None, stage1_checkpoint: Path | None, cache_dir: str | None
) -> None:
    """Export RUN (OUTPUT_DIR/LOG_NAME of fluxtalk-train): one ONNX graph per modality, parity proved."""
    # Only here: `--help` and `verify` must not wait for torch.
    from fluxtalk.datasets import default_cache_dir, load_dataset
    from fluxtalk.export.write_bundle import write_bundle
    from fluxtalk.model.run import open_run

    opened = open_run(run, stage1_checkpoint)
    dataset = load_dataset(
        data or opened.config["facts"]["data"], default_cache_dir(cache_dir or opened.config["options"]["cache_dir"])
    )
    bundle, _ = write_bundle(opened, dataset, output, opset, click.echo)
    size = sum(file.stat().st_size for file in output.iterdir())
    click.echo(
        f"{bundle.folder}: {', '.join(bundle.manifest.modalities)}, {size / 1e6:.1f} MB; "
        "serve it with fluxtalk.runtime.load"
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", default="auto", show_default=True, help="What to verify on.")
@debug_option
@sentence_errors
def verify(bundle: Path, backend: str) -> None:
    """Check BUNDLE's hashes and replay its golden vectors; needs no PyTorch."""
    from fluxtalk.runtime import load
    from fluxtalk.runtime.golden import verify_golden

    with load(bundle, backend) as embedder:
        reports = list(verify_golden(embedder.bundle, embedder.session))
    for report in reports:
        click.echo(report.line())
    for report in reports:
        report.require()
    click.echo(f"{bundle}: {len(embedder.bundle.manifest.files)} files unchanged, parity holds")
