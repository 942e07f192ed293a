"""Measure a set of common corruptions and classifiers on CIFAR-10, and write results/*.json.

python tools/corruptions.py --set runs/cifar10-corruptions --classifiers runs/cifar10-clean runs/cifar10-corruptions-trained ... --data cifar10.npz

--data is an .npz file with x, y, x_test, y_test, of which the source "corruptions" holds out a tenth of x; or an .npz or .pt file with x_train, y_train, x_test,
y_test, of which the last tenth of x_train was held out; uint8 images (N, 32, 32, 3), with x_train also (N, 3, 32, 32). PART is one or more of prepare, quality, points,
promise, benchmark, small, work, certify, joint, ceiling, gap (default: all, in this order), or short, which is benchmark of the corruptions alone, or balls, which certifies every classifier in the balls that hold --shares of the encodings; with --jobs N they run as N processes side by side. What is already in the results files
and made from the same weights, images and settings is left as it is, so it can be stopped and started again.
"""
import argparse
import itertools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from learned_perturbations.benchmark import CorruptedImages, benchmark, encoding_norms, scores
from learned_perturbations.certification import certified_accuracy, certify, noise_for_radius, predict
from learned_perturbations.classifiers import load_classifier
from learned_perturbations.corruptions import names, paper
from learned_perturbations.criteria import farthest, nearest, squared_error
from learned_perturbations.cvae import LearnedSet
from learned_perturbations.draws import integers
from learned_perturbations.evaluation import conformal_radius, joint_distance, ray_norm, smallest_norm
from learned_perturbations.fingerprints import fingerprint
from learned_perturbations.labelled_images import load_images
from learned_perturbations.runs import measured, proportion, read_json, summary
from learned_perturbations.sets import norms
from learned_perturbations.suite import attack_suite, start_names

seed = 1  # of everything random here: other fogs and frosts than the set and the classifiers were trained with
parts = ("prepare", "quality", "points", "promise", "benchmark", "small", "work", "short", "certify", "balls", "joint", "ceiling", "gap")

def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("parts", nargs="*", metavar="PART")
    p.add_argument("--set", required=True, help="folder of the learned set")
    p.add_argument("--name", help="of the set in the results files (default: that of its folder)")
    p.add_argument("--second", help="folder of a second set, of another seed or network")
    p.add_argument("--classifiers", nargs="*", default=[], help="their folders")
    p.add_argument("--recogniser", help="folder of the classifier that has to recognise the set's points (default: the first trained on corruptions)")
    p.add_argument("--smooth", help="folder of the classifier that is smoothed (default: the first trained with latent noise, 'gaussian')")
    p.add_argument("--smooth-both", dest="both", help="folder of the classifier smoothed in latent and pixels together (default: the first with 'both' in its name, trained with both noises; else as --smooth)")
    p.add_argument("--data", required=True)
    p.add_argument("--out", default="results")
    p.add_argument("--work", default="runs/corrupted", help="folder for the corrupted images")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--jobs", type=int, default=0, help="processes side by side; 0: this one does all")
    p.add_argument("--images", type=int, default=10_000, help="test images")
    p.add_argument("--searched", type=int, default=500, help="images for searches and certificates")
    p.add_argument("--attacked", type=int, default=200)
    p.add_argument("--shares", nargs="*", type=float, default=[.1, .5, .9], help="of the encodings that the balls hold in which classifiers are attacked")
    p.add_argument("--most", type=int, default=32, help="starts of the suite")
    p.add_argument("--longest", type=int, default=128, help="starts of the suite in the part work")
    p.add_argument("--calibration", type=int, default=5000, help="images, held out from training")
    p.add_argument("--draws", type=int, default=10_000, help="of a fixed certificate; an adaptive one: ten times as many at most")
    p.add_argument("--joint", nargs="*", default=["0.5:0.25", "0.9:0.25", "0.9:0.5"], help="SHARE:SIGMA_X: noise for the radius that holds this share of encodings, and on pixels")
    p.add_argument("--predicted", type=int, default=0, help="images for the smoothed answer on every corruption; 0: as --searched")
    p.add_argument("--sigmas", nargs="*", type=float, default=[.5, 1., 2.], help="noise in u of the certificates")
    p.add_argument("--severities", nargs="*", type=int, default=[5], help="of the part short")
    p.add_argument("--precision", default="auto", help="of the certified classifier")
    p.add_argument("--chunk", type=int, default=2000, help="images at a time")
    return p.parse_args()

