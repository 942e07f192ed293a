"""Trains all that the page on common corruptions shows: python tools/train_corruptions.py STAGE ... --data FILE.npz

Stages, in this order: cache (corrupted images), sets, choose (which set the rest uses), others, classifiers, hardened, collect
(what the runs of sets say of themselves, into results/cifar10-corruptions-runs.json). And two-cores: the classifiers that ask for
no GPU, in the shipped set; fair: those, and a set, that have seen the four corruptions for development only, after two-cores; variants:
of latent noise, after both; detail: one of these once more, in a set without fine content of its own. They need the cache only.
Runs are made several at a time, each in a process of its own with its log beside it; one that is finished is
found again, one that was interrupted goes on. FILE.npz holds x, y, x_test, y_test (uint8, N × 32 × 32 × 3).
"""
import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from learned_perturbations.corruptions import extra, paper
from learned_perturbations.cvae import LearnedSet
from learned_perturbations.pairs import sources
from learned_perturbations.robust_training import get_harden_recipe, harden
from learned_perturbations.runs import read_json, write_json
from learned_perturbations.sets import PerturbationSet
from learned_perturbations.training import get_recipe, train

betas = (1, 2, 4)
schedule = lambda beta: f"0:0 0.25:{beta} 1:{beta}"

def set_runs(o):
    "Sets by the weight of the KL: one of them is chosen."
    return [("train", "cifar10-corruptions", dict(name=f"cifar10-corruptions-beta{b}", beta=schedule(b), **o)) for b in betas]

def other_sets(o, beta):
    "A set of another network and seed, of corruptions that the benchmark leaves over, of other pairings; three seeds of the recipe that asks for no GPU."
    run = lambda name, **more: ("train", "cifar10-corruptions", {**o, "name": f"cifar10-corruptions-{name}", "beta": schedule(beta), **more})
    of = lambda share: dict(epochs=share * get_recipe("cifar10-corruptions", **o).epochs)
    return [run("second", seed=1, widths=(64, 128), latents=160, **of(.6)), run("extra", names=extra, **of(.25)),
            run("two", pairing="two", **of(.25)), run("both", pairing="both", **of(.25)),
            *(("train", "cifar10-corruptions-cpu", {**o, "name": "cifar10-corruptions-cpu" + (f"-{s}" if s else ""), "seed": s}) for s in range(3))]

def classifier_runs(o, seeds=3):
    "Classifiers of clean and of corrupted images."
    return [("harden", f"cifar10-{m}", {**o, "name": f"cifar10-{m}" + (f"-{s}" if s else ""), "seed": s})
            for m in ("clean", "pairs") for s in range(seeds)]

def hardened_runs(o, chosen, seeds=3):
    "Classifiers of points of the set: random ones, worst ones in two balls, noise, noise on latent point and pixels."
    o = dict(o, S=chosen["folder"])
    run = lambda m, name="", **more: ("harden", f"cifar10-{m}", {**o, "name": f"cifar10-{m}{name}", **more})
    return [*(run("adversarial", f"-{s}" if s else "", seed=s, radius=chosen["half"]) for s in range(seeds)),
            run("adversarial", "-wide", radius=chosen["most"]), run("augment"), run("gaussian"), run("both")]

cpu_runs = (("clean", "clean-erase"), ("pairs", "augment", "adversarial", "gaussian"), ("both",))  # each begins with weights of the group before

def fair_runs(o):
    "What the benchmark's authors allow: a set and classifiers that have seen the four corruptions for development only, on two cores."
    o, S = dict(o, names=extra), "cifar10-corruptions-extra-cpu"
    hardened = [("harden", f"cifar10-{m}-cpu", {**o, "name": f"cifar10-{m}-extra-cpu", **more}) for m, more in (("pairs", {}), ("gaussian", dict(S=S)))]
    return [("train", "cifar10-corruptions-cpu", {**o, "name": S})], hardened

def variant_runs(o):
    "Latent noise without the demand for equal answers, in the set of the twelve and in that of the four, and of more noise; random points of a small ball."
    run = lambda name, method="gaussian", **more: ("harden", f"cifar10-{method}-cpu", {**o, "name": f"cifar10-{method}-{name}-cpu", **more})
    return [run("free", weight=0.), run("free-extra", weight=0., names=extra, S="cifar10-corruptions-extra-cpu"), run("sigma2", sigma=2.), run("sigma4", sigma=4.),
            run("small", "augment", radius=2.)]

def fine(images, cycles=8):
    "What images hold above so many cycles in their height or width, in any direction."
    h, w = images.shape[-2:]
    above = (torch.fft.fftfreq(h, 1 / h)[:, None]**2 + torch.fft.rfftfreq(w, 1 / w)**2).sqrt() > cycles
    return torch.fft.irfft2(torch.fft.rfft2(images) * above.to(images.device), s=(h, w))

class OwnDetail(PerturbationSet):
    "A set whose images have no fine content but that of x, stronger or weaker: the rest of it is taken away."
    def __init__(self, S):
        super().__init__()
        self.S, self.latent_dim, self.radius = S, S.latent_dim, S.radius
    def condition(self, x): return fine(x), self.S.condition(x)
    def perturb(self, cond, u):
        detail, images = cond[0], self.S.perturb(cond[1], u)
        theirs, over = fine(images), dict(dim=(1, 2, 3), keepdim=True)
        gain = (theirs * detail).sum(**over) / detail.pow(2).sum(**over).clamp_min(1e-12)
        return (images - theirs + gain * detail).clamp(0, 1)

