"""Stage 1 from names: pretrained encoders of other libraries in one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import Identity, git_revision
from fluxtalk.config import require_modality_name
from fluxtalk.datasets.data_paths import with_absolute_path
from fluxtalk.errors import UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, build_encoder
from fluxtalk.model.encoders.libraries import is_library_source
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.train.stage1.create import pretrained_modality
from fluxtalk.train.stage1.sources.names import parse_source


def pack_encoders(
    encoders: Mapping[str, str],
    data: str | None = None,
    prompts: Mapping[str, Mapping[str, str]] | None = None,
    default_prompts: Mapping[str, str] | None = None,
    allow_code: bool = False,
) -> Stage1:
    """Open every encoder that is named, and try each on the extremes of its inputs.

    Args:
        encoders: modality to the name of its encoder: ``hf:``, ``timm:``, ``open_clip:``, ``st:`` or ``features:DIM``.
        data: data set that stage 2 takes by default.
        prompts: text modality to its prompts, name to what is put before a text.
        default_prompts: text modality to the name of the prompt that is used where none is named.
        allow_code: run code that a model brings with it.

    Raises:
        UsageError: a name cannot be opened, or an encoder fails on its inputs.
        CheckpointError: weights do not fit.
    """
    prompted = {*(prompts or {}), *(default_prompts or {})}
    unknown = sorted(prompted - set(encoders))
    if unknown:
        raise UsageError(f"Prompts are given for {', '.join(unknown)}, of which no --encoder is named.")
    modalities: dict[str, Stage1Modality] = {}
    about: dict[str, Any] = {}
    for name, source in encoders.items():
        require_modality_name(name)
        if source.startswith("features:") and source.removeprefix("features:").isdecimal():
            if name in prompted:
                raise UsageError(f"Prompts are a text encoder's; {name} is {source}, which takes none.")
            build_encoder(source, {})
            dim = int(source.removeprefix("features:"))
            modalities[name] = Stage1Modality(EncoderSpec(source, {}, dim), {}, FeaturesPreprocessor(dim))
            continue
        if not is_library_source(source):
            raise UsageError(
                f"--encoder takes hf:, timm:, open_clip:, st: and features:DIM; {source} needs a specification "
                "(encoders.json), which says how to feed it."
            )
        modalities[name], about[name] = pretrained_modality(
            name,
            parse_source(source),
            allow_code,
            (prompts or {}).get(name),
            (default_prompts or {}).get(name),
        )
    return Stage1(
        modalities=modalities,
        data=None if data is None else with_absolute_path(data, Path.cwd()),
        figures={"encoders": about},
        identity=Identity(git_revision=git_revision()),
    )


def parse_encoders(words: Sequence[str]) -> dict[str, str]:
    """Parse ``MODALITY=SOURCE`` words.

    Raises:
        UsageError: a word is malformed, or a modality is named twice.
    """
    encoders: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or not name or not source:
            raise UsageError(f"--encoder is MODALITY=SOURCE, such as image=timm:resnet18; got {word!r}.")
        if name in encoders:
            raise UsageError(f"--encoder names the modality {name} twice; leave one out.")
        encoders[name] = source
    return encoders


def parse_names(words: Sequence[str]) -> dict[str, str]:
    """Parse ``MODALITY=NAME`` words of default prompts.

    Raises:
        UsageError: a word is malformed.
    """
    names: dict[str, str] = {}
    for word in words:
        modality, equals, name = word.partition("=")
        if not equals or not modality or not name:
            raise UsageError(f"--default-prompt is MODALITY=NAME, such as text=query; got {word!r}.")
        names[modality] = name
    return names


def parse_prompts(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse ``MODALITY.NAME=TEXT`` words.

    Raises:
        UsageError: a word is malformed.
    """
    prompts: dict[str, dict[str, str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        modality, dot, prompt = name.partition(".")
        if not equals or not dot or not modality or not prompt:
            raise UsageError(f'--prompt is MODALITY.NAME=TEXT, such as text.query="query: "; got {word!r}.')
        prompts.setdefault(modality, {})[prompt] = text
    return prompts
