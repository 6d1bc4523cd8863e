"""One training step's gradient: head and loss over the whole global batch, in as many forward passes as fit.

With one forward pass it is plain back-propagation. With several (``--accum-steps``) the gradient is *cached*: all
passes run without a graph, the loss over all their tokens gives each token's gradient, and every pass runs again,
with the same random draws, to carry its tokens' gradient on to the parameters. Negatives then span the whole batch,
the memory of activations is one pass's, and the numbers are the same (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.model.head.nested_dropout import derive_seed
from fluxtalk.model.head.token_dropout import hashed_uniform
from fluxtalk.model.head.token_head import RegisterOutputs, TokenHead
from fluxtalk.model.losses.complementary import ComplementaryInputs, build_objective
from fluxtalk.model.losses.register_loss import LossTerms, RegisterTokenLoss
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.loop.loader import Batch

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NextBatch = Callable[[], Batch]
Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class ForwardPass:
    """Output of one forward pass, for the loss."""

    outputs: RegisterOutputs
    ids: Tensor
    inputs: ComplementaryInputs | None

    def tensors(self) -> list[Tensor]:
        """List the tensors that carry gradient: every modality's tokens, of both views if there are two."""
        second = list(self.inputs.second_view.values()) if self.inputs is not None else []
        return [*self.outputs.tokens.values(), *second]


@dataclass(frozen=True)
class RandomDraws:
    """The random draws of one step, made for the global batch."""

    step: int
    lengths: Mapping[str, Tensor]
    """Modality to int64 (global batch,): prefix lengths."""
    prefix_counts: tuple[int, ...]
    """Lengths that the loss is taken at instead, if there are any."""


def build_loss(
    config: TrainConfig,
    head: TokenHead,
    group: ProcessGroup,
    global_batch: int,
    several_items: Collection[str] | None = None,
) -> RegisterTokenLoss:
    """Build the loss over a head's tokens that the options ask for.

    Args:
        global_batch: rows of one step over all processes.
        several_items: modalities in which ids have several items in a batch; None is all.
    """
    sizes = head.config
    complementary = sizes.num_register_tokens - sizes.num_overlapping_tokens
    return RegisterTokenLoss(
        config.complementary_reg_weight,
        group,
        contrastive=config.contrastive,
        aggregation=sizes.aggregation,
        batch_size=global_batch,
        objective=build_objective(
            config.complementary_objective,
            sizes.dims,
            sizes.layout.dim,
            complementary,
            config.complementary_correlation_weight,
            several_items,
        ),
        objective_weight=config.complementary_objective_weight,
        # A baseline of one token has one k, whatever the run that it is compared with trains.
        k_values=tuple(k for k in config.k_list if k <= sizes.num_register_tokens),
        maxsim_sharpness=config.maxsim_sharpness,
        nested_dims=sizes.layout.nested_dims,
    )


