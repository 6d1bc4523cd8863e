"""`fluxtalk-export trt`: compile a bundle's graphs with TensorRT."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fluxtalk.artifacts.engine import FLAVOR_ALIASES, FLAVOR_NAMES
from fluxtalk.console import AliasChoice, debug_option, option, sentence_errors
from fluxtalk.scoring.parity import PRECISIONS

if TYPE_CHECKING:
    from fluxtalk.devices.tensorrt_api import TensorRT
    from fluxtalk.export.to_tensorrt.job import BuilderOptions, CompileJob


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@option(
    "--flavor",
    type=AliasChoice(["auto", *FLAVOR_NAMES.values()], FLAVOR_ALIASES),
    default="auto",
    show_default=True,
    help="tensorrt compiles on the GPU that runs the engine, tensorrt-rtx also for other GPUs and without one. auto is "
    "tensorrt-rtx with --compute-capability, else tensorrt if it is installed.",
)
@option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Precision of the bundle to compile; repeatable.  [default: its fp32, fp16 and bf16]",
)
@option(
    "--modality", "modalities", multiple=True, metavar="NAME", help="Modality to compile; repeatable.  [default: all]"
)
@option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="SIZES",
    help="MODALITY:AXIS=MIN,OPT,MAX[:AXIS=...] with the axes batch, length and k, such as "
    "text:batch=1,16,128:length=8,32,256:k=1,3,4; repeatable: several of one modality share an engine.  "
    "[default: batch=1,8,64, every k, every length up to 512]",
)
@option(
    "--compute_capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="tensorrt-rtx: compile for such a GPU, which need not be here; several go into one engine.  "
    "[default: that of the GPU here]",
)
@option(
    "--timing_cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="tensorrt: file of kernel timings, which makes later builds faster; created if it is missing.",
)
@option(
    "--version_compatible",
    is_flag=True,
    help="tensorrt: engines that newer versions of the same major version run too, by code that they carry and that "
    "the runtime has to allow.",
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
    """Compile the graphs of BUNDLE with TensorRT into its folder `engines`, except those that are up to date.

    A graph that cannot be compiled does not stop the others; each failure is named at the end.
    """
    # Imported here so that `--help` does not wait for onnx.
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.devices.tensorrt_api import choose_flavor, load_tensorrt
    from fluxtalk.errors import UsageError
    from fluxtalk.export.to_tensorrt.job import builder_options, compile_job, default_precisions
    from fluxtalk.export.to_tensorrt.profiles import profiles_of

    opened = read_bundle(bundle)
    known = list(opened.manifest.modalities)
    for modality in modalities:
        if modality not in known:
            raise UsageError(f"The bundle {bundle} has the modalities {', '.join(known)}; got --modality {modality}.")
    chosen = [modality for modality in known if not modalities or modality in modalities]
    sizes = profiles_of(opened, chosen, profiles)
    wanted = list(dict.fromkeys(opened.precision(name) for name in precisions)) or default_precisions(opened)
    if not wanted:
        raise UsageError(f"The bundle {bundle} holds {', '.join(opened.manifest.precisions)}; name a --precision.")
    api = load_tensorrt(choose_flavor(flavor, bool(compute_capabilities)))
    options = builder_options(api, compute_capabilities, version_compatible, timing_cache)
    jobs = [compile_job(opened, modality, precision, sizes[modality]) for modality in chosen for precision in wanted]
    _build_all(api, jobs, options, opened.engines)


def _build_all(api: TensorRT, jobs: Sequence[CompileJob], options: BuilderOptions, folder: Path) -> None:
    """Build every engine that can be built.

    Raises:
        BackendError: names each that cannot, with its reason.
    """
    from fluxtalk.errors import BackendError

    failures = []
    for job in jobs:
        try:
            _build(api, job, options, folder)
        except BackendError as error:
            click.echo(f"{job.label}: failed")
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        # A reason that several share is printed once.
        reasons = "".join(f"\n  {sentence}" for sentence in dict.fromkeys(map(str, failures)))
        summary = f"{len(failures)} of {len(jobs)} engines could not be built, so they are not in {folder}:"
        raise BackendError(f"{summary}{reasons}") from ExceptionGroup(summary, failures)


def _build(api: TensorRT, job: CompileJob, options: BuilderOptions, folder: Path) -> None:
    from fluxtalk.export.to_tensorrt.compile import build_engine, engine_file
    from fluxtalk.export.to_tensorrt.profiles import format_profile

    start = time.perf_counter()
    record = build_engine(api, job, options, folder, click.echo)
    name = engine_file(api, job, options)
    if record is None:
        click.echo(f"{name}: up to date")
        return
    shapes = " and ".join(format_profile(profile) for profile in record.profiles)
    click.echo(f"{name}: {record.engine_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s, {shapes}")
