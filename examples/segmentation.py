"""Which digit does each pixel belong to? A small Swin gives feature maps, a head of three products joins them.

    python examples/segmentation.py            # two minutes of a processor core, no network
    python examples/segmentation.py --steps 50

Scenes of 32 x 32 pixels are composed of scikit-learn's handwritten digits; those in the test scenes were never trained on.
The result is the mean intersection over union of the ten digits and the background.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import zoo

BACKGROUND, CLASSES, SIDE = 10, 11, 32


def scenes(images: Tensor, labels: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes (number, 1, SIDE, SIDE) and the class of each of their pixels (number, SIDE, SIDE)."""
    pixels, classes = torch.zeros(number, 1, SIDE, SIDE), torch.full((number, SIDE, SIDE), BACKGROUND)
    for scene in range(number):
        for row in (0, SIDE // 2):
            for column in (0, SIDE // 2):  # one digit in each quarter, of its own size and at its own place
                which = int(torch.randint(len(images), (), generator=generator))
                size = int(torch.randint(12, SIDE // 2 + 1, (), generator=generator))
                down, along = (int(torch.randint(SIDE // 2 - size + 1, (), generator=generator)) for _ in range(2))
                digit = functional.interpolate(images[which][None, None], size=(size, size), mode="bilinear")[0, 0]
                place = (slice(row + down, row + down + size), slice(column + along, column + along + size))
                pixels[scene, 0][place] = digit
                classes[scene][place][digit > 0.4] = labels[which]
    return pixels + 0.1 * torch.randn(pixels.shape, generator=generator), classes


class Segmenter(nn.Module):
    """A backbone's feature maps, each projected, brought to the finest grid and added; then a class for each place."""

    def __init__(self, backbone: nn.Module, channels: dict[str, int], width: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.ModuleDict({name: nn.Conv2d(size, width, 1) for name, size in channels.items()})
        self.answer = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, CLASSES, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = self.backbone(pixel_values).feature_maps
        size = next(iter(maps.values())).map.shape[2:]  # the finest grid comes first
        joined = sum(
            functional.interpolate(self.project[name](each.map), size=size, mode="bilinear") for name, each in maps.items()
        )
        return functional.interpolate(self.answer(joined), size=pixel_values.shape[2:], mode="bilinear")


def mean_iou(scores: Tensor, classes: Tensor) -> float:
    """The mean over classes of intersection / union."""
    found = scores.argmax(1)
    shares = []
    for number in range(CLASSES):
        ours, theirs = found == number, classes == number
        shares.append(float((ours & theirs).sum() / (ours | theirs).sum().clamp(min=1)))
    return sum(shares) / CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=700)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:1500], order[1500:]

    features = ["stage1", "stage2", "stage3"]
    overrides = {
        "init.std": 0.05,
        "embedding": {"image_size": SIDE, "patch_size": 2, "channels": 1, "norm": None},
        "stack.width": 32,
        "stack.block.attention": {"heads": 2, "window": 4},
        "stack.stages": [{"depth": 2, "heads": 2}, {"depth": 2, "heads": 4}, {"depth": 2, "heads": 8}],
        "stack.drop_path": 0.0,
        "head": {"type": "feature-maps", "features": features},
    }
    backbone = zoo.build("swin-tiny", overrides)
    known = backbone.config.stack.features()
    model = Segmenter(backbone, {name: known[name].channels for name in features})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 2), pct_start=0.1)
    unseen = scenes(images[test], labels[test], 128, generator)
    for step in range(steps):
        pixels, classes = scenes(images[train], labels[train], 32, generator)
        loss = functional.cross_entropy(model(pixels), classes)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}  loss {float(loss.detach()):.3f}", flush=True)
    model.eval()
    with torch.inference_mode():
        print(f"mean IoU {mean_iou(model(unseen[0]), unseen[1]) * 100:.1f} % on {len(unseen[0])} scenes of digits kept out")


if __name__ == "__main__":
    main()
