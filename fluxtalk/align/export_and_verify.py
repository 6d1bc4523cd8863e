"""The stages behind a scored run: export and verify. Each returns what it leaves, for the record."""

from __future__ import annotations

import json
import shutil
from typing import Any

from fluxtalk.align.work import Work
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.artifacts.files import hash_file, write_atomically
from fluxtalk.errors import BundleError, IncompleteError
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle


def export(work: Work) -> dict[str, Any]:
    """Write the bundle; an earlier one is replaced once the new one is whole."""
    place = work.folder.bundle
    # Beside the old one, which may be served meanwhile.
    fresh = place.with_name("bundle.new")
    if fresh.exists():
        shutil.rmtree(fresh)
    run = open_run(work.folder.run.root, work.stage1_path)
    try:
        bundle = write_bundle(run, work.dataset, fresh, ExportOptions(work.request.precisions), work.say)
    except IncompleteError as error:
        work.say(str(error).replace(str(fresh), str(place)))
        bundle = read_bundle(fresh)
    if place.exists():
        shutil.rmtree(place)
    fresh.replace(place)
    held = list(bundle.manifest.precisions)
    refused = [name for name in work.request.precisions if name not in held]
    size = sum(file.stat().st_size for file in place.iterdir() if file.is_file())
    work.say(f"{place}: {', '.join(bundle.manifest.modalities)} in {', '.join(held)}, {size / 1e6:.1f} MB")
    return {"bundle": bundle.manifest.bundle_hash, "precisions": held, "refused": refused}


def exported(work: Work) -> bool:
    """Return whether the bundle is whole and the one that was exported."""
    try:
        return bool(read_bundle(work.folder.bundle).manifest.bundle_hash == work.recorded("export", "bundle"))
    except BundleError:
        return False


def verify(work: Work) -> dict[str, Any]:
    """Check the bundle's hashes and replay its golden vectors, as `fluxtalk-export verify` does.

    Raises:
        ParityError: a tolerance is exceeded.
    """
    verification = verify_bundle(work.folder.bundle, BackendOptions())
    verification.require()
    content = json.loads(verification.json())
    write_atomically(work.folder.verification, json.dumps(content, indent=2) + "\n")
    for name, largest in largest_differences(content).items():
        work.say(f"{name}: {largest['cases']} checks, at most {largest['max_abs']:.1e} from eager PyTorch")
    for name, why in verification.not_run.items():
        work.say(f"{name}: not run here: {why}")
    return {"verification": hash_file(work.folder.verification)}


def verified(work: Work) -> bool:
    """Return whether the verification is the one that was written."""
    path = work.folder.verification
    return path.is_file() and hash_file(path) == work.recorded("verify", "verification")


def largest_differences(verification: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return, by precision, the number of checks and the largest difference of an embedding from eager PyTorch."""
    found: dict[str, dict[str, float]] = {}
    for report in verification["reports"]:
        entry = found.setdefault(report["precision"], {"cases": 0, "max_abs": 0.0, "min_cosine": 1.0})
        entry["cases"] += 1
        entry["max_abs"] = max(entry["max_abs"], report["difference"]["max_abs"])
        entry["min_cosine"] = min(entry["min_cosine"], report["difference"]["min_cosine"])
    return found
