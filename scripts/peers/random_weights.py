"""A checkpoint with the random weights that ``random:0`` stands for.

Usage: random_weights.py MODEL OUT.pt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(model: str, out: str) -> None:
    import torch

    from shufflectl.models import create

    torch.save(create(model, weights="random:0").state_dict(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