def read_data(path, S):
    "Returns images (N, 3, H, W), uint8, with labels, from a file: those the set was trained on, those held out, and test images."
    d = torch.load(path, weights_only=True) if str(path).endswith(".pt") else np.load(path)
    def part(x, y):
        x, y = torch.as_tensor(x), torch.as_tensor(y).long()
        return (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous()), y
    if "x" in d:  # as source "corruptions" splits it
        options = S.results.get("recipe", {}).get("source_options", {})
        levels = lambda x, y: ((255 * x).round().byte() if x.is_floating_point() else x, y)
        train, held_out = (levels(*load_images(path, s, held_out=options.get("held_out", .1), channels=3)) for s in ("train", "val"))
    else:
        x, y = part(d["x_train"], d["y_train"])
        n = len(x) // 10
        train, held_out = (x[:-n], y[:-n]), (x[-n:], y[-n:])
    return train, held_out, part(d["x_test"], d["y_test"])

class Setup:
    "What the parts share."
    def __init__(self, a):
        self.a, self.out, self.device = a, Path(a.out), torch.device(a.device)
        self.name, self.S = a.name or Path(a.set).name, LearnedSet.from_pretrained(Path(a.set)).to(a.device)
        self.train, self.held_out, (x, y) = read_data(a.data, self.S)
        options = self.S.results.get("recipe", {}).get("source_options", {})
        seen = options.get("names", paper)
        self.seen = tuple(seen.split(",") if isinstance(seen, str) else seen)  # the corruptions the set was trained on
        n = min(a.images, len(x))
        self.test = CorruptedImages(x[:n], y[:n], seed, Path(a.work) / f"test-{n}", a.device)
        self.x, self.y = x[:n], y[:n]
    def made_of(self, **more):
        "What a results file is made from."
        return dict(set=fingerprint(self.S), radius=self.S.radius, images=self.test.fingerprint(), n=len(self.test), seed=seed, **more)
    def classifier(self, folder): return load_classifier(Path(folder)).to(self.device, memory_format=torch.channels_last)
    def first(self, given, *words):
        "Returns the folder that was given, or the first one with one of these words in its name."
        found = [f for w in words for f in self.a.classifiers if w in Path(f).name]
        return given or (found or self.a.classifiers)[0]
    def recogniser(self): return self.first(self.a.recogniser, "corruptions", "pairs")
    def floats(self, x): return x.to(self.device).float() / 255
    def chunks(self, *batches): return zip(*(self.floats(b).split(self.a.chunk) for b in batches))

def finite(v): return v if math.isfinite(v) else None
def quantiles(v): return {f"{q:g}": v.float().quantile(q).item() for q in (.5, .9, .99, .999, 1.)}
def per_entry(v, x): return summary(v / x[0].numel())
def joined(rows): return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}

def gradients(x):
    "Returns the mean length of the gradient of each image, over pixels and channels, (B,)."
    dy, dx = (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]), (x[:, :, :-1, 1:] - x[:, :, :-1, :-1])
    return (dx**2 + dy**2).sqrt().flatten(1).mean(1)

# ---- a: quality ---------------------------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def encoded(c, x, x_tilde, net=None):
    "Returns for each pair the distance of doing nothing and of the encoding, its norm, KL, sharpness, and whether it is recognised."
    rows = []
    for a, b in c.chunks(x, x_tilde):
        q, cond = c.S.posterior(a, b), c.S.condition(a)
        shown = c.S.perturb(cond, c.S.project(q.m))
        row = dict(nothing=squared_error(a, b), encoding=squared_error(shown, b), norm=norms(q.m), kl=q.kl.sum(1), sharp=gradients(shown), sharp_real=gradients(b))
        if net is not None: row |= dict(says=net(shown).argmax(1), says_real=net(b).argmax(1))
        rows.append({k: v.cpu() for k, v in row.items()})
    return joined(rows)

