"""Train the method in your own torch loop, on a generated set: python examples/own_loop.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import recame
from recame.config import as_config
from recame.contracts import ensemble_logits
from recame.data.dataset import load_inspection_set, make_loader
from recame.metrics.evaluation import Evaluation


def main(folder: Path, epochs: int = 3, images: int = 1500) -> Evaluation:
    """Generate images, train, evaluate."""
    spec = recame.SyntheticSpec(num_images=images, num_classes=6, num_products=4, imbalance=50)
    config = as_config({"size": 64, "model.num_experts": 2, "finetune.lr": 5e-4})
    data = load_inspection_set(recame.synth(spec, folder), config.data, seed=0)
    counts = data.label_space.counts
    model = recame.MultiExpertClassifier.from_config(config, len(counts), spec=data.spec)
    model.set_batch_norm_frozen(True)
    loss = recame.Objective.from_config(config, counts, num_features=model.num_features)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.02)

    train = data.view("train")
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        batches = [part.tolist() for part in order.split(32) if len(part) > 1]
        for batch in make_loader(train, data.cache, batches):
            output = model(batch.images / data.spec.scale)  # experts' logits (B, E, C), features
            result = loss(output, batch.target)
            optimiser.zero_grad()
            result.total.backward()
            optimiser.step()
            loss.remember(output, batch.target)
        parts = ", ".join(f"{name} {part:.3f}" for name, part in result.parts.items())
        print(f"epoch {epoch}: {parts}")

    model.eval()
    test, proba = data.view("test"), []
    with torch.inference_mode():
        for batch in make_loader(test, data.cache, 64):
            output = model(batch.images / data.spec.scale)
            proba.append(ensemble_logits(output.logits).softmax(-1))
    names = data.label_space.names
    scores = torch.cat(proba).numpy()
    return recame.evaluate_probabilities(test.targets, scores, names, train_counts=counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/own_loop"))
    print(main(parser.parse_args().out))
