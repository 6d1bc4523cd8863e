"""`Work`: a request, its folder and record, and the encoders and data that the stages share, each read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fluxtalk.align.folder import AlignFolder, StageRecord
from fluxtalk.align.request import AlignRequest
from fluxtalk.artifacts.files import hash_file, hash_json
from fluxtalk.artifacts.run import read_description
from fluxtalk.datasets import PairDataset, default_cache_dir, load_dataset
from fluxtalk.datasets.bad_items import BadItemPolicy, read_report
from fluxtalk.datasets.data_paths import first_existing
from fluxtalk.datasets.left_out import leave_out
from fluxtalk.errors import DataError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, trust_code
from fluxtalk.model.encoders.libraries import is_library_source
from fluxtalk.train.stage1.sources.names import parse_source


@dataclass
class Work:
    """State of one `fluxtalk align`."""

    request: AlignRequest
    say: Callable[[str], None]
    folder: AlignFolder = field(init=False)
    stages: dict[str, StageRecord] = field(default_factory=dict)
    """The record of each stage; a stage that runs replaces its own."""

    def __post_init__(self) -> None:
        self.folder = AlignFolder(self.request.output)

    @property
    def stage1_path(self) -> Path:
        """Checkpoint of the frozen encoders."""
        return self.request.stage1_checkpoint or self.folder.stage1

    @property
    def cache_dir(self) -> Path:
        """Folder of renderings and features."""
        return default_cache_dir(self.request.cache_dir)

    @cached_property
    def stage1(self) -> Stage1:
        """Frozen encoders.

        Raises:
            CheckpointError: the checkpoint is missing or cannot be used.
        """
        return load_stage1(self.stage1_path)

    @cached_property
    def stage1_hash(self) -> str:
        """Hash of everything that changes features."""
        return self.stage1.content_hash()

    @property
    def compares_tokens(self) -> bool:
        """True if the head was trained by late interaction: what is found is found by tokens, not by one vector."""
        return bool(read_description(self.folder.run.root).options["aggregation"] == "maxsim")

    @cached_property
    def dataset(self) -> PairDataset:
        """The data set without the items that the stage `features` left out.

        Raises:
            ArtifactError: the record of them is malformed.
            FluxTalkError: as for `whole`.
        """
        if self.folder.bad_items.is_file():
            data_hash, bad = read_report(self.folder.bad_items)
            if data_hash == self.whole.content_hash:
                return leave_out(self.whole, bad)
        return self.whole

    @cached_property
    def whole(self) -> PairDataset:
        """The data set as it was read.

        Raises:
            DataError: it cannot be used.
            UsageError: it lacks a modality that stage 1 encodes.
        """
        tolerated = self.request.bad_items.limit
        dataset = load_dataset(self.request.data, self.cache_dir, self.stage1.kinds, tolerated)
        missing = sorted(set(self.stage1.modalities) - set(dataset.modalities))
        if missing:
            raise UsageError(
                f"There is an encoder for {', '.join(missing)}, but {self.request.data} has only "
                f"{', '.join(dataset.modalities)}; rename the columns, or say which is which, "
                "as in pairs.csv?image=COLUMN&text=COLUMN."
            )
        return dataset

    def require_data(self) -> None:
        """Refuse data that do not exist before encoders are packed.

        Raises:
            DataError: there is nothing by that name.
        """
        if first_existing([self.request.data]) is None:
            raise DataError(f"The data set {self.request.data} does not exist; check the path.")

    def allow_code(self) -> None:
        """Trust the code of a checkpoint that was named, if the request says so.

        Raises:
            CheckpointError: the checkpoint is missing or cannot be used.
        """
        if self.request.allow_code and self.request.stage1_checkpoint is not None:
            trust_code(self.request.stage1_checkpoint)

    def forget_stage1(self) -> None:
        """Read the encoders again when they are asked for next: they were packed anew."""
        self._forget("stage1", "stage1_hash", "dataset", "whole")

    def forget_bad_items(self) -> None:
        """Read what is left out of the data again when it is asked for next."""
        self._forget("dataset")

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def recorded(self, stage: str, output: str) -> Any:
        """Return an output that a stage has left; None if it has not ended yet."""
        record = self.stages.get(stage)
        return record.outputs.get(output) if record is not None and record.done else None

    # Inputs of each stage: whatever changes its outputs, and nothing else.

    def pack_inputs(self) -> Mapping[str, Any]:
        """Return the encoders by name, with the content of those that are local files or folders."""
        if self.request.stage1_checkpoint is not None:
            return {"checkpoint": self.stage1_hash}
        encoders = {m: [source, local_content(source)] for m, source in self.request.encoders.items()}
        prompts = {modality: dict(texts) for modality, texts in self.request.prompts.items()}
        return {"encoders": encoders, "prompts": prompts, "default_prompts": dict(self.request.default_prompts)}

    def features_inputs(self) -> Mapping[str, Any]:
        """Return encoders, data, and how features are stored."""
        features = {name: value for name, value in self.request.features.to_dict().items() if name != "verify"}
        policy = self.request.bad_items
        bad_items = {} if policy == BadItemPolicy() else {"bad_items": [policy.action, policy.limit]}
        return {"stage1": self.stage1_hash, "data": self.whole.content_hash, "features": features, **bad_items}

    def train_inputs(self) -> Mapping[str, Any]:
        """Return what the user asked for; not what memory made of it, so that a run resumes on another machine."""
        names = ("recipe", "epochs", "steps", "batch_size", "seed")
        encoded = {name: value for name, value in self.features_inputs().items() if name != "bad_items"}
        asked = {name: getattr(self.request, name) for name in names}
        return {**encoded, "data": self.dataset.content_hash, **asked}

    def evaluate_inputs(self) -> Mapping[str, Any]:
        """Return the trained head; its training names encoders and data."""
        return {**self.train_inputs(), "head": self.recorded("train", "head")}

    def export_inputs(self) -> Mapping[str, Any]:
        """Return the trained head, data that calibrate and judge it, and the precisions."""
        return {
            "head": self.recorded("train", "head"),
            "stage1": self.stage1_hash,
            "data": self.dataset.content_hash,
            "precisions": list(self.request.precisions),
        }

    def verify_inputs(self) -> Mapping[str, Any]:
        """Return the bundle."""
        return {"bundle": self.recorded("export", "bundle")}

    def card_inputs(self) -> Mapping[str, Any]:
        """Return everything that the card tells."""
        told = {name: [self.stages[name].inputs, dict(self.stages[name].outputs)] for name in self.stages}
        return {name: told[name] for name in ("pack", "train", "evaluate", "export", "verify") if name in told} | {
            "data": self.dataset.public_name
        }


def local_content(source: str) -> list[str] | None:
    """Hash the folder and the file of weights that a source names on this machine; None if it names neither.

    Raises:
        UsageError: the source is malformed, or names a folder that does not exist.
    """
    if not is_library_source(source):
        return None
    named = parse_source(source)
    hashes = [] if named.file is None or not named.file.is_file() else [hash_file(named.file)]
    if named.folder is not None:
        files = sorted(file for file in named.folder.rglob("*") if file.is_file())
        hashes.append(hash_json([[str(file.relative_to(named.folder)), hash_file(file)] for file in files]))
    return hashes or None
