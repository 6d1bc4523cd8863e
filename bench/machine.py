"""Description of the machine that a figure was measured on."""

from __future__ import annotations

from fluxtalk.devices.processor import this_processor


def processor() -> str:
    """Architecture and, if the system tells it, model: ``x86_64 (AMD EPYC 9V74)``."""
    found = this_processor()
    return f"{found.architecture} ({found.model})" if found.model else found.architecture
