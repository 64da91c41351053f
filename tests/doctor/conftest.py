import pytest


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An output folder of its own, and no precision from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("ACCELERATE_MIXED_PRECISION", "MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
