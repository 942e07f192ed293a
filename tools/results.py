"""Make the files in results/ that the experiments read: python tools/results.py PART... (full MNIST in data/; hours on two cores).

Every part can be stopped and started again. The sets are those that come with the package, or runs/NAME where there is one.
"""
import json, sys
from pathlib import Path

import torch

from learned_perturbations.cvae import LearnedSet
from learned_perturbations.evaluation import quality
from learned_perturbations.training import Recipe, recipe_pairs, write_results

root = Path(__file__).resolve().parent.parent
weights, results = root/"learned_perturbations"/"weights", root/"results"

def trained(folder):
    "What the training of the run in `folder` left: its recipe, history, radius, versions, device, seconds."
    return json.loads((folder/"results.json").read_text())

def evaluate(name, passes=3, folder=None, pinned=False):
    "Quality of a learned set on MNIST's test digits; pinned: with the inactive latent dimensions held at 0."
    folder = Path(folder or weights/name)
    S, run = LearnedSet.from_pretrained(folder), trained(folder)
    kept = {k: v for k, v in run["recipe"].items() if k != "network_config"}
    recipe = Recipe(**dict(kept, scale=tuple(kept["scale"])))
    val, test = recipe_pairs(recipe, "val"), recipe_pairs(recipe, "test")
    if pinned: S = S.pin(S.active(val, generator=torch.Generator().manual_seed(0)))
    name = f"{name}-pinned" if pinned else name
    keep = Path("runs")/f"{name}-quality"; keep.mkdir(parents=True, exist_ok=True)
    write_results(results/f"{name}.json", training=run, **quality(S, val, test, folder=keep, passes=passes))

parts = {
    "fc": lambda: evaluate("mnist-linf-fc"),
    "fc-fast": lambda: evaluate("mnist-linf-fc-fast", folder="runs/mnist-linf-fc"),
    "conv": lambda: evaluate("mnist-linf-conv"),
    "rts": lambda: evaluate("mnist-rts"),
    "rts-pinned": lambda: evaluate("mnist-rts", 1, pinned=True),
    "rts-5": lambda: evaluate("mnist-rts-5", 1),
    "rts-1": lambda: evaluate("mnist-rts-1", 1),
}

if __name__ == "__main__":
    results.mkdir(exist_ok=True)
    for part in sys.argv[1:] or parts: parts[part]()