def detail_run(o, folder):
    "Latent noise in the set of the four without fine content of its own, else as free-extra of the variants."
    S = LearnedSet.from_pretrained(folder/"cifar10-corruptions-extra-cpu")
    harden("cifar10-gaussian-cpu", folder, OwnDetail(S), name="cifar10-gaussian-detail-cpu", weight=0., names=extra, **o)

def choose(names, folder, data):
    "Takes the set with the smallest radius whose error at the encoding is at most 3.5 % of doing nothing, else the most exact one."
    rows = []
    for name in names:
        v, radius = (read_json(folder/name/"results.json")[k] for k in ("validation", "radius"))
        rows.append(dict(name=name, folder=str(folder/name), share=v["encoding"] / v["nothing"], radius=radius["radius"], active=radius["active"]))
    good = [r for r in rows if r["share"] <= .035]
    best = min(good, key=lambda r: r["radius"]) if good else min(rows, key=lambda r: r["share"])
    recipe = read_json(folder/best["name"]/"results.json")["recipe"]
    S, val = LearnedSet.from_pretrained(best["folder"]), sources("corruptions", "val", **{**recipe["source_options"], **data})
    half, most = S.encoding_norms(val).quantile(torch.tensor([.5, .9])).tolist()
    write_json(folder/"chosen.json", dict(best, half=half, most=most, beta=float(recipe["beta"].split(":")[-1]), rows=rows))
    print(json.dumps(read_json(folder/"chosen.json"), indent=1), flush=True)

def at_once(runs, folder, jobs):
    "Makes the runs, so many at a time."
    (folder/"logs").mkdir(parents=True, exist_ok=True)
    def one(run):
        start, log = time.time(), folder/"logs"/f"{run[2]['name']}.log"
        with open(log, "w") as f:
            rc = subprocess.run([sys.executable, __file__, "one", "--run", json.dumps(run), "--folder", str(folder)], stdout=f, stderr=f).returncode
        print(f"{run[2]['name']}: {time.time() - start:.0f} s" + (f", FAILED: {log.read_text()[-800:]}" if rc else ""), flush=True)
    with ThreadPoolExecutor(jobs) as pool: list(pool.map(one, runs))

def collect(folder, out=Path("results/cifar10-corruptions-runs.json")):
    "Puts what each finished run of a set says of itself into the results file, beside those already there."
    kept = read_json(out) if out.exists() else {}
    for name in sorted(f.parent.name for f in folder.glob("cifar10-corruptions*/results.json")):
        r = read_json(folder/name/"results.json")
        r["recipe"]["source_options"] = {k: v for k, v in r["recipe"]["source_options"].items() if k not in ("data", "cache")}  # where files lay
        kept[name] = {k: r[k] for k in ("recipe", "radius", "validation", "seconds", "versions", "device")}
    write_json(out, dict(sorted(kept.items())))

if __name__ == "__main__":
    p = ArgumentParser(description=__doc__)
    p.add_argument("stages", nargs="+"); p.add_argument("--data", default=None); p.add_argument("--folder", type=Path, default=Path("runs"))
    p.add_argument("--cache", default="data/cifar10-corruptions"); p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--set", type=json.loads, default={}, help="fields of the sets' recipe, JSON")
    p.add_argument("--net", type=json.loads, default={}, help="fields of the classifiers' recipe, JSON")
    p.add_argument("--hard", type=json.loads, default={}, help="fields of the hardened classifiers' recipe, JSON")
    p.add_argument("--betas", type=json.loads, default=list(betas)); p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--run", type=json.loads)
    a = p.parse_args()
    betas = a.betas
    data = dict(cache=a.cache, **(dict(data=a.data) if a.data else {}))
    chosen = lambda: read_json(a.folder/"chosen.json")
    for stage in a.stages:
        start = time.time()
        if stage == "one":
            if a.run[0] == "train": train(a.run[1], a.folder, **a.run[2])
            else: harden(get_harden_recipe(a.run[1], **a.run[2]), a.folder)  # S: a folder, as in the recipe
        elif stage == "cache-one": sources("corruptions", a.run[0], names=[a.run[1]], **data)
        elif stage == "cache":
            jobs = [(split, name) for split in ("train", "val") for name in paper + extra]
            ask = lambda job: subprocess.run([sys.executable, __file__, "cache-one", "--run", json.dumps(job), "--cache", a.cache, *(["--data", a.data] if a.data else [])], check=True, stderr=subprocess.DEVNULL)
            with ThreadPoolExecutor(a.jobs) as pool: list(pool.map(ask, jobs))
        elif stage == "sets": at_once(set_runs({**data, **a.set}), a.folder, a.jobs)
        elif stage == "choose": choose([r[2]["name"] for r in set_runs({})], a.folder, data)
        elif stage == "others": at_once(other_sets({**data, **a.set}, chosen()["beta"]), a.folder, a.jobs)
        elif stage == "classifiers": at_once(classifier_runs({**data, **a.net}, a.seeds), a.folder, a.jobs)
        elif stage == "hardened": at_once(hardened_runs({**data, **a.hard}, chosen(), a.seeds), a.folder, a.jobs)
        elif stage == "two-cores":
            for group in cpu_runs: at_once([("harden", f"cifar10-{m}-cpu", {**data, "name": f"cifar10-{m}-cpu"}) for m in group], a.folder, a.jobs)
        elif stage == "fair":
            for runs in fair_runs(data): at_once(runs, a.folder, a.jobs)
        elif stage == "variants": at_once(variant_runs(data), a.folder, a.jobs)
        elif stage == "detail": detail_run(data, a.folder)
        elif stage == "collect": collect(a.folder)
        else: sys.exit(f"no stage {stage}")
        if stage != "one": print(f"{stage}: {time.time() - start:.0f} s", flush=True)
