"""Small residual networks, of the kinds that users write."""

import torch
import torch.nn.functional as F
from torch import nn

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """An activation for each place, and a sum in place, as in Hugging Face's ResNet."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.act2 = nn.ReLU()

    def forward(self, images):
        hidden = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(images)))))
        hidden += self.shortcut(images)
        return self.act2(hidden)


class SharedActivation(nn.Module):
    """One activation, in place, for both places, as in torchvision's ResNet."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        hidden = self.relu(self.norm1(self.conv1(images)))
        return self.relu(self.norm2(self.conv2(hidden)) + images)


class Inverted(nn.Module):
    """Its sum is the end of it, as in MobileNetV2."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.ReLU6(), nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width)
        )

    def forward(self, images):
        return images + self.layers(images)


class Functional(nn.Module):
    """No module gives what it adds."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images):
        images = F.relu(images)
        return images + self.conv(images)


class Network(nn.Module):
    """A stem, blocks, a classifier."""

    def __init__(self, *blocks, width=4):
        super().__init__()
        self.stem, self.act, self.pool = nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(blocks[-1].width if hasattr(blocks[-1], "width") else width, 3)

    def forward(self, images):
        hidden = self.pool(self.act(self.stem(images)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean((2, 3)))


def resnet():
    """Three blocks; the second widens."""
    torch.manual_seed(0)
    blocks = [Block(4, 4), Block(4, 6), Block(6, 6)]
    blocks[-1].width = 6
    model = Network(*blocks)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def with_blocks(kind, count=2):
    torch.manual_seed(0)
    return Network(*(kind(4) for _ in range(count)))