def quality(c):
    "How near the set comes to real corrupted test images, and what else it holds."
    S, a, m = c.S, c.a, min(c.a.searched, len(c.test))
    recogniser = c.recogniser()
    net = c.classifier(recogniser)
    net.eval()
    def compute():
        rows, everything = {}, {}
        for name in names:
            r = everything[name] = encoded(c, c.x, c.test.corrupted(name, 5), net)
            nothing, error = r["nothing"].mean().item(), r["encoding"].mean().item()
            rows[name] = dict(seen=name in c.seen, nothing=per_entry(r["nothing"], c.x), encoding=per_entry(r["encoding"], c.x), encoding_share=error / nothing,
                              inside=proportion(r["norm"] <= S.radius), norm=quantiles(r["norm"]), kl=summary(r["kl"]),
                              sharpness=(r["sharp"].mean() / r["sharp_real"].mean()).item(),
                              recognised=dict(real=proportion(r["says_real"] == c.y), encoding=proportion(r["says"] == c.y)))
        near = dict(zip(names, nearest_of(c, names, m, net)))
        for name in names:
            some = per_entry(everything[name]["nothing"][:m], c.x)
            rows[name] |= dict(nearest=near[name]["error"], nearest_nothing=some, nearest_share=near[name]["error"]["mean"] / some["mean"], nearest_sharpness=near[name]["sharpness"])
            rows[name]["recognised"]["nearest"] = near[name]["recognised"]
        of = lambda key, group: sum(rows[n][key]["mean"] for n in group) / len(group)
        means = {g: dict(nothing=of("nothing", ns), encoding=of("encoding", ns), nearest=of("nearest", ns), encoding_share=of("encoding", ns) / of("nothing", ns),
                         nearest_share=of("nearest", ns) / of("nearest_nothing", ns), inside=of("inside", ns)) for g, ns in (("seen", c.seen), ("unseen", [n for n in names if n not in c.seen]))}
        norm = torch.cat([everything[n]["norm"] for n in c.seen])
        return dict(training=S.results, set_radius=S.radius, latent_dim=S.latent_dim, parameters=sum(p.numel() for p in S.parameters()), corruptions=rows, means=means,
                    severities=[severity_row(c, s) for s in range(1, 6)], seen=c.seen, norm=quantiles(norm), searched=m,
                    recogniser=dict(name=Path(recogniser).name, clean=proportion(scores(net, c.x).argmax(1).cpu() == c.y)))
    return measured(c.out / f"{c.name}.json", c.made_of(recogniser=fingerprint(net), searched=m), compute)

def nearest_of(c, names, m, net):
    "Yields, for each corruption, the mean error of the nearest images found, their sharpness, and the share that is recognised."
    x, x_tilde = c.x[:m].repeat(len(names), 1, 1, 1), torch.cat([c.test.corrupted(n, 5)[:m] for n in names])
    ids, rows = torch.arange(len(x), device=c.device), []
    for i, (a, b) in zip(ids.split(c.a.chunk), c.chunks(x, x_tilde)):
        found = nearest(c.S, a, b, starts=8, ids=i, seed=seed)
        with torch.no_grad():
            shown = c.S.perturb(c.S.condition(a), found.u)
            rows.append(dict(error=found.error.cpu(), sharp=gradients(shown).cpu(), real=gradients(b).cpu(), right=(net(shown).argmax(1).cpu())))
    r = joined(rows)
    for k in range(len(names)):
        mine = slice(k * m, (k + 1) * m)
        yield dict(error=per_entry(r["error"][mine], x), sharpness=(r["sharp"][mine].mean() / r["real"][mine].mean()).item(), recognised=proportion(r["right"][mine] == c.y[:m]))

def severity_row(c, severity):
    "The mean over the corruptions of the set at one severity: intervals over images, whose corruptions are not independent."
    r = joined([encoded(c, c.x, c.test.corrupted(n, severity)) for n in c.seen])
    of_images = lambda v: v.double().unflatten(0, (len(c.seen), -1)).mean(0)
    nothing, error = (per_entry(of_images(r[k]), c.x) for k in ("nothing", "encoding"))
    return dict(severity=severity, nothing=nothing, encoding=error, encoding_share=error["mean"] / nothing["mean"], inside=proportion(of_images(r["norm"] <= c.S.radius)), norm=quantiles(r["norm"]))

