"""What the examples on scikit-learn's digits share: the data, the two networks, training with labels, accuracy."""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


def data():
    """Images [N, 64] in 0 to 1 and labels [N], three times: 300 to train, 500 to choose the best epoch, 997 to test."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return list(zip(images.split([300, 500, 997]), labels.split([300, 500, 997]), strict=True))


def mlp(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()


def fit(model, train, val, epochs, lr=0.003):
    """Cross-entropy on the labels; the best epoch on ``val`` is kept."""
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), -1.0
    for _ in range(epochs):
        for batch in torch.randperm(len(train[1])).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
        if accuracy(model, *val) > best:
            best, kept = accuracy(model, *val), copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def arguments(description, **defaults):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=60, help="epochs of stage I, and of stage II")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    return args


def report(test, **models):
    for name, model in models.items():
        print(f"{name:13} {100 * accuracy(model, *test):.1f} % of the test images")
