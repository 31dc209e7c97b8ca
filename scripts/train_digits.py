"""Train the bundled networks on scikit-learn's digits and write what the package carries.

Writes ``shufflectl/models/weights/<model>_digits.safetensors`` (fp16, with a description in the header) and
``digits_test.npz`` and ``digits_calibration.npz`` there. The same machine with the same packages gives the
same files; elsewhere the sums of the training differ in the last bits, so the accuracy may differ by an image
or two.

    python scripts/train_digits.py [MODEL ...]
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from shufflectl.models import shufflenet_v1, shufflenet_v2
from shufflectl.models.data import digits_test, resize, scans_to_rgb
from shufflectl.models.preprocess import DIGITS

FOLDER = Path(__file__).parents[1] / "shufflectl" / "models" / "weights"
MODELS = ("shufflenet_v2_x0_5", "shufflenet_v1_g3_x0_5")
SIZE = 32
TEST_IMAGES = 360
CALIBRATION_IMAGES = 256
EPOCHS = 60
BATCH = 64
SEED = 0
GOAL = 0.98
DESCRIPTION = "{} trained on the UCI handwritten digits, top-1 accuracy {:.2%} on 360 held-out scans"
ATTRIBUTION = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
    "1998, doi:10.24432/C50P49, CC BY 4.0"
)

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def split() -> tuple[Split, Split, NDArray[np.int64]]:
    """Return the scans ``[N, 8, 8]`` and labels for training and for the test, and the test's indices."""
    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(digits.target))
    scans, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    test, train = np.sort(order[:TEST_IMAGES]), np.sort(order[TEST_IMAGES:])
    return (scans[train], labels[train]), (scans[test], labels[test]), test


def network(name: str) -> nn.Module:
    """Return the untrained network."""
    if name == "shufflenet_v2_x0_5":
        return shufflenet_v2.build(stage_channels=(48, 96, 192), last_channels=1024, num_classes=10)
    return shufflenet_v1.build(groups=3, width=0.5, num_classes=10)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images ``[N, 3, H, W]`` turned, scaled, sheared and shifted a little."""
    count = len(images)

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear, scale = draw(math.radians(12)), draw(0.15), 1 + draw(0.12)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack((cos, shear - sin, draw(0.14)), 1), torch.stack((sin, cos, draw(0.14)), 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def accuracy(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of RGB images that the model classifies as labelled."""
    model.eval()
    with torch.no_grad():
        answers = model(torch.from_numpy(DIGITS.apply(images))).argmax(1).numpy()
    return float((answers == labels).mean())


def train(name: str, scans: NDArray[np.uint8], labels: NDArray[np.int64]) -> nn.Module:
    """Return the trained network."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = network(name)
    images = torch.from_numpy(DIGITS.apply(resize(scans_to_rgb(scans), SIZE)))
    targets = torch.from_numpy(labels)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(EPOCHS):
        model.train()
        losses = []
        # A last batch of a few images would disturb the batch norm of maps that are 1x1 here: it is left out.
        for batch in torch.randperm(len(images), generator=generator).split(BATCH)[: len(images) // BATCH]:
            loss = criterion(model(augment(images[batch], generator)), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9:
            print(f"{name} epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    return model


def main() -> int:
    names = sys.argv[1:] or MODELS
    torch.set_num_threads(2)
    (scans, labels), (test_scans, test_labels), indices = split()
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / "digits_test.npz",
        images=test_scans,
        labels=test_labels.astype(np.uint8),
        indices=indices.astype(np.int16),
    )
    seen = np.linspace(0, len(scans) - 1, CALIBRATION_IMAGES).round().astype(np.intp)
    np.savez_compressed(FOLDER / "digits_calibration.npz", images=scans[seen])
    held_out = digits_test(SIZE)
    failed = False
    for name in names:
        start = time.perf_counter()
        model = train(name, scans, labels)
        stored = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        stored = {key: value for key, value in stored.items() if not key.endswith("num_batches_tracked")}
        model.load_state_dict({key: value.float() for key, value in stored.items()}, strict=False)
        share = accuracy(model, held_out.images, held_out.labels)
        record = {
            "model": name,
            "labels": [str(digit) for digit in range(10)],
            "input_size": SIZE,
            "preprocess": DIGITS.to_json(),
            "accuracy": share,
            "description": DESCRIPTION.format(name, share),
            "author": "The shufflectl authors",
            "version": "1",
            "license": "Apache-2.0",
            "data": ATTRIBUTION,
        }
        path = FOLDER / f"{name}_digits.safetensors"
        save_file(stored, path, {"shufflectl": json.dumps(record, sort_keys=True)})
        path.chmod(0o644)  # safetensors makes it private, and the wheel would keep that
        seconds = time.perf_counter() - start
        print(
            f"{name}: {share:.4f} on {TEST_IMAGES} images, {path.stat().st_size} bytes, {seconds:.0f} s",
            flush=True,
        )
        failed |= share < GOAL
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
