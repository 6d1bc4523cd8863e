"""`fluxtalk-export trt`: a bundle's graphs compiled with TensorRT."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fluxtalk.console import debug_option, option, sentence_errors

if TYPE_CHECKING:
    from fluxtalk.devices.tensorrt_api import TensorRT
    from fluxtalk.export.to_tensorrt.compile import Source, Target


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--flavor",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="tensorrt compiles on the GPU that runs the engine; rtx also for named GPUs, without one. auto takes rtx "
    "where --compute_capability is given, else tensorrt where it is installed.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME",
    help="Of the bundle's; repeatable.  [default: its fp32, fp16 and bf16]",
)
@click.option("--modality", "modalities", multiple=True, metavar="NAME", help="Repeatable.  [default: all]")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="SIZES",
    help="MODALITY:AXIS=MIN,OPT,MAX[:AXIS=...] with the axes batch, length and k, such as "
    "text:batch=1,16,128:length=8,32,256:k=1,3,4; repeatable, several of one modality share an engine.  "
    "[default: batch=1,8,64, every k, every length up to 512]",
)
@option(
    "--compute_capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="rtx: compile for such a GPU, which need not be here; repeatable, for one engine.  [default: of the GPU here]",
)
@option(
    "--timing_cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="tensorrt: a file of kernel timings, which makes later builds faster; made where it is missing.",
)
@option(
    "--version_compatible",
    is_flag=True,
    help="tensorrt: engines that newer versions of the same major version run; they carry code of their own, which "
    "the runtime must allow.",
)
@debug_option
@sentence_errors
def trt(
    bundle: Path,
    flavor: str,
    precisions: tuple[str, ...],
    modalities: tuple[str, ...],
    profiles: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    timing_cache: Path | None,
    version_compatible: bool,
) -> None:
    """Compile the graphs of BUNDLE with TensorRT, into its folder `engines`; what is up to date is left alone.

    A graph that cannot be compiled keeps none of the others from it; which failed, and why, is said at the end.
    """
    # Only here: `--help` must not wait for onnx.
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.devices.tensorrt_api import choose_flavor, load_tensorrt
    from fluxtalk.errors import UsageError
    from fluxtalk.export.to_tensorrt.compile import held, source_of, target_of
    from fluxtalk.export.to_tensorrt.profiles import profiles_of

    opened = read_bundle(bundle)
    known = list(opened.manifest.modalities)
    for modality in modalities:
        if modality not in known:
            raise UsageError(f"The bundle {bundle} has the modalities {', '.join(known)}; got --modality {modality}.")
    chosen = [modality for modality in known if not modalities or modality in modalities]
    sizes = profiles_of(opened, chosen, profiles)
    wanted = list(dict.fromkeys(opened.precision(name) for name in precisions)) or held(opened)
    if not wanted:
        raise UsageError(f"The bundle {bundle} holds {', '.join(opened.manifest.precisions)}; name a --precision.")
    api = load_tensorrt(choose_flavor(flavor, bool(compute_capabilities)))
    target = target_of(api, compute_capabilities, version_compatible, timing_cache)
    sources = [source_of(opened, modality, precision, sizes[modality]) for modality in chosen for precision in wanted]
    _build_all(api, sources, target, opened.engines)


def _build_all(api: TensorRT, sources: Sequence[Source], target: Target, folder: Path) -> None:
    """Build every engine that can be built.

    Raises:
        BackendError: some cannot; it names each with its reason.
    """
    from fluxtalk.errors import BackendError

    failures = []
    for source in sources:
        try:
            _build(api, source, target, folder)
        except BackendError as error:
            click.echo(f"{source.label}: failed")
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        # What is wrong with all of them alike is said once.
        told = "".join(f"\n  {sentence}" for sentence in dict.fromkeys(map(str, failures)))
        summary = f"{len(failures)} of {len(sources)} engines could not be built, so they are not in {folder}:"
        raise BackendError(f"{summary}{told}") from ExceptionGroup(summary, failures)


def _build(api: TensorRT, source: Source, target: Target, folder: Path) -> None:
    from fluxtalk.export.to_tensorrt.compile import build_engine, name_of
    from fluxtalk.export.to_tensorrt.profiles import spelled

    start = time.perf_counter()
    record = build_engine(api, source, target, folder, click.echo)
    name = name_of(api, source, target)
    if record is None:
        click.echo(f"{name}: up to date")
        return
    shapes = " and ".join(spelled(profile) for profile in record.profiles)
    click.echo(f"{name}: {record.engine_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s, {shapes}")
