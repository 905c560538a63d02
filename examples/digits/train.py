# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["torch==2.13.0", "numpy", "scikit-learn"]
# ///
"""Train the example: a residual network that reads handwritten digits, saved as `digits_resnet.pt2`.

The data are the 1,797 images of the UCI handwritten digits that scikit-learn carries; a fifth of
them is never trained on. Run it in an environment of its own with `uv run train.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2015, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """ResNet-14 for small grey images: `images` float32 [batch, 1, 32, 32] to `logits` [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        channels = 16
        for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            layers.append(Residual(channels, width, stride))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.classifier(self.features(images).mean(dim=(2, 3)))}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return train images, train labels, test images, test labels; images in 0..1, 32x32."""
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    images = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)
    chosen = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=data.target, random_state=0
    )
    train, test = (torch.tensor(indices) for indices in chosen)
    return images[train], labels[train], images[test], labels[test]


def train(epochs: int) -> tuple[DigitsResNet, float]:
    """Train for `epochs`; return the network in evaluation mode and its test accuracy."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    network = DigitsResNet()
    batch = 64
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    accuracy = 0.0
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(images))
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            shift = torch.randint(-2, 3, (2,)).tolist()
            shifted = torch.roll(images[chosen], shift, dims=(2, 3))
            loss = F.cross_entropy(network(shifted)["logits"], labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            guess = network(test_images)["logits"].argmax(1)
        accuracy = float((guess == test_labels).float().mean())
        print(f"epoch {epoch + 1:2d} of {epochs}: test accuracy {accuracy:.4f}", flush=True)
    return network, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    network, accuracy = train(options.epochs)
    example = torch.zeros(2, 1, 32, 32)
    program = torch.export.export(
        network,
        (example,),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1024)}},
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that trained it
    torch.export.save(program, options.output / "digits_resnet.pt2")
    _, _, images, labels = digits()
    np.savez_compressed(options.output / "test_images.npz", images=images[:32].numpy())
    np.save(options.output / "test_labels.npy", labels[:32].numpy())
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
