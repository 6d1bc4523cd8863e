"""Libraries of pretrained encoders, importable beside a CPU build of torch."""

from __future__ import annotations

from bench.encoders.torchvision_operators import declare_torchvision_operators

declare_torchvision_operators()
