"""Beginning with another run's head, to train it further or to add a modality to its space."""

from __future__ import annotations

from pathlib import Path

from fluxtalk.artifacts.run import read_description
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.head import HeadCheckpoint
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.checkpoints.trained_run import load_best_head
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.train.option_types import spelled

_SHAPE = (
    "dim",
    "num_register_tokens",
    "num_overlapping_tokens",
    "depth",
    "heads",
    "self_attention",
    "block_weights",
    "output_projection",
    "mean_path",
    "token_dim",
    "feed_forward",
    "summary_registers",
    "mean_path_width",
)


def read_initial_head(run: Path) -> HeadCheckpoint:
    """Read the best head of a run.

    Raises:
        ArtifactError: the folder is not a run.
        CheckpointError: the run has no head yet.
    """
    return load_best_head(read_description(run).folder)


def initialize_from(head: TokenHead, stage1: Stage1, run: Path, freeze: bool) -> tuple[str, ...]:
    """Load the best head of a run into a new head, which may have further modalities.

    With ``freeze``, only parameters that the new modalities use alone are trained. Every embedding of the old
    modalities then stays the same, bit for bit, so that nothing has to be embedded again.

    Args:
        stage1: the encoders of all modalities, the old ones unchanged.

    Returns:
        The new modalities.

    Raises:
        CheckpointError: the run has no head, or an old modality has another encoder now.
        UsageError: the head has another shape or reads other features, or nothing would be left to train.
    """
    before = read_description(run)
    old = load_best_head(before.folder)
    differing = [name for name in _SHAPE if getattr(old.config, name) != getattr(head.config, name)]
    listed = ", ".join(f"{spelled(n)} {getattr(old.config, n)}" for n in differing)
    grids = {modality: grid for modality, grid in head.config.grids.items() if modality in old.config.dims}
    if bool(old.config.regions) != bool(head.config.regions) or grids != old.config.grids:
        listed += ", " * bool(listed) + f"{spelled('regions')} {old.config.regions or 'as its default'}"
    if listed:
        raise UsageError(f"--init-from {run} holds a head of another shape; give its {listed}.")
    for modality, expected in before.info.encoder_hashes.items():
        part = stage1.modalities.get(modality)
        if part is None or part.content_hash() != expected:
            raise CheckpointError(
                f"--init-from {run} was trained on another {modality} encoder than the stage 1 checkpoint holds; "
                "make one with the same encoders and the new ones beside them."
            )
    for modality, dim in old.config.dims.items():
        if head.config.dims[modality] != dim:
            raise UsageError(
                f"--init-from {run} reads {modality} features of dimension {dim}, not {head.config.dims[modality]}; "
                "give its --feature-pca."
            )
    new = tuple(name for name in head.config.dims if name not in old.config.dims)
    if freeze and not new:
        raise UsageError(
            f"--freeze-registers leaves nothing to train: {run} has {', '.join(old.config.dims)} already; "
            "add a modality to stage 1, or leave the option out."
        )
    missing, unexpected = head.load_state_dict(dict(old.weights), strict=False)
    assert not unexpected, unexpected
    own = set().union(*(head.modality_parameters(name) for name in new)) if new else set()
    assert set(missing) <= own, set(missing) - own
    if freeze:
        for name, parameter in head.named_parameters():
            parameter.requires_grad_(name in own)
    return new