def points(c):
    "How far random and farthest points of balls are from x̃ and from x, and how many of them are recognised: one row for each radius. x̃: one random corruption an image."
    m, folder = min(c.a.searched, len(c.test)), c.recogniser()
    net = c.classifier(folder).eval()
    def compute():
        norm = torch.cat([*encoding_norms(c.S, c.test, c.seen).values()])
        x, y, x_tilde = c.x[:m], c.y[:m], one_each(c.test, torch.arange(m), c.seen)
        def row(r): return dict(from_real=per_entry(r["from_real"], x), from_x=per_entry(r["from_x"], x), sharpness=(r["sharp"].mean() / r["real"].mean()).item(), recognised=proportion(r["says"] == y))
        def found(radius):
            rows = dict(random=[], farthest=[])
            for i, (a, b) in zip(torch.arange(m, device=c.device).split(c.a.chunk), c.chunks(x, x_tilde)):
                with torch.no_grad(): cond = c.S.condition(a)
                at = dict(random=c.S.sample(i, how="truncated", radius=radius, seed=seed, stream=("random",)), farthest=farthest(c.S, a, b, radius, starts=8, ids=i, seed=seed).u)
                for k, u in at.items():
                    with torch.no_grad():
                        shown = c.S.perturb(cond, u.to(a))
                        rows[k].append(dict(from_real=squared_error(shown, b).cpu(), from_x=squared_error(shown, a).cpu(), sharp=gradients(shown).cpu(), real=gradients(b).cpu(), says=net(shown).argmax(1).cpu()))
            return dict(radius=radius, holds=(norm <= radius).double().mean().item(), **{k: row(joined(v)) for k, v in rows.items()})
        shares = norm.quantile(torch.tensor([.1, .25, .5, .75, .9])).tolist()
        known = lambda some, label: proportion(scores(net, some).argmax(1).cpu() == label)
        return dict(recogniser=dict(name=Path(folder).name, clean=known(c.x, c.y), real=known(x_tilde, y)), training=net.results, rows=[found(r) for r in (shares[0] / 2, *shares, c.S.radius)])
    return measured(c.out / f"{c.name}-points.json", c.made_of(recogniser=fingerprint(net), searched=m), compute)

# ---- b: the promise -----------------------------------------------------------------------------------------------------------------------------------

def one_each(images, idx, group):
    "Returns one corrupted version of each image, of a corruption drawn for it."
    which, out = integers(idx, len(group), seed, "which corruption"), torch.empty_like(images.x[idx])
    for k, name in enumerate(group):
        mine = which == k
        out[mine] = images.corrupted(name, 5)[idx[mine]]
    return out

