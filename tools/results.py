"""Make the files in results/ that the experiments read: python tools/results.py PART... (full MNIST in data/; hours on two cores).

Every part can be stopped and started again. Sets and classifiers are those that come with the package, or in runs/NAME.
`python tools/results.py suite` needs no data: many starts for each of 200 shipped digits, on a GPU where there is one.
"""
import sys
import time
from pathlib import Path

import torch

from learned_perturbations.attacks import apgd, pgd
from learned_perturbations.certification import certify
from learned_perturbations.classifiers import is_correct, load_classifier
from learned_perturbations.criteria import farthest, nearest, squared_error
from learned_perturbations.cvae import LearnedSet
from learned_perturbations.devices import environment
from learned_perturbations.evaluation import conformal, quality
from learned_perturbations.fingerprints import fingerprint
from learned_perturbations.labelled_images import digits
from learned_perturbations.pairs import KnownPairs, Subset, mnist
from learned_perturbations.robust_training import harden
from learned_perturbations.runs import measured, proportion, read_json, summary, write_json, write_results
from learned_perturbations.sets import RTSSet
from learned_perturbations.suite import start_names, suite_curve

root = Path(__file__).resolve().parent.parent
results, kept = root/"results", Path("runs")/"results"
classifiers = ("clean", "pairs", "augment", "gaussian", "adversarial")
certified_radii = [0., .25, .5, .75, 1., 1.25, 1.5, 2., 2.5]

def learned(name, folder=None):
    "The set of a name, its training, and its validation and test pairs."
    from learned_perturbations.saved_runs import run_of, test_pairs  # the other parts do without its libraries
    folder, recipe, run = run_of(Path(folder) if folder else name, "network")
    return LearnedSet.from_pretrained(folder), run, test_pairs(recipe, {}, "val"), test_pairs(recipe, {})

def evaluate(name, folder=None, pinned=False, limit=None, starts=8):
    "Quality of a learned set on MNIST's test digits, with few starts of each search; pinned: with the latent dimensions held at 0 whose mean KL is below a tenth of a nat."
    S, run, val, test = learned(name, folder)
    if pinned: S, name = S.pin(S.active(val, threshold=.1)), f"{name}-pinned"
    if limit: test = Subset(test, limit)
    kept.mkdir(parents=True, exist_ok=True)
    write_results(results/f"{name}.json", training=run, weights=fingerprint(S), **quality(S, val, test, path=kept/name, starts=starts))

def calibrate(name, folder=None):
    "The conformal radii of a set that has been evaluated, measured again, in its results file."
    S, _, val, test = learned(name, folder)
    kept.mkdir(parents=True, exist_ok=True)
    rows = conformal(S, val, test, 250, path=kept/name)
    r = read_json(results/f"{name}.json")
    write_json(results/f"{name}.json", dict(r, conformal=[row | environment() for row in rows]))

def subject(name):
    "The set of the robustness results, a classifier, and all test digits with their labels."
    return LearnedSet.from_pretrained("mnist-rts"), load_classifier(f"mnist-{name}"), mnist("data", "test", 7)

def trained(name):
    "The classifier of a kind: that of the package, or of runs/, trained there if it is not yet."
    return load_classifier(f"mnist-{name}") if name in classifiers else harden(f"mnist-{name}")

def real_versions(x, *stream):
    "A fresh real perturbation of every digit."
    real = RTSSet()
    return torch.cat([real(p, real.sample(i, stream=stream)) for p, i in zip(x.split(1000), torch.arange(len(x)).split(1000))])

def asked(name, S, net, **settings):
    "What a result is made from."
    return dict(classifier=f"mnist-{name}", set="mnist-rts", weights=fingerprint(S, net), seed=0, precision="auto", **settings)

