"""Optimization profiles: the sizes that an engine is compiled for.

An engine takes any size between the smallest and the largest of one of its profiles, and is fastest at the optimal one.
``--profile text:batch=1,16,128:length=8,32,256:k=1,3,4`` is one profile of the modality `text`; several of one modality
become several profiles of its engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxtalk.artifacts.bundle import AXES, Bundle
from fluxtalk.artifacts.engine import Profile, default_profile
from fluxtalk.errors import UsageError


def profiles_of(bundle: Bundle, modalities: Sequence[str], texts: Sequence[str]) -> dict[str, list[Profile]]:
    """Read the profiles of every modality from the command line's spelling.

    Args:
        modalities: those that are compiled.
        texts: such as ``MODALITY:AXIS=MIN,OPT,MAX[:AXIS=...]``; axes are ``batch``, ``length`` and ``k``.

    Returns:
        modality to its profiles: those given, completed with the default's sizes; the default if none is given.

    Raises:
        UsageError: a profile is malformed, belongs to a modality that is not compiled, has an axis that the modality
            lacks, or sizes that the bundle does not have.
    """
    found: dict[str, list[Profile]] = {}
    for text in texts:
        modality, given = parse_profile(text)
        if modality not in modalities:
            raise UsageError(
                f"--profile {text} names the modality {modality!r}; compiled are {', '.join(modalities)}: "
                "name one of them."
            )
        profile = _complete(bundle, modality, given, text)
        if profile in found.setdefault(modality, []):
            raise UsageError(f"--profile {text} is given twice; leave one out.")
        found[modality].append(profile)
    return {modality: found.get(modality) or [default_profile(bundle.manifest, modality)] for modality in modalities}


def parse_profile(text: str) -> tuple[str, Profile]:
    """Split a profile into its modality and the axes that it names.

    Raises:
        UsageError: the text is malformed, or an axis is unknown or named twice.
    """
    modality, *parts = text.split(":")
    if not modality or not parts:
        raise UsageError(
            f"A profile is MODALITY:AXIS=MIN,OPT,MAX[:AXIS=...], such as text:batch=1,16,128:k=1,3,4; got {text!r}."
        )
    profile: Profile = {}
    for part in parts:
        axis, _, sizes = part.partition("=")
        if axis not in AXES:
            raise UsageError(f"--profile {text} has the axis {axis!r}; axes are {', '.join(AXES)}.")
        if axis in profile:
            raise UsageError(f"--profile {text} names the axis {axis} twice; leave one out.")
        profile[axis] = _sizes(text, axis, sizes)
    return modality, profile


def sizes_at(profile: Profile, axes: Sequence[str | int], which: int) -> tuple[int, ...]:
    """The shape of one input at a profile's smallest (0), optimal (1) or largest (2) sizes.

    Args:
        axes: for each dimension its axis, or its fixed size.
    """
    return tuple(axis if isinstance(axis, int) else profile[axis][which] for axis in axes)


def format_profile(profile: Mapping[str, Sequence[int]]) -> str:
    """A profile in the command line's spelling, without its modality."""
    return ":".join(f"{axis}={','.join(map(str, sizes))}" for axis, sizes in profile.items())


def _sizes(text: str, axis: str, sizes: str) -> list[int]:
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise UsageError(
            f"--profile {text}: {axis} is three whole numbers MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX; got {sizes!r}."
        )
    return numbers


def _complete(bundle: Bundle, modality: str, given: Profile, text: str) -> Profile:
    """Add the axes that are not named, in the order of `AXES`, and check the sizes against the bundle."""
    entry = bundle.manifest.modalities[modality]
    if "length" in given and not entry.has_length:
        raise UsageError(f"--profile {text}: {modality} has no length, only batch and k; leave length out.")
    tokens, longest = bundle.manifest.num_register_tokens, entry.max_length
    if "k" in given and given["k"][2] > tokens:
        raise UsageError(f"--profile {text}: this bundle has {tokens} register tokens; k goes up to {tokens}.")
    if "length" in given and longest is not None and given["length"][2] > longest:
        raise UsageError(
            f"--profile {text}: the {modality} encoder takes at most {longest} tokens; length goes up to {longest}."
        )
    return {axis: given.get(axis, sizes) for axis, sizes in default_profile(bundle.manifest, modality).items()}