def promise(c, miss=.1):
    "The conformal promise: a real corrupted image lies within τ of the set, with a stated probability."
    a, n = c.a, min(c.a.calibration, len(c.held_out[0]))
    held_out = CorruptedImages(*(t[:n] for t in c.held_out), seed + 1, Path(a.work) / f"held-out-{n}", a.device)
    k = min(max(n // 5, 100), len(c.train[0]))
    separate = CorruptedImages(*(t[:k] for t in c.train), seed + 2, Path(a.work) / f"separate-{k}", a.device)
    together = f"all {len(c.seen)}"
    def errors(images, x_tilde): return encoded(c, images.x, x_tilde)
    def score(images, x_tilde, tau, steps): return torch.cat([ray_norm(c.S, p, q, tau, steps=steps).cpu() for p, q in c.chunks(images.x, x_tilde)])
    def distance(images, x_tilde): return torch.cat([squared_error(p, q).cpu() for p, q in c.chunks(images.x, x_tilde)])
    def all_of(f, images, group=c.seen): return torch.stack([f(images, images.corrupted(name, 5)) for name in group])
    every = lambda images: torch.arange(len(images))
    def taus():
        "The 95 % quantile of the error at the encoding, at most a quarter of the median of doing nothing; without that limit for the worst of all 12."
        one = errors(separate, one_each(separate, every(separate), c.seen))
        worst = all_of(lambda i, v: errors(i, v)["encoding"], separate).amax(0).quantile(1 - miss / 2).item()
        most = one["nothing"].median().item() / 4
        at = {"one corruption": min(one["encoding"].quantile(1 - miss / 2).item(), most), together: min(worst, most), f"{together}, wider": worst}
        return {k: float(f"{v:.6g}") for k, v in at.items()}, most
    def compute():
        (tau, most), rows = taus(), []
        calibration, fresh = one_each(held_out, every(held_out), c.seen), one_each(c.test, every(c.test), c.seen)
        for steps, (what, t) in ((s, w) for s in (0, 10) for w in tau.items() if w[0] != f"{together}, wider" or w[1] > tau[together]):
            at, single = (lambda images, v: score(images, v, t, steps)), what == "one corruption"
            s = at(held_out, calibration) if single else all_of(at, held_out).amax(0)
            radius = conformal_radius(s, miss)
            def held(v): return proportion(v <= radius) if math.isfinite(radius) else None
            each = dict(zip(group := names if single else c.seen, all_of(at, c.test, group)))
            far = dict(zip(group, all_of(distance, c.test, group)))
            mine = (at(c.test, fresh), distance(c.test, fresh)) if single else (torch.stack([*each.values()]).amax(0), torch.stack([*far.values()]).amax(0))
            rows.append(dict(what=what, steps=steps, promised=1 - miss, tau=t, tau_most=most, calibration=n, chose_tau=k, radius=finite(radius), reached=proportion(s.isfinite()), held=held(mine[0]), within=proportion(mine[1] <= t),
                             corruptions={name: dict(seen=name in c.seen, held=held(v), reached=proportion(v.isfinite()), within=proportion(far[name] <= t)) for name, v in each.items()}))
        m = min(500, len(c.test))
        t, v = tau["one corruption"], one_each(c.test, torch.arange(m), c.seen)
        found = torch.cat([smallest_norm(c.S, p, q, t).cpu() for p, q in c.chunks(c.x[:m], v)])
        searched = dict(n=m, tau=t)
        for steps in (0, 10):
            ray = torch.cat([ray_norm(c.S, p, q, t, steps=steps).cpu() for p, q in c.chunks(c.x[:m], v)])
            both = found.isfinite() & ray.isfinite() & (found > 0)
            searched[f"steps {steps}"] = dict(ray=summary(ray[both]), searched=summary(found[both]), ratio=quantiles(ray[both] / found[both]), radius_ray=finite(conformal_radius(ray, miss)), radius_searched=finite(conformal_radius(found, miss)),
                                              reached_ray=proportion(ray.isfinite()), reached_searched=proportion(found.isfinite()))
        return dict(set_radius=c.S.radius, rows=rows, searched=searched)
    return measured(c.out / f"{c.name}-promise.json", c.made_of(calibration=n, held_out=held_out.fingerprint(), miss=miss), compute)

# ---- c: classifiers -----------------------------------------------------------------------------------------------------------------------------------

def balls(c, S):
    "Returns what is held (a share of the encodings, or None) and the radius of the balls in which classifiers are attacked, by name: those that hold a share of the encodings, and a half, a quarter and an eighth of the smallest one."
    seen = torch.cat([*encoding_norms(S, c.test, c.seen).values()])
    whole = {f"{100 * s:.0f} %": (s, seen.quantile(s).item()) for s in sorted(c.a.shares)}
    first, (_, least) = next(iter(whole.items()))
    return {f"{first} / {n}": (None, least / n) for n in (8, 4, 2)} | whole

def one_benchmark(c, folder):
    "The benchmark of one classifier: corruptions, the worst points of the set, and of a second set."
    net, a, name = c.classifier(folder), c.a, Path(folder).name
    second = LearnedSet.from_pretrained(Path(a.second)).to(c.device) if a.second else None
    def attacked(S, check):
        asked = balls(c, S)
        rows = benchmark(net, "cifar10", S, c.test, name, radii=[radius for _, radius in asked.values()], n_attacked=a.attacked, most=a.most, seed=seed, precision="float32", check=check).latent
        return [dict(r, holds=k, share=share) for (k, (share, _)), r in zip(asked.items(), rows)]
    def compute():
        b = benchmark(net, "cifar10", "corruptions", c.test, name, seed=seed)._replace(latent=attacked(c.S, True))
        return dict(training=net.results, parameters=sum(p.numel() for p in net.parameters()), **b._asdict(), second=attacked(second, False) if second is not None else [])
    made = c.made_of(classifier=fingerprint(net), second=fingerprint(second), attacked=a.attacked, most=a.most, shares=a.shares)
    return measured(c.out / f"{name}-benchmark.json", made, compute)

# ---- d: certificates ----------------------------------------------------------------------------------------------------------------------------------

def noise(c, share, n=10_000):
    "Returns the radius that holds this share of the encodings of the first 1,000 images, and the noise that certifies it at most with n draws."
    if not hasattr(c, "norms"):
        c.norms = torch.cat([*encoding_norms(c.S, c.test, c.seen, n=1000).values()])
    radius = c.norms.quantile(share).item()
    return radius, noise_for_radius(radius, n)

class Smoothed:
    "One classifier's certificates for the first m test images; interrupted ones go on."
    def __init__(self, c, folder, m):
        self.c, self.name, self.net, self.m = c, Path(folder).name, c.classifier(folder), m
        self.x, self.y, self.how = c.floats(c.x[:m]), c.y[:m], dict(seed=seed, precision=c.a.precision)
    def certify(self, sigma, *what, **more):
        path = Path(self.c.a.work) / "certificates" / ("-".join(map(str, (self.c.name, self.name, self.m, sigma, *what))) + ".jsonl")
        e = certify(self.net, self.c.S, self.x, sigma, path=path, **self.how, **more)
        return e, e.prediction.cpu() == self.y
    def level(self, sigma, radii):
        "Fixed certificates at one noise level as a curve, adaptive ones at each radius beside them."
        n = self.c.a.draws
        fixed, right = self.certify(sigma, n, n=n)
        at = torch.linspace(0, 4 * sigma, 41)
        def asked(r):
            e, ours = self.certify(sigma, "adaptive", r, n=10 * n, radius=r, adaptive=True)
            return dict(radius=r, accuracy=proportion(ours & (e.radius.cpu() >= r)), fixed=proportion(right & (fixed.radius.cpu() >= r)), draws=e.draws.double().mean().item(), most_draws=int(e.draws.max()))
        return dict(sigma=sigma, abstained=proportion(fixed.prediction.cpu() < 0), draws=n + 100,
                    curve=dict(radii=at.tolist(), accuracy=certified_accuracy(fixed, self.y.to(self.x.device), at).tolist()), adaptive=[asked(r) for r in radii])

def certificates(c):
    "Smoothing in the set: certified accuracy against radius, adaptive beside fixed, and the smoothed answer on corrupted images."
    a, m = c.a, min(c.a.searched, len(c.test))
    folder = c.first(a.smooth, "gaussian", "augment")
    s, predicted, votes = Smoothed(c, folder, m), min(a.predicted or m, m), min(100, a.draws)
    def smoothed(sigma, name):
        v, y = c.floats((c.x if name == "clean" else c.test.corrupted(name, 5))[:predicted]), c.y[:predicted]
        p = predict(s.net, c.S, v, sigma, n=votes, **s.how).cpu()
        return dict(seen=name in c.seen, accuracy=proportion(p == y), abstained=proportion(p < 0), plain=proportion(scores(s.net, (255 * v).round().byte()).argmax(1).cpu() == y))
    def level(sigma): return dict(s.level(sigma, (sigma, 2 * sigma)), predict={n: smoothed(sigma, n) for n in ("clean", *names)})
    return measured(c.out / f"{c.name}-certified.json", c.made_of(classifier=fingerprint(s.net), name=s.name, certified=m, draws=a.draws, sigmas=a.sigmas, predicted=predicted, votes=votes, precision=a.precision),
                    lambda: dict(training=s.net.results, levels=[level(sigma) for sigma in a.sigmas]))

def certified_balls(c):
    "For every classifier, certified accuracy in the balls that hold a share of the encodings, with the noise that reaches their radii when all draws agree."
    a, m = c.a, min(c.a.searched, len(c.test))
    for folder in a.classifiers:
        s = Smoothed(c, folder, m)
        def level(share):
            radius, sigma = noise(c, share, a.draws)
            return dict(share=share, radius=radius, **s.level(sigma, (radius / 2, radius)))
        measured(c.out / f"{s.name}-balls.json", c.made_of(classifier=fingerprint(s.net), name=s.name, certified=m, draws=a.draws, shares=a.shares, precision=a.precision),
                 lambda: dict(training=s.net.results, levels=[level(share) for share in a.shares]))

def joint(c):
    "Latent and pixels together: how many real corrupted images lie inside the certified region of their own clean image."
    a, m = c.a, min(c.a.searched, len(c.test))
    folder = c.first(a.both, "both", "gaussian", "augment") if a.both or any("both" in Path(f).name for f in a.classifiers) else c.first(a.smooth, "gaussian", "augment")
    net, y = c.classifier(folder), c.y[:m]
    x, versions = c.floats(c.x[:m]), {(n, s): c.test.corrupted(n, s)[:m] for n in names for s in range(1, 6)}
    right_at = {k: proportion(scores(net, v).argmax(1).cpu() == y) for k, v in versions.items()}
    def setting(share, sigma_x):
        radius, sigma = noise(c, share)
        e = certify(net, c.S, x, sigma, n=a.draws, sigma_x=sigma_x, seed=seed, precision=a.precision)
        right = e.prediction.cpu() == y
        limit = torch.where(right, (e.radius.cpu() / sigma)**2, -1.)
        at = [joint_distance(c.S, p, q, sigma, sigma_x) for p, q in c.chunks(c.x[:m].repeat(len(versions), 1, 1, 1), torch.cat(list(versions.values())))]
        best, zero = (torch.cat(v).cpu().view(-1, m) for v in zip(*at))
        rows = [dict(corruption=name, severity=severity, seen=name in c.seen, inside=proportion(b <= limit), pixels=proportion(z <= limit), reach=b.sqrt().median().item(), right=right_at[name, severity])
                for (name, severity), b, z in zip(versions, best, zero)]
        return dict(share=share, sigma=sigma, sigma_x=sigma_x, certified=proportion(right & (e.radius.cpu() > 0)), reach=quantiles((e.radius.cpu() / sigma)[right]) if right.any() else None,
                    draws=a.draws + 100, rows=rows)
    settings = [tuple(map(float, s.split(":"))) for s in a.joint]
    return measured(c.out / f"{c.name}-joint.json", c.made_of(classifier=fingerprint(net), name=Path(folder).name, certified=m, draws=a.draws, settings=settings, precision=a.precision),
                    lambda: dict(training=net.results, settings=[setting(*s) for s in settings]))

def ceiling(c, settings=((1., .25), (4., .25), (4., .5)), n=100_000, alpha=.001):
    "What latent and pixels together could hold, at the points a search finds: the share of real corrupted images inside the largest region that n draws certify if every one of them agrees; at the set's centre, u = 0; and, without a set, around the image itself."
    from scipy.special import ndtri
    m, reach = min(c.a.searched, len(c.test)), float(ndtri(alpha**(1 / n)))
    versions = {(name, s): c.test.corrupted(name, s)[:m] for name in c.seen for s in (1, 5)}
    far = {k: torch.cat([squared_error(p, q).cpu() for p, q in c.chunks(c.x[:m], v)]) for k, v in versions.items()}
    def setting(sigma, sigma_x):
        at = [joint_distance(c.S, p, q, sigma, sigma_x, steps=20) for p, q in c.chunks(c.x[:m].repeat(len(versions), 1, 1, 1), torch.cat(list(versions.values())))]
        best, zero = (torch.cat(v).cpu().view(-1, m) for v in zip(*at))
        rows = [dict(corruption=name, severity=s, inside=proportion(b <= reach**2), pixels=proportion(z <= reach**2), around=proportion(far[name, s] / sigma_x**2 <= reach**2), reach=b.sqrt().median().item()) for (name, s), b, z in zip(versions, best, zero)]
        return dict(sigma=sigma, sigma_x=sigma_x, rows=rows)
    return measured(c.out / f"{c.name}-ceiling.json", c.made_of(searched=m, settings=settings, draws=n, alpha=alpha), lambda: dict(reach=reach, settings=[setting(*s) for s in settings]))

def small(c, radii=(1., 2.)):
    "Accuracy of every classifier at the worst points of balls much smaller than the set's; and of a second set's, larger by as much as its codes are longer (medians)."
    def middle(S): return torch.cat([*encoding_norms(S, c.test, c.seen).values()]).median().item()
    sets = {"small": (c.S, 1.)}
    if c.a.second:
        second = LearnedSet.from_pretrained(Path(c.a.second)).to(c.device)
        sets["small-second"] = second, middle(second) / middle(c.S)
    for (what, (S, times)), folder in itertools.product(sets.items(), c.a.classifiers):
        net, name, at = c.classifier(folder), Path(folder).name, [times * r for r in radii]
        made = c.made_of(classifier=fingerprint(net), attacked=c.a.attacked, most=c.a.most, radii=at, **({} if S is c.S else dict(second=fingerprint(S))))
        compute = lambda: dict(latent=benchmark(net, "cifar10", S, data=(c.x[:c.a.attacked], c.y[:c.a.attacked]), name=name, n_attacked=c.a.attacked, radii=at, check=False, most=c.a.most, seed=seed).latent)
        measured(c.out / f"{name}-{what}.json", made, compute)

def work(c, radius=1.):
    "Accuracy of every classifier in a small ball of the set against the work of the suite, up to `--longest` starts."
    x, y = c.floats(c.x[:c.a.attacked]), c.y[:c.a.attacked].to(c.device)
    for folder in c.a.classifiers:
        net, name = c.classifier(folder), Path(folder).name
        made = c.made_of(classifier=fingerprint(net), attacked=c.a.attacked, most=c.a.longest, at=radius, searches=start_names)
        def compute():
            a = attack_suite(net, c.S, x, y, radius, seed, most=c.a.longest)
            return dict(left=proportion(~a.success), accuracy=a.accuracy, converged=a.converged)
        measured(c.out / f"{name}-work.json", made, compute)

def short(c):
    "The benchmark in short, for every classifier: corruptions only, at severity 5 if no others are asked for."
    for folder in c.a.classifiers:
        net, name = c.classifier(folder), Path(folder).name
        def compute():
            b = benchmark(net, "cifar10", "corruptions", c.test, name, severities=c.a.severities, seed=seed)
            return dict(training=net.results, parameters=sum(p.numel() for p in net.parameters()), **b._asdict())
        measured(c.out / f"{name}-short.json", c.made_of(classifier=fingerprint(net), severities=c.a.severities), compute)

# ---- e: the generator gap -----------------------------------------------------------------------------------------------------------------------------

def gap(c):
    "Accuracy at the worst points of one set beside another's and beside the real worst case, over the classifiers, with rank correlations."
    from scipy.stats import spearmanr
    rows = []
    for folder in c.a.classifiers:
        r = read_json(c.out / f"{Path(folder).name}-benchmark.json")
        row = dict(name=Path(folder).name, clean=r["clean"]["mean"], mean=r["means"]["paper, severity 5"]["mean"], worst=r["worst"]["mean"])
        for key in ("latent", "second"): row |= {f"{key} {b['holds']}": b["accuracy"]["mean"] for b in r[key]}
        rows.append(row)
    keys = [k for k in rows[0] if k != "name"]
    def rank(a, b):
        both = [(r[a], r[b]) for r in rows if a in r and b in r]
        return dict(rank=finite(float(spearmanr(*zip(*both)).statistic)) if len(both) > 2 else None, n=len(both))
    latent = [k for k in keys if k.startswith("latent")]
    pairs = [(real, k) for real in ("mean", "worst") for k in latent] + [(k, k.replace("latent", "second")) for k in latent if k.replace("latent", "second") in keys] + [("mean", "worst")]
    ranks = [dict(a=a, b=b, **rank(a, b)) for a, b in pairs]
    return measured(c.out / f"{c.name}-gap.json", c.made_of(rows=rows, second=c.a.second and Path(c.a.second).name), lambda: dict(ranks=ranks))

# -------------------------------------------------------------------------------------------------------------------------------------------------------

def prepare(c):
    "Makes the corrupted test images, once."
    for name in names:
        for severity in range(1, 6): c.test.corrupted(name, severity)

def main():
    a = arguments()
    asked = a.parts or [part for part in parts if part not in ("short", "balls")]  # short: benchmark holds what it would measure again; balls: for classifiers made for it
    if wrong := {*asked} - {*parts}: raise SystemExit(f"no part {', '.join(wrong)}; there are {', '.join(parts)}")
    Path(a.out).mkdir(parents=True, exist_ok=True)
    if a.jobs > 1: return side_by_side(a, asked)
    c = Setup(a)
    run = dict(prepare=prepare, quality=quality, points=points, promise=promise, certify=certificates, balls=certified_balls, joint=joint, gap=gap, small=small, work=work, short=short, ceiling=ceiling, benchmark=lambda c: [one_benchmark(c, f) for f in a.classifiers])
    for part in asked:
        start = time.time()
        run[part](c)
        print(f"{part} {' '.join(Path(f).name for f in a.classifiers) if part == 'benchmark' else ''} {time.time() - start:.0f} s", flush=True)

def side_by_side(a, asked):
    "Runs the parts as processes, `--jobs` of them at a time: prepare before all others, gap after."
    env, failed, running = os.environ | dict(OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 2) // a.jobs)), TQDM_DISABLE="1"), [], []
    def start(part, **changed):
        given = {k: v for k, v in (vars(a) | dict(jobs=0) | changed).items() if k != "parts" and v is not None}
        options = [w for k, v in given.items() for w in ("--smooth-both" if k == "both" else f"--{k}", *(map(str, v) if isinstance(v, list) else [str(v)]))]
        return subprocess.Popen([sys.executable, __file__, part, *options], env=env)
    def wait(most):
        while len(running) > most:
            for p in [p for p in running if p.poll() is not None]:
                running.remove(p)
                if p.returncode: failed.append(f"{p.args[2]} ({p.returncode})")
            time.sleep(.1)
    for stage in (["prepare"], [part for part in parts if part not in ("prepare", "gap")], ["gap"]):
        jobs = [(part, {}) for part in stage if part in asked and part != "benchmark"]
        if "benchmark" in stage and "benchmark" in asked: jobs += [("benchmark", dict(classifiers=[f])) for f in a.classifiers]
        for part, changed in jobs:
            wait(a.jobs - 1)
            running.append(start(part, **changed))
        wait(0)
        if failed: raise SystemExit(f"failed: {', '.join(failed)}")  # what comes after would read what is not there

if __name__ == "__main__": main()