def accuracy(trainings=dict(clean=3, pairs=3, augment=3, gaussian=3, adversarial=1) | {"adversarial-wide": 3}, versions=10):
    "Accuracy of so many trainings of each kind on all test digits: clean, on a fresh real perturbation of each, and on all of ten."
    x, y = mnist("data", "test", 7)
    nets = {m: [trained(m), *(harden(f"mnist-{m}", name=f"mnist-{m}-{s}", seed=s) for s in range(1, n))] for m, n in trainings.items()}
    def one(net):
        right = torch.stack([is_correct(net, real_versions(x, "accuracy", i), y) for i in range(versions)])
        return dict(training=net.results, clean=proportion(is_correct(net, x, y)), real=proportion(right[0]), all_real=proportion(right.all(0)))
    made = dict(weights={m: [fingerprint(net) for net in some] for m, some in nets.items()}, versions=versions, digits=len(x))
    return measured(results/"mnist-accuracy.json", made, lambda: dict(classifiers={m: [one(net) for net in some] for m, some in nets.items()}))

def suite(names=("gaussian", "adversarial", "adversarial-wide", "pairs", "augment", "clean"), radii=(1., 2., 3.), n=200, most=None, steps=50):
    "Accuracy of every classifier against the work of the suite, beside one start of pgd, on the first test digits; kept after each classifier."
    torch.backends.cudnn.allow_tf32 = False  # the verdicts are float32's
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    S, nets = LearnedSet.from_pretrained("mnist-rts").to(device), {f"mnist-{name}": trained(name).to(device) for name in names}
    x, y = (t[:n].to(device) for t in digits("test", pad=7))
    most = most or (256 if device.type == "cuda" else 128)
    made, curves = dict(set="mnist-rts", searches=start_names, radii=list(radii), n=n, most=most, steps=steps, seed=0, precision="auto", weights={name: fingerprint(S, net) for name, net in nets.items()}), {}
    path = results/"suite.json"
    if path.exists() and (old := read_json(path))["asked"] == made: curves = old["curves"]
    for name, net in nets.items():
        if name in curves: continue
        weak, start = [pgd(net, S, x, y, r, steps) for r in radii], time.time()
        found = suite_curve(net, S, x, y, radii, most=most, steps=steps)
        print(name, *(f"radius {r:g}: {a}" for r, a in zip(radii, found)), f"{time.time() - start:.0f} s", sep="; ", flush=True)
        curves[name] = dict(pgd=[proportion(~a.success) for a in weak], accuracy=[a.accuracy for a in found], converged=[a.converged for a in found],
                            left=[proportion(~a.success) for a in found], seconds=time.time() - start)
        write_results(path, asked=made, curves=curves)

def compared(among=("rts-short", "rts"), n=40, share=.99):
    "Two learned sets on the same pairs, each at the radius that holds this share of the encodings of validation pairs: the encoding's distance on all test digits that come with the package, nearest and farthest on the first n, by searches that go on until they pay no more; and how many of the points a classifier trained on real perturbations recognises."
    net, (x, y) = load_classifier("mnist-pairs"), digits("test", pad=7)
    ids = torch.arange(len(x))
    x_tilde = KnownPairs(x, RTSSet()).batch(ids, seed=0)[1]
    both = {sets[part][0]: learned(*sets[part]) for part in among}
    made = dict(sets={name: fingerprint(S) for name, (S, *_) in both.items()}, n=n, digits=len(x), share=share, recogniser=fingerprint(net), seed=0)
    def measure(S, _, val, __):
        S.radius = S.encoding_norms(val).quantile(share).item()
        found = {search.__name__: search(S, x[:n], x_tilde[:n], ids=ids[:n]) for search in (nearest, farthest)}
        with torch.no_grad(): encoded = torch.cat([squared_error(S(a, S.project(S.encode(a, b))), b) for a, b in zip(x.split(500), x_tilde.split(500))])
        right = lambda u, k: proportion(torch.cat([is_correct(net, S(x[i], u[i]), y[i]) for i in ids[:k].split(500)]))
        return dict(training={k: S.results.get(k) for k in ("recipe", "seconds", "versions", "device")}, radius=S.radius, encoding=summary(encoded),
                    **{k: summary(f.error) | dict(converged=f.converged.double().mean().item()) for k, f in found.items()},
                    recognised=dict(random=right(S.sample(ids, how="truncated"), len(x)), farthest=right(found["farthest"].u, n)))
    return measured(results/"mnist-rts-compared.json", made, lambda: dict(nothing=summary(squared_error(x, x_tilde)), real=proportion(is_correct(net, x_tilde, y)),
                                                                         sets={name: measure(*parts) for name, parts in both.items()}))

