"""Files for containers and clusters: linted, valid by schema, and their steps executed where no Docker is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions(target: str) -> list[tuple[str, str]]:
    """Instructions of one stage, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    stage, found = "", []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        elif stage == target and word.isupper():
            found.append((word, rest.strip()))
    return found


def test_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(linter), str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_images_run_without_root_and_have_a_health_check() -> None:
    for target in ("cpu", "cuda"):
        assert instructions(target)[-1] == ("USER", "10001")
    assert [word for word, _ in instructions("base") if word in ("HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL")]
    health = dict(instructions("base"))["HEALTHCHECK"]
    assert "/readyz" in health
    # What the image copies from the repository is what the wheel is made of.
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for needed in ("fluxtalk", "train", "export", "runtime", "pyproject.toml", "constraints.txt", "README.md"):
        assert f"!{needed}" in ignored


def test_manifests_fit_the_cluster_s_schema() -> None:
    manifests = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    assert [one["kind"] for one in manifests] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for one in manifests:
        kubernetes_validate.validate(one, "1.31", strict=True)
    container = manifests[0]["spec"]["template"]["spec"]["containers"][0]
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {
        "/readyz",
        "/livez",
    }


def test_the_cluster_scales_on_a_metric_that_the_server_has() -> None:
    manifests = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    name = manifests[2]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "runtime" / "server" / "metrics.py").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_of_the_cpu_image_make_a_server(tmp_path: Path) -> None:
    """Runs the RUN lines of the stages `wheel` and `cpu` in a new environment, with paths of this machine."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "python")], check=True)
    binaries = tmp_path / "python" / "bin"
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(source)], check=True)
    # Without PYTHONPATH, pip sees nothing of the checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{binaries}:{os.environ['PATH']}"
    for target in ("wheel", "cpu"):
        for word, rest in instructions(target):
            if word == "RUN":
                step = rest.replace("/wheels", str(tmp_path / "wheels"))
                step = step.replace("/constraints.txt", str(source / "constraints.txt"))
                subprocess.run(["sh", "-ec", step], check=True, cwd=source, env=environment)
    listing = [str(binaries / "pip"), "list"]
    found = subprocess.run(listing, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    assert "fluxtalk" in found
    assert not re.search(r"^torch ", found, flags=re.MULTILINE)
    command = dict(instructions("base"))["ENTRYPOINT"]
    words = [word.strip(' "[]') for word in command.split(",")]
    done = subprocess.run(
        [str(binaries / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        env={**environment, "FLUXTALK_BUNDLE": "/nothing", "FLUXTALK_PORT": "0"},
    )
    assert "/nothing is not a bundle" in done.stderr
