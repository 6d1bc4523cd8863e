"""Write what sentence-transformers' other backends read, by its own functions.

``python convert.py MODEL OUTPUT`` writes OUTPUT/onnx with ``model.onnx``, ``model_O3.onnx`` and dynamic int8, which
fastembed reads too, OUTPUT/openvino, and OUTPUT/alone-float32 and OUTPUT/alone-int8 with one graph each, beside the
other files and under the name that Infinity looks for.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

_ALONE = {
    "alone-float32": ("model.onnx", "model.onnx"),
    "alone-int8": ("model_qint8_avx512_vnni.onnx", "model_quantized.onnx"),
}


def main(model: str, output: Path) -> None:
    """Convert the model into every format that is not there yet."""
    library: Any = importlib.import_module("sentence_transformers")
    if not (output / "onnx" / "onnx" / "model_qint8_avx512_vnni.onnx").exists():
        settings = {"export": True, "provider": "CPUExecutionProvider"}
        made = library.SentenceTransformer(model, backend="onnx", model_kwargs=settings)
        folder = str(output / "onnx")
        made.save_pretrained(folder)
        _take_whole_length(output / "onnx", made.max_seq_length)
        library.export_optimized_onnx_model(made, "O3", folder)
        library.export_dynamic_quantized_onnx_model(made, "avx512_vnni", folder)
    for name, (graph, named) in _ALONE.items():
        alone = output / name
        if not (alone / named).exists():
            shutil.copytree(output / "onnx", alone, ignore=shutil.ignore_patterns("onnx"), dirs_exist_ok=True)
            shutil.copy(output / "onnx" / "onnx" / graph, alone / named)
    if not (output / "openvino" / "openvino" / "openvino_model.xml").exists():
        made = library.SentenceTransformer(model, backend="openvino", model_kwargs={"export": True})
        made.save_pretrained(str(output / "openvino"))


def _take_whole_length(folder: Path, length: int) -> None:
    """Let fastembed read as many tokens as sentence-transformers does: it takes the tokenizer's own, smaller limit."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_length": length}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
