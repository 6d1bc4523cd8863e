"""Noise of float32 on an embedder: eager float32 against eager float64, by thread count, and where it arises."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fluxtalk.arrays import Array, Arrays
from fluxtalk.errors import ParityError, reason
from fluxtalk.export.graph.layers import ROWS, eager_layers, worst_layer
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.scoring.noise import TOKEN_CEILING, Float32Noise, ceiling
from fluxtalk.scoring.parity import largest, token_difference

Outputs = list[tuple[Array, Array]]
"""Tokens and embeddings by k."""


def measure_noise(embedder: EagerEmbedder, cases: Sequence[Arrays], threads: Sequence[int] = ()) -> Float32Noise:
    """Compare eager float32 with eager float64, encoder and head, at every k.

    Args:
        embedder: in float32, on the CPU; not changed.
        cases: batches of preprocessed inputs.
        threads: thread counts of float32; by default 1 and the machine's, or 2.

    Returns:
        The noise and the promise that follows; the smallest promise, with the reason, if a part of the model is
        computed in another type than it is given, because float64 is then not more exact.

    Raises:
        ParityError: the noise is so large that nothing can be promised; it names the module where it arises.
    """
    counts = list(threads) or sorted({1, max(2, os.cpu_count() or 1)})
    exact = _in_float64(embedder)
    expected: list[Outputs] = []
    with _Narrowing(exact) as narrowing:
        for case in cases:
            try:
                expected.append(_outputs(exact, _double(case)))
            except (RuntimeError, TypeError, ValueError) as error:
                return Float32Noise(no_reference=f"the model does not run in float64: {reason(error)[:200]}")
    if narrowing.found:
        return Float32Noise(no_reference=f"a part of the model is computed in another type: {narrowing.found[0]}")
    if any(array.dtype != np.float64 for outputs in expected for pair in outputs for array in pair):
        return Float32Noise(no_reference="the model returns another type than float64 where it is given float64")
    by_count: dict[str, float] = {}
    tokens = 0.0
    for count in counts:
        with _threads(count):
            found = [_outputs(embedder, to_tensors(case)) for case in cases]
        pairs = [pair for one in zip(found, expected, strict=True) for pair in zip(*one, strict=True)]
        by_count[str(count)] = max(largest(embeddings - wanted) for (_, embeddings), (_, wanted) in pairs)
        tokens = max(tokens, *(token_difference(token, wanted) for (token, _), (wanted, _) in pairs))
    noise = Float32Noise.measured(by_count, tokens)
    dim = embedder.head.config.layout.dim
    if noise.too_large(dim):
        raise ParityError(
            f"Float32 itself moves an embedding of {embedder.modality} by up to {noise.noise:.1e} and a token by "
            f"{tokens:.1e} of the largest (eager PyTorch against float64), and four times that is more than "
            f"{ceiling(dim):.0e} and {TOKEN_CEILING:.0e}, the most that can be promised of {dim} numbers; it "
            f"{_where(embedder, exact, cases[0])}. Keep the numbers there small, or leave that layer out."
        )
    return noise


def _in_float64(embedder: EagerEmbedder) -> EagerEmbedder:
    exact = copy.deepcopy(embedder).double()
    # Pixels come with their channels last, of which PyTorch's float64 convolutions are thirty times slower.
    exact.encoder.encoder.register_forward_pre_hook(lambda _, given: tuple(part.contiguous() for part in given))
    return exact


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the modules in which an operator takes float64 and gives a narrower float."""

    def __init__(self, embedder: EagerEmbedder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        self._embedder = embedder

    def __enter__(self) -> _Narrowing:
        for name, module in self._embedder.named_modules():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            self._hooks.append(module.register_forward_hook(lambda *_: (self._stack.pop(), None)[1]))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [part for part in _flat((args, kwargs)) if part.dtype == torch.float64]
        narrower = [part for part in _flat(result) if part.is_floating_point() and part.dtype != torch.float64]
        if given and narrower:
            where = (self._stack[-1] if self._stack else "") or "the encoder"
            kind = str(narrower[0].dtype).removeprefix("torch.")
            self.found.append(f"{where} takes float64 and gives {kind}")
        return result


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _flat(part)]


def _double(case: Arrays) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in to_tensors(case))


def _outputs(embedder: EagerEmbedder, inputs: Sequence[Tensor]) -> Outputs:
    """Tokens and embeddings for every k; the encoder runs once."""
    with torch.inference_mode():
        features = embedder.encoder(*inputs)
        read = [embedder.read(features, torch.arange(k + 1)) for k in range(embedder.head.config.num_register_tokens)]
    return [(one.tokens.numpy(), one.embeddings.numpy()) for one in read]


def _where(embedder: EagerEmbedder, exact: EagerEmbedder, case: Arrays) -> str:
    """Say in which module float32 moves away from float64 the most, of the rows that move the most."""
    apart = np.abs(_outputs(embedder, to_tensors(case))[-1][1] - _outputs(exact, _double(case))[-1][1])
    rows = np.argsort(-apart.max(axis=(1, 2)), kind="stable")[:ROWS]
    part = {name: array[rows] for name, array in case.items()}
    found, expected = eager_layers(embedder, to_tensors(part)), eager_layers(exact, _double(part))
    kinds = {path: type(module).__name__ for path, module in embedder.named_modules()}
    return worst_layer(found, expected, kinds).line()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
