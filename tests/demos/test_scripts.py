"""The scripts that a user runs first, with small settings."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_first_features(tmp_path):
    command = [sys.executable, str(ROOT / "demos" / "first_features.py"), "--quick", "--out", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\nFeature ") == 10
    for name in ("reconstruction_error", "control_pca", "control_random", "control_svd_w"):
        assert name in found.stdout
    assert "«" in found.stdout
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")
    assert "100 features of blocks.1.attn.W_K" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "features" / "features.safetensors").is_file()
