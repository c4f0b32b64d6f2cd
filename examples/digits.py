"""What the examples on scikit-learn's digits share: the data, the two networks, training with labels, the report."""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


def data():
    """Images [N, 64] in 0 to 1 and labels [N], three times: 600 to train, 400 to choose the best epoch, 797 to test."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return list(zip(images.split([600, 400, 797]), labels.split([600, 400, 797]), strict=True))


class MLP(nn.Module):
    """64 pixels, ``width`` hidden neurons, 10 classes: the teacher has 256 of them, the student 8."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)


@torch.no_grad()
def accuracy(model, images, labels):
    return (model(images).argmax(1) == labels).float().mean().item()


def fit(model, train, val, epochs, lr=0.01):
    """Cross-entropy on the labels; the best epoch on ``val`` is kept. Trains scratch, the teacher, and stage II."""
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), -1.0
    for _ in range(epochs):
        for batch in torch.randperm(len(train[1])).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
        if (now := accuracy(model, *val)) > best:
            best, kept = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def epochs(description):
    """What ``--epochs`` says, after fixing the seed and one thread."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of stage I, and of stage II (default: 30)")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return parser.parse_args().epochs


def report(test, **models):
    print(", ".join(f"{name} {100 * accuracy(model, *test):.1f} %" for name, model in models.items()))
