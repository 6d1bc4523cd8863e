"""The encoders of all contenders, as each library's documentation says to load them for one machine.

Every loader gives a function from items to normalized float32 vectors (N, D). This file imports nothing of FluxTalk but
where FluxTalk is the contender.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

Encode = Callable[[Sequence[str]], Any]
SINGLE_BATCH = 1_000_000
"""A batch size that no call reaches: a call is one batch in every library."""


def load(loader: str, model: str, threads: int, options: dict[str, Any]) -> Encode:
    """Load a contender's encoder.

    Args:
        loader: a key of `LOADERS`.
        model: folder of the model or bundle.
        threads: threads that the library may compute with.
        options: what the loader takes besides.
    """
    return LOADERS[loader](model, threads, **options)


def _session_options(threads: int) -> Any:
    found = importlib.import_module("onnxruntime").SessionOptions()
    found.intra_op_num_threads, found.inter_op_num_threads = threads, 1
    return found


def _sentence_transformers(model: str, threads: int, backend: str = "torch", file_name: str = "") -> Encode:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    settings: dict[str, Any] = {}
    if backend == "onnx":
        settings = {"provider": "CPUExecutionProvider", "session_options": _session_options(threads)}
    elif backend == "openvino":
        settings = {"ov_config": {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}}
    if file_name:
        settings["file_name"] = file_name
    library: Any = importlib.import_module("sentence_transformers")
    made = library.SentenceTransformer(model, device="cpu", backend=backend, model_kwargs=settings)

    def encode(items: Sequence[str]) -> Any:
        return made.encode(list(items), batch_size=SINGLE_BATCH, normalize_embeddings=True, show_progress_bar=False)

    return encode


def _fastembed(model: str, threads: int, model_file: str = "onnx/model.onnx") -> Encode:
    np: Any = importlib.import_module("numpy")
    library: Any = importlib.import_module("fastembed")
    described: Any = importlib.import_module("fastembed.common.model_description")
    name = "local/" + model_file
    library.TextEmbedding.add_custom_model(
        model=name,
        pooling=described.PoolingType.MEAN,
        normalization=True,
        sources=described.ModelSource(hf=name),
        dim=384,
        model_file=model_file,
    )
    made = library.TextEmbedding(model_name=name, specific_model_path=model, threads=threads)

    def encode(items: Sequence[str]) -> Any:
        return np.stack(list(made.embed(list(items), batch_size=SINGLE_BATCH))).astype(np.float32)

    return encode


def _fluxtalk(model: str, threads: int, modality: str, backend: str = "auto", precision: str | None = None) -> Encode:
    runtime: Any = importlib.import_module("fluxtalk.runtime")
    made = runtime.load(model, backend=backend, threads=threads, modalities=[modality], precision=precision)

    def encode(items: Sequence[str]) -> Any:
        return made.embed(modality, list(items))

    return encode


def _timm(model: str, threads: int, architecture: str) -> Encode:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    made, transform = _timm_model(architecture, model)
    image: Any = importlib.import_module("PIL.Image")

    def encode(items: Sequence[str]) -> Any:
        pixels = torch.stack([transform(image.open(item).convert("RGB")) for item in items])
        with torch.inference_mode():
            return torch.nn.functional.normalize(made(pixels), dim=-1).numpy()

    return encode


def _timm_onnx(model: str, threads: int, architecture: str, weights: str) -> Encode:
    """The exported graph behind ONNX Runtime; pictures are read by timm's own transform, as its users do."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    np: Any = importlib.import_module("numpy")
    _, transform = _timm_model(architecture, weights)
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model, _session_options(threads), providers=["CPUExecutionProvider"])
    image: Any = importlib.import_module("PIL.Image")

    def encode(items: Sequence[str]) -> Any:
        pixels = np.stack([transform(image.open(item).convert("RGB")).numpy() for item in items])
        (vectors,) = session.run(None, {"pixels": pixels})
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def _timm_model(architecture: str, weights: str) -> tuple[Any, Any]:
    _declare_torchvision_operators()
    timm: Any = importlib.import_module("timm")
    made = timm.create_model(architecture, num_classes=0).eval()
    tensors: Any = importlib.import_module("safetensors.torch").load_file(weights)
    missing, _ = made.load_state_dict(tensors, strict=False)
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"{weights} lacks {missing[0]}")
    config = timm.data.resolve_data_config({}, model=made)
    return made, timm.data.create_transform(**config)


def _declare_torchvision_operators() -> None:
    """Let a torchvision that was built for another torch be imported: transforms need none of its operators."""
    torch: Any = importlib.import_module("torch")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        name, _, arguments = schema.partition("(")
        try:
            torch.library.define(f"torchvision::{name}", f"({arguments}")
        except RuntimeError:
            return  # torchvision has them


LOADERS: dict[str, Callable[..., Encode]] = {
    "sentence-transformers": _sentence_transformers,
    "fastembed": _fastembed,
    "fluxtalk": _fluxtalk,
    "timm": _timm,
    "timm-onnx": _timm_onnx,
}
