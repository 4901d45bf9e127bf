"""The whole model from nothing: python -m pocket. Every part goes on where it was; hours on two cores."""

from __future__ import annotations

import subprocess
import sys

STEPS = {"judge": 3000, "clip": 3000, "autoencoder": 10_000, "unet": 14_000}

if __name__ == "__main__":
    for part in ("world", "tokenizer"):
        subprocess.run([sys.executable, "-m", f"pocket.{part}"], check=True)
    for part, steps in STEPS.items():
        subprocess.run([sys.executable, "-m", f"pocket.{part}", "--steps", str(steps)], check=True)
    for part in ("export", "evaluate"):
        subprocess.run([sys.executable, "-m", f"pocket.{part}"], check=True)