class TrainingStep(nn.Module):
    """Head and loss as one module: everything that trains.

    Args:
        global_batch: rows of one step over all processes.
    """

    def __init__(
        self, head: TokenHead, loss: RegisterTokenLoss, config: TrainConfig, group: ProcessGroup, global_batch: int
    ) -> None:
        super().__init__()
        self.head = head
        self.loss = loss
        self.config = config
        self.group = group
        self.global_batch = global_batch
        # A bound method: a second module would give every parameter a second name.
        called: nn.Module = torch.compile(head, dynamic=True) if config.compile else head  # type: ignore[assignment]
        self._call: Callable[..., RegisterOutputs] = called.__call__

    def draws(self, step: int) -> RandomDraws:
        """Make the draws of a step: the same however many processes share the batch."""
        dropout = self.head.nested_dropout
        modalities = tuple(self.head.config.dims)
        if self.config.nested_draw == "independent":
            return RandomDraws(step, {m: dropout.sample(self.global_batch, step, m) for m in modalities}, ())
        if self.config.nested_draw == "batch":
            length = torch.full((self.global_batch,), dropout.sample_for_batch(step))
            return RandomDraws(step, dict.fromkeys(modalities, length), ())
        whole = torch.full((self.global_batch,), dropout.num_tokens)
        counts = () if self.loss.k_values else dropout.sample_several(step)
        return RandomDraws(step, dict.fromkeys(modalities, whole), counts)

    def gradients(self, draws: RandomDraws, passes: int, next_batch: NextBatch, backward: Backward) -> LossTerms:
        """Add the gradient of one step to the parameters, as this process sees it.

        Args:
            passes: forward passes of this process.
            next_batch: returns the passes' batches in order; with several passes, the same ones a second time.
            backward: back-propagates a scalar (a gradient scaler scales it first).
        """
        if passes == 1:
            read = self._read(next_batch(), draws, 0)
            terms = self._loss([read], draws)
            backward(terms.total)
            return terms
        with torch.no_grad():
            reads = [_detached(self._read(next_batch(), draws, index)) for index in range(passes)]
        terms = self._loss(reads, draws)
        backward(terms.total)
        for index, cached in enumerate(reads):
            again = self._read(next_batch(), draws, index)
            gradients = [tensor.grad for tensor in cached.tensors()]
            carried = [(t, g) for t, g in zip(again.tensors(), gradients, strict=True) if g is not None]
            torch.autograd.backward([t for t, _ in carried], [g for _, g in carried])
        return terms

    def _loss(self, reads: Sequence[ForwardPass], draws: RandomDraws) -> LossTerms:
        read = reads[0] if len(reads) == 1 else _joined(reads)
        terms: LossTerms = self.loss(read.outputs, read.ids, read.inputs, draws.prefix_counts)
        return terms

    def _read(self, batch: Batch, draws: RandomDraws, index: int) -> ForwardPass:
        # The seed of PyTorch's own dropout: a pass that runs a second time draws the same.
        torch.manual_seed(derive_seed(self.config.seed, "dropout", draws.step, self.group.rank, index))
        places = batch.places.cpu()
        lengths = {m: draws.lengths[m][places].to(batch.ids.device) for m in batch.features}
        precision = self.config.precision
        with torch.autocast(batch.ids.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
            outputs = self._view(batch, draws.step, lengths, 0)
            inputs = None
            if self.loss.objective is not None:
                paired = self.loss.objective.needs_second_view
                second = self._view(batch, draws.step, lengths, 1).tokens if paired else {}
                targets = {m: _mean_feature(batch.features[m], batch.masks[m]) for m in batch.features}
                inputs = ComplementaryInputs(batch.items, second, targets, batch.ids)
        return ForwardPass(outputs, batch.ids, inputs)

    def _view(self, batch: Batch, step: int, lengths: Mapping[str, Tensor], view: int) -> RegisterOutputs:
        rate = self.config.view_dropout if view else self.head.config.token_dropout
        hidden = {}
        if rate:
            for modality, mask in batch.masks.items():
                seed = derive_seed(self.config.seed, "hidden", step, modality, view)
                hidden[modality] = hashed_uniform(seed, batch.places, mask.shape[1])
        return self._call(batch.features, batch.masks, prefix_lengths=lengths, hidden=hidden, hide_rate=rate)


def _detached(read: ForwardPass) -> ForwardPass:
    """Copy the numbers into leaves that will receive a gradient."""
    outputs, inputs = read.outputs, read.inputs
    tokens = {m: t.detach().requires_grad_() for m, t in outputs.tokens.items()}
    leaves = RegisterOutputs(tokens, outputs.keep, outputs.num_overlapping, outputs.present)
    if inputs is not None:
        second = {m: t.detach().requires_grad_() for m, t in inputs.second_view.items()}
        inputs = ComplementaryInputs(inputs.items, second, inputs.targets, inputs.ids)
    return ForwardPass(leaves, read.ids, inputs)


def _joined(reads: Sequence[ForwardPass]) -> ForwardPass:
    """Concatenate the passes of a step."""
    outputs = [read.outputs for read in reads]
    inputs = [read.inputs for read in reads if read.inputs is not None]
    joined = RegisterOutputs(
        _concatenated([o.tokens for o in outputs]),
        _concatenated([o.keep for o in outputs]),
        outputs[0].num_overlapping,
        _concatenated([o.present for o in outputs]),
    )
    joined_inputs = None
    if inputs:
        joined_inputs = ComplementaryInputs(
            _concatenated([i.items for i in inputs]),
            _concatenated([i.second_view for i in inputs]),
            _concatenated([i.targets for i in inputs]),
            torch.cat([i.ids for i in inputs]),
        )
    return ForwardPass(joined, torch.cat([read.ids for read in reads]), joined_inputs)


def _concatenated(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mean_feature(features_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Average each sample's features, normalized to zero mean and unit variance, (B, E)."""
    mask = mask_BL[..., None].float()
    normalized = F.layer_norm(features_BLE.float(), features_BLE.shape[-1:])
    return (normalized * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
