"""Contenders, their environments and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = "fluxtalk"
"""Environment that runs this program: ours is compared as it is checked out."""
ENVIRONMENTS: Mapping[str, Sequence[str]] = {
    # sentence-transformers' ONNX backend wants transformers below 4.58, which its 6.x does not take.
    "sentence-transformers": (
        "torch==2.13.0",
        "sentence-transformers==5.7.0",
        "transformers==4.57.6",
        "optimum-onnx==0.1.0",
        "optimum-intel==1.27.0",
        "onnxruntime==1.32.0",
        "openvino==2026.4.1",
        "datasets==5.0.1",
        "accelerate==1.15.0",
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
    ),
    "fastembed": ("fastembed==0.9.1", "onnxruntime==1.32.0", "fastapi==0.165.0", "uvicorn==0.54.0"),
    "litserve": (
        "litserve==0.2.19",
        "fastembed==0.9.1",
        "onnxruntime==1.32.0",
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
    ),
    "infinity": (
        "torch==2.13.0",
        "infinity-emb[server,torch,optimum]==0.0.78",
        "sentence-transformers==3.4.1",
        "transformers==4.57.6",
        "optimum-onnx==0.1.0",
        "onnxruntime==1.32.0",
        "fastapi==0.165.0",
        "uvicorn==0.32.1",
    ),
}
"""Environment to the packages that are installed into it."""
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum-onnx",
    "fastembed",
    "litserve",
    "infinity-emb",
    "timm",
    "onnxruntime",
    "openvino",
    "usearch",
    "qdrant-client",
    "lancedb",
    "fast-plaid",
)
"""Packages whose versions are written beside the figures."""


@dataclass(frozen=True)
class Models:
    """Folders of the contenders' models."""

    bundle: Path
    """Bundle of ours with a text encoder, and an image encoder if images are compared."""
    text: str
    """Folder of the same text encoder, as sentence-transformers saved it."""
    converted: Path
    """Folder of what ``peers/convert.py`` wrote."""
    image: tuple[str, str, str] | None = None
    """The same image encoder: timm's name, weights, and its ONNX file."""


@dataclass(frozen=True)
class Contender:
    """A library with its settings, on one modality."""

    name: str
    label: str
    environment: str
    modality: str
    loader: str
    model: str
    reduced: bool = False
    """True if it computes in less than float32, knowingly or by its library's default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    server: str = ""
    """Script of ``peers/`` that serves it over HTTP; empty is none, and ours is served by FluxTalk."""
    serving: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that server."""
    is_timed: bool = True
    """True if single calls of it are timed, and not only its server."""

    @property
    def is_ours(self) -> bool:
        """True for FluxTalk itself."""
        return self.loader == OURS

    def described(self, threads: int) -> dict[str, Any]:
        """Describe it as the peers' scripts read it."""
        return {
            "loader": self.loader,
            "model": self.model,
            "threads": threads,
            "options": dict(self.options),
            "serving": dict(self.serving),
        }


def contenders(models: Models) -> list[Contender]:
    """List all contenders, peers first."""
    onnx, openvino = str(models.converted / "onnx"), str(models.converted / "openvino")
    st = "sentence-transformers"

    def peer(name: str, label: str, model: str, reduced: bool = False, server: str = "", **options: Any) -> Contender:
        return Contender(name, f"{st}, {label}", st, "text", st, model, reduced, options, server)

    found = [
        peer("st-torch", "torch", models.text, server=FASTAPI),
        peer("st-onnx", "ONNX", onnx, backend="onnx", file_name="onnx/model.onnx"),
        peer("st-onnx-o3", "ONNX, O3", onnx, backend="onnx", file_name="onnx/model_O3.onnx"),
        peer("st-onnx-int8", "ONNX, dynamic int8", onnx, True, FASTAPI, backend="onnx", file_name=_INT8),
        peer("st-openvino", "OpenVINO (its default rounds to bfloat16)", openvino, True, backend="openvino"),
        Contender("fastembed", "fastembed", "fastembed", "text", "fastembed", onnx, server=FASTAPI),
        *_litserve(onnx),
        *_infinity(models),
        *_ours("text", models),
    ]
    if models.image is not None:
        architecture, weights, graph = models.image
        timm: dict[str, Any] = {"architecture": architecture}
        both = {**timm, "weights": weights}
        found += [
            Contender("timm", "timm, torch", OURS, "image", "timm", weights, options=timm),
            Contender("timm-onnx", "timm's transform, ONNX Runtime", OURS, "image", "timm-onnx", graph, options=both),
            *_ours("image", models),
        ]
    return found


FASTAPI = "app.py"
"""Script of ``peers/`` that puts any library's call behind an endpoint."""
_INT8 = "onnx/model_qint8_avx512_vnni.onnx"
_LITSERVE = {"max_batch_size": 32, "batch_timeout": 0.002, "fast_queue": True}
"""Settings that were among the fastest of those tried (docs/LOG.md); a timeout of 0 keeps a core busy for ever."""


def _litserve(onnx: str) -> list[Contender]:
    """List what is behind LitServe: fastembed, which was the fastest peer for single texts, in both precisions."""
    return [
        Contender(
            f"litserve{suffix}",
            f"LitServe, fastembed inside{label}",
            "litserve",
            "text",
            "fastembed",
            onnx,
            bool(options),
            options,
            "litserve_app.py",
            _LITSERVE,
            is_timed=False,
        )
        for suffix, label, options in (("", "", {}), ("-int8", ", dynamic int8", {"model_file": _INT8}))
    ]


def _infinity(models: Models) -> list[Contender]:
    """List Infinity's engines for CPUs: PyTorch, and ONNX Runtime with each precision."""
    common: dict[str, Any] = {"pooling_method": "mean", "batch_size": 32}
    onnx: dict[str, Any] = {**common, "engine": "optimum", "onnx_disable_optimize": True}

    def engine(name: str, label: str, model: str, reduced: bool = False, **serving: Any) -> Contender:
        settings: dict[str, Any] = {"server": "infinity_app.py", "serving": serving, "is_timed": False}
        return Contender(name, f"Infinity, {label}", "infinity", "text", "infinity", model, reduced, **settings)

    float32, int8 = (str(models.converted / name) for name in ("alone-float32", "alone-int8"))
    return [
        engine("infinity-torch", "torch", models.text, **common, engine="torch", bettertransformer=False),
        engine("infinity-onnx", "ONNX", float32, **onnx, onnx_do_not_prefer_quantized=True),
        engine("infinity-onnx-int8", "ONNX, dynamic int8", int8, True, **onnx),
    ]


def _ours(modality: str, models: Models) -> list[Contender]:
    """List ours in every precision that the bundle has, on both engines, and as it chooses for itself."""
    from fluxtalk.artifacts.bundle import read_bundle

    precisions = read_bundle(models.bundle, check_hashes=False).manifest.precisions
    made = [("auto", "fp32", "as it chooses"), ("ort-cpu", "fp32", "ONNX Runtime"), ("openvino", "fp32", "OpenVINO")]
    made += [("openvino", "bf16", "OpenVINO, bfloat16")] * ("bf16" in precisions)
    if "int8" in precisions:
        made += [("ort-cpu", "int8", "ONNX Runtime, int8"), ("openvino", "int8", "OpenVINO, int8")]
    return [
        Contender(
            f"ours-{modality}-{backend}-{precision}",
            f"FluxTalk, {label}",
            OURS,
            modality,
            OURS,
            str(models.bundle),
            precision != "fp32",
            {"modality": modality, "backend": backend, "precision": precision},
        )
        for backend, precision, label in made
    ]