def gap(among=("rts", "rts-short", "rts-two", "rts-unet"), shares=(1 / 6, 1 / 3), n=100, most=64, seed=0):
    "Accuracy of every classifier at the worst real perturbations, and at the worst points of other learned sets: balls of the same share of the radius that holds 99 % of the encodings. Kept after each classifier in each set."
    (x, y), nets = digits("test", pad=7), {name: load_classifier(f"mnist-{name}") for name in classifiers}
    x, y = x[:n], y[:n]
    balls = {sets[part][0]: learned(*sets[part]) for part in among}
    held = {name: S.encoding_norms(val).quantile(.99).item() for name, (S, _, val, _) in balls.items()}
    how = dict(n=n, most=most, searches=start_names, seed=seed)
    kept.mkdir(parents=True, exist_ok=True)
    def under(name, ball, S, radii):
        def compute(): return dict(rows=[dict(radius=r, accuracy=proportion(~a.success), converged=a.converged, starts=a.accuracy[-1][0])
                                         for r, a in zip(radii, suite_curve(nets[name], S, x, y, radii, most=most, seed=seed))])
        made = dict(how, set=fingerprint(S), classifier=fingerprint(nets[name]), radii=radii)
        return measured(kept/f"gap-{name}-{ball}.json", made, compute)["rows"]
    def recognised(S, radius):
        points = dict(centre=x.new_zeros(n, S.latent_dim), random=S.sample(n, how="truncated", radius=radius))
        return {name: proportion(is_correct(nets["pairs"], S(x, u), y)) for name, u in points.items()}
    def compute():
        rows = {name: dict(clean=proportion(is_correct(net, x, y)), exact=under(name, "exact", RTSSet(), [RTSSet().radius])[0]) for name, net in nets.items()}
        for ball, (S, *_) in balls.items():
            for name in nets: rows[name][ball] = under(name, ball, S, [s * held[ball] for s in shares])
        runs = {ball: {k: v for k, v in run.items() if k != "history"} for ball, (_, run, *_) in balls.items()}
        return dict(radii=held, training=runs, classifiers=rows,
                    recognised={ball: recognised(S, held[ball]) for ball, (S, *_) in balls.items()})
    made = dict(how, sets={name: fingerprint(S) for name, (S, *_) in balls.items()}, weights=fingerprint(*nets.values()), shares=list(shares))
    return measured(results/"mnist-rts-gap.json", made, compute)

def schedules(name="adversarial", radius=2., n=200, steps=(10, 20, 50, 100)):
    "Accuracy of a classifier under attack against the number of steps, for three rules of how long a step is."
    S, net, (x, y) = subject(name)
    ways = {"2.5 ε / steps": lambda k: dict(attack=pgd, steps=k, step_size=2.5 * radius / k, decay=False),
            "from ε down (pgd)": lambda k: dict(attack=pgd, steps=k), "chosen on the way (apgd)": lambda k: dict(attack=apgd, steps=k)}
    def stands(attack, **settings): return proportion(~attack(net, S, x[:n], y[:n], radius, precision="auto", **settings).success)
    return measured(results/f"mnist-{name}-steps.json", asked(name, S, net, radius=radius, n=n, steps=steps), lambda: dict(rows=[
        dict(rule=rule, steps=k, accuracy=stands(**way(k))) for rule, way in ways.items() for k in steps]))

