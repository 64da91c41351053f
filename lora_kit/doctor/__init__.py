"""The doctor: what is wrong with a configuration, before it costs a night, and with a run, after its first updates."""

from lora_kit.doctor.examine import examine, examine_settings
from lora_kit.doctor.findings import ERROR, FINE, STATUSES, WARNING, Finding, Findings
from lora_kit.doctor.watch import Watch, try_run

__all__ = [
    "ERROR", "FINE", "STATUSES", "WARNING", "Finding", "Findings", "Watch", "examine", "examine_settings", "try_run",
]  # fmt: skip