def certified(name, n, digits, sigma=1.):
    "Certified accuracy of a smoothed classifier against radius, with a fixed number of draws, on the first test digits."
    S, net, (x, y) = subject(name)
    x, y = x[:digits], y[:digits]
    def compute():
        c = certify(net, S, x, sigma, n=n, path=kept/f"{name}-{n}.jsonl", progress=True, precision="auto")
        at = [dict(radius=r, accuracy=proportion((c.prediction == y) & (c.radius >= r))) for r in certified_radii]
        return dict(certified=at, abstained=proportion(c.prediction < 0), draws=int(c.draws.sum()), radius=c.radius.tolist(), right=(c.prediction == y).tolist())
    kept.mkdir(parents=True, exist_ok=True)
    made = asked(name, S, net, sigma=sigma, n0=100, n=n, alpha=.001, digits=digits)
    return measured(results/f"mnist-{name}-certified-{n}.json", made, compute)

def adaptive(name="gaussian", n=10_000, digits=50, more=200, sigma=1.):
    "Adaptive certificates, of at most ten times as many draws, beside fixed ones: draws and certified accuracy at the asked radii, on the same digits; then on more digits."
    S, net, (x, y) = subject(name)
    fixed = certified(name, n, digits)
    def row(radius, count):
        c = certify(net, S, x[:count], sigma, n=10 * n, radius=radius, adaptive=True, path=kept/f"{name}-adaptive-{radius}-{count}.jsonl", progress=True, precision="auto")
        ours = (c.prediction == y[:count]) & (c.radius >= radius)
        theirs = [a and r >= radius for a, r in zip(fixed["right"], fixed["radius"])]
        return dict(radius=radius, digits=count, accuracy=proportion(ours), fixed=proportion(torch.tensor(theirs)) if count == digits else None,
                    draws=c.draws.double().mean().item(), most_draws=int(c.draws.max()), fewer=(n + 100) / c.draws.double().mean().item())
    made = asked(name, S, net, sigma=sigma, n=n, alpha=.001, digits=digits, more=more)
    measured(results/f"mnist-{name}-adaptive.json", made, lambda: dict(rows=[row(r, digits) for r in (.5, 1., 1.5, 2.)] + [row(1., more)]))

sets = {"fc": ("mnist-linf-fc", None), "fc-fast": ("mnist-linf-fc-fast", "runs/mnist-linf-fc-fast"), "conv": ("mnist-linf-conv", None),
        "rts": ("mnist-rts", None), "rts-short": ("mnist-rts-short", "runs/mnist-rts-short"), "rts-5": ("mnist-rts-5", "runs/mnist-rts-5"), "rts-1": ("mnist-rts-1", "runs/mnist-rts-1"),
        "rts-two": ("mnist-rts-two", "runs/mnist-rts-two"), "rts-unet": ("mnist-rts-unet", "runs/mnist-rts-unet")}
parts = {part: lambda name=name, folder=folder, part=part: evaluate(name, folder=folder, limit=200 if part in ("rts-5", "rts-1", "rts-two", "rts-unet") else 500) for part, (name, folder) in sets.items()}
parts |= {f"conformal-{part}": lambda name=name, folder=folder: calibrate(name, folder) for part, (name, folder) in sets.items() if part != "fc-fast"}
parts |= {"rts-pinned": lambda: evaluate("mnist-rts", pinned=True, limit=200)}
parts |= {f"certify-{name}": lambda name=name: certified(name, 1000, 300) for name in classifiers}
parts |= {"accuracy": accuracy, "suite": suite, "compared": compared, "gap": gap, "steps": schedules, "certify-10000": lambda: certified("gaussian", 10_000, 50), "adaptive": adaptive}

if __name__ == "__main__":
    results.mkdir(exist_ok=True)
    for part in sys.argv[1:] or parts: parts[part]()
