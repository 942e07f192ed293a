"""How much faster than a straightforward implementation (`plain.py`), and how far from what the processor can do.
Run `python benchmarks/speed.py --help`; README.md beside this file says how to read the table."""
import contextlib
import copy
import io
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from fastcore.script import call_parse
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import plain
from learned_perturbations import attacks, certification, classifiers, cvae, devices, draws, runs, training
from learned_perturbations.networks import published
from learned_perturbations.pairs import Subset, TensorPairs, load_images, sources

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
last = torch.channels_last


# What is measured: three pairs of a set and a classifier

class WideBlock(nn.Module):
    "Pre-activation block of a wide residual network."
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(i, o, 1, stride, bias=False)
    def forward(self, x):
        h = self.bn1(x).relu()
        return self.conv2(self.bn2(self.conv1(h)).relu()) + self.short(h)

def wide_resnet(width=2):
    "Returns a WRN-10-`width` for 3×32×32 images, with random weights."
    w = [16, 16 * width, 32 * width, 64 * width]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), *(WideBlock(w[i], w[i + 1], 1 + (i > 0)) for i in range(3)),
                         nn.BatchNorm2d(w[3]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w[3], 10))

def classifier(name, pad=0):
    "Returns a shipped classifier, or one in runs/, where training leaves it; `pad` pixels are added on each side of an image."
    for place in (name, f"runs/{name}"):
        try: return nn.Sequential(nn.ZeroPad2d(pad), classifiers.load_classifier(place)).to(device).eval()
        except FileNotFoundError: pass
    raise SystemExit(f"the classifier {name} is neither in the package nor in runs/: train it with `lp_harden {name}`")

def pair(name, examples, trained):
    "Returns set, classifier, images that it gets right, their labels, and the noise for certificates."
    torch.manual_seed(0)
    if name == "cifar10":
        S = cvae.LearnedSet(cvae.build("cifar10_rectangle", (3, 32, 32), "gaussian"), 2.7).to(device)
        net, x = wide_resnet().to(device).eval(), torch.rand(examples, 3, 32, 32, device=device)
        with torch.no_grad(): return S, net, x, net(S(x, torch.zeros(len(x), 512, device=device))).argmax(1), .84
    pad = 7 if name == "mnist-rts" else 0
    S, net = cvae.LearnedSet.from_pretrained(name).to(device), classifier(trained, 7 - pad)
    x, y = (t.to(device) for t in load_images("digits", "test", pad))
    with torch.no_grad(): found = net(S(x, torch.zeros(len(x), S.latent_dim, device=device))).argmax(1)
    right = (found == y).nonzero()[:examples, 0]  # the others would not be attacked
    return S, net, x[right], y[right], 1.


# How it is measured

def seconds(f):
    "Returns how long f() takes; if it returns a float, that number (a function that leaves its preparations out)."
    if device.type == "cuda": torch.cuda.synchronize()
    start = time.perf_counter()
    out = f()
    if device.type == "cuda": torch.cuda.synchronize()
    return out if isinstance(out, float) else time.perf_counter() - start

def operations(f):
    "Returns the floating-point operations of matrix products and convolutions in f(): a multiplication and an addition are two."
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()

def spread(values): return dict(median=statistics.median(values), min=min(values), max=max(values))

def compare(
    variants, # {name: (function, units of work it does, precision)}, those to compare with first
    reps,     # repetitions
    rates,    # measured operations a second, {precision: {"matmul": …, "conv": …}}
    bases=1,  # how many of the variants are baselines
):
    """Returns {name: seconds and operations a unit, the limit, ratio to each baseline}. Every repetition runs all variants
    once, in an order turned by one each time; a ratio compares times of the same repetition."""
    names, times = list(variants), {name: [] for name in variants}
    ops = {name: operations(f) / units for name, (f, units, _) in variants.items()}  # also the warm-up
    for rep in range(reps):
        for name in names[rep % len(names):] + names[:rep % len(names)]:
            f, units, _ = variants[name]
            times[name].append(seconds(f) / units)
    rows = {}
    for name, (_, units, precision) in variants.items():
        limit = ops[name] / max(rates[precision].values())
        ratios = {base: spread([b / t for b, t in zip(times[base], times[name])]) for base in names[:bases] if base != name}
        rows[name] = dict(seconds=spread(times[name]), units=units, precision=precision, operations=ops[name],
                          limit_seconds=limit, share_of_limit=limit / statistics.median(times[name]), faster_than=ratios)
    return rows

def measured_rates(reps):
    "Returns the rates of a square matrix product and of a 64 → 64 convolution of 32×32 images, operations a second."
    n, b, rates = (4096, 256, {}) if device.type == "cuda" else (1024, 16, {})
    for name, dtype in dict(float32=torch.float32, bf16=torch.bfloat16).items():
        a, x = torch.randn(n, n, device=device, dtype=dtype), torch.randn(b, 64, 32, 32, device=device, dtype=dtype)
        w, x = torch.randn(64, 64, 3, 3, device=device, dtype=dtype).to(memory_format=last), x.to(memory_format=last)
        jobs = dict(matmul=lambda: a @ a, conv=lambda: F.conv2d(x, w, padding=1))
        rates[name] = {k: operations(f) / min(seconds(f) for _ in range(4 * reps)) for k, f in jobs.items()}
    return rates

def ours(S, net, x):
    "Returns our variants, {name: (set, classifier, images, precision)}."
    laid = S, copy.deepcopy(net).to(memory_format=last), x.to(memory_format=last)
    return {f"ours, {p}": (*laid, p) for p in ("float32", "bf16")[:1 + devices.bf16_available()]}

def gradient(net, perturb, u, y):
    "Returns the gradient of the loss with respect to u."
    u = u.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(perturb(u)), y, reduction="sum"), u)[0]

def agreement(S, net, x, y, flat):
    "Returns the largest differences of images and of gradients (by their largest entry) at the same points, in float32."
    u, worst = S.sample(len(x), seed=1, device=device), dict(images=0., gradients=0.)
    theirs, g = flat.sample(x, u).detach(), gradient(net, lambda u: flat.sample(x, u), u, y)
    for T, f, images, precision in ours(S, net, x).values():
        if precision != "float32": continue
        cond = T.condition(images)
        h = gradient(f, lambda u: T.perturb(cond, u), u, y)
        worst["images"] = max(worst["images"], (T.perturb(cond, u) - theirs).abs().max().item())
        worst["gradients"] = max(worst["gradients"], ((h - g).abs().max() / g.abs().max()).item())
    # a gradient jumps where a ReLU switches or a warped point crosses a pixel: rounding may move a few entries further
    assert worst["images"] < 1e-4 and worst["gradients"] < 1e-3, f"plain and ours disagree: {worst}"
    return worst


# The three parts

def attack_part(name, rates, reps, steps, examples, share):
    "Returns the results of PGD on a case, at this share of the set's radius: plain, one example alone; the others, all together."
    S, net, x, y, _ = pair(name, examples, "mnist-adversarial")
    flat, radius = plain.PlainCVAE(S.cvae), share * S.radius
    start = radius * S.sample(len(x), radius=1., device=device)
    one = lambda i, once: plain.pgd(net, flat, x[i], y[i], radius, start[i], steps, once)
    variants = {"plain, one at a time": (lambda: one(slice(1), False), 1, "float32"),
                "plain, as published: in a batch": (lambda: one(slice(None), True), len(x), "float32")}
    def search(T, f, images, precision):
        return attacks.pgd(f, T, images, y, radius, steps, decay=False, precision=precision)
    won = {"plain": (net(one(slice(None), True)).argmax(1) != y).sum().item()}
    for k, v in ours(S, net, x).items():
        variants[k], won[k] = (lambda v=v: search(*v), len(x), v[3]), search(*v).success.sum().item()
    return dict(unit=f"example, {steps} steps", agreement=agreement(S, net, x, y, flat), successes=won, examples=len(x),
                radius=radius, rows=compare(variants, reps, rates, 2))

def same_counts(S, net, x, sigma, precision, counts):
    "Returns the share of the commonest class in 2,000 of our draws and in plain ones, and Fisher's p-value for one probability."
    with torch.no_grad():
        sampler = certification.Sampler(net, S, x, torch.arange(1, device=device), sigma, precision=precision)
        table = sampler.count(100, 2000)[0]
    top, n = counts.argmax().item(), counts.sum().item()
    p = stats.fisher_exact([[table[top], 2000 - table[top]], [counts[top].item(), n - counts[top].item()]]).pvalue
    assert p > 1e-4, f"the classes of our draws are distributed otherwise: {table} of 2000 and {counts} of {n}"
    return dict(ours=float(table[top]) / 2000, plain=counts[top].item() / n, p=float(p))

def certify_part(name, rates, reps, n, examples, alpha=.001, cap=100_000):
    "Returns the results of certificates on a case: of one image with n draws, and adaptive ones of `examples` images."
    S, net, x, y, sigma = pair(name, max(examples, 1), "mnist-gaussian")
    flat, one = plain.PlainCVAE(S.cvae), lambda once: plain.certify(net, flat, x[0], sigma, 100, n, alpha, once=once)
    variants = {f"plain, {k}": (lambda once=once: one(once), n + 100, "float32")
                for k, once in {"whole network at every call": False, "as published: prior once": True}.items()}
    def mine(T, f, images, precision, **kw):
        return certification.certify(f, T, images, sigma, 100, alpha=alpha, precision=precision, **kw)
    for k, (T, f, p, precision) in ours(S, net, x).items():
        variants[k] = (lambda v=(T, f, p[:1], precision): mine(*v, n=n), n + 100, precision)
    counts = one(True)[2]
    agree = {k: same_counts(T, f, p[:1], sigma, precision, counts) for k, (T, f, p, precision) in ours(S, net, x).items()}
    if examples:  # the last variant alone; a unit is a draw of the fixed procedure that it saves
        last_name, v = list(ours(S, net, x).items())[-1]
        variants[f"{last_name}, adaptive"] = lambda: mine(*v, n=cap, radius=sigma / 2, adaptive=True), len(x) * (cap + 100), v[3]
        used = mine(*v, n=cap, radius=sigma / 2, adaptive=True).draws.tolist()
    noise = lambda: draws.normal(torch.arange(1, device=device).expand(100), (S.latent_dim,), 0, "smoothing", torch.arange(100, device=device))
    out = dict(unit="draw", draws=n + 100, noise_seconds=min(seconds(noise) for _ in range(20)) / 100, sigma=sigma, agreement=dict(agreement(S, net, x[:1], y[:1], flat), counts=agree),
               rows=compare(variants, reps, rates, 2))
    if examples:
        saved = out["rows"][f"{last_name}, adaptive"]["faster_than"]
        faster = {fixed: {base: r["median"] * (fixed + 100) / (cap + 100) for base, r in saved.items()} for fixed in (n, cap)}
        out["adaptive"] = dict(radius=sigma / 2, most=cap, draws=used, mean_draws=statistics.mean(used),
                               faster_than_fixed=faster)
    return out

def train_part(network, rates, reps, steps, batch=128):
    "Returns the results of training steps of a network: the published precision and layout in a plain loop, and ours."
    recipe = next(r for r in training.recipes.values() if r.network == network and r.precision == "float32")
    torch.manual_seed(0)
    net = cvae.build(network, published[network][0]).to(device).train()
    pairs = Subset(sources(recipe.source, "train", **{**recipe.source_options, "data": "digits", "held_out": .1}), batch * steps)
    x, x_tilde, _ = (t.to(device) for t in pairs.batch(torch.arange(batch)))
    given = TensorPairs(*(t[:batch].cpu().repeat(steps, 1, 1, 1) for t in (x, x_tilde)))
    def theirs():
        flat = plain.PlainCVAE(net)
        return seconds(lambda: plain.train(flat, [(x, x_tilde)] * steps))
    def mine(precision, channels_last):
        r = training.Training("speed", epochs=1, batch_size=batch, lr="0:1e-3 1:1e-3", precision=precision, channels_last=channels_last)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # no progress bars
            loss = training.cvae_loss(net.latent_dim, "0:1 1:1")
            return training.fit(copy.deepcopy(net), given, loss, folder, r)[0]["seconds"]
    variants = {"plain, published precision and layout": (theirs, steps, "float32"),
                "ours, float32": (lambda: mine("float32", False), steps, "float32"),
                "ours, channels_last": (lambda: mine("float32", True), steps, "float32")}
    if devices.bf16_available(): variants["ours, channels_last bf16"] = (lambda: mine("bf16", True), steps, "bf16")
    noise = lambda: draws.normal(torch.arange(batch, device=device), (net.latent_dim,), 0, "reparameterisation", 0)
    return dict(unit=f"step of {batch} pairs", noise_seconds=min(seconds(noise) for _ in range(20)), agreement=same_loss(net, x, x_tilde), rows=compare(variants, reps, rates))

@torch.no_grad()
def same_loss(net, x, x_tilde):
    "Returns the relative difference of the two parts of the loss, ours and plain, at the same weights and noise."
    noise = draws.normal(torch.arange(len(x), device=device), (net.latent_dim,), 0, "noise")
    theirs = plain.loss(plain.PlainCVAE(copy.deepcopy(net)), x, x_tilde, noise)
    reconstruction, kl, _ = copy.deepcopy(net)(x, x_tilde, noise)
    out = {k: abs(a.item() / b.item() - 1) for k, a, b in zip(("reconstruction", "kl"), (reconstruction.sum(), kl.sum()), theirs)}
    assert max(out.values()) < 1e-4, f"plain and ours disagree: {out}"
    return out


def processor():
    "Returns what the processor calls itself and which bf16 instructions it has."
    info = Path("/proc/cpuinfo")
    name = [l.split(":")[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")] if info.exists() else []
    tests = dict(amx_bf16="_is_amx_tile_supported", avx512_bf16="_is_avx512_bf16_supported")
    return dict(name=name[0] if name else "", flags=[k for k, f in tests.items() if getattr(torch.cpu, f, lambda: False)()])

def table(title, result):
    "Prints one part's rows."
    print(f"\n{title} (unit: {result['unit']})")
    print(f"  {'':42s}{'time, ms':>10s}{'GFLOP':>9s}{'of limit':>9s}   times faster, median (lowest to highest), than …")
    for name, row in result["rows"].items():
        against = "   ".join(f"{base.split(',')[1].split(':')[0].strip()}: {r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})"
                             for base, r in row["faster_than"].items() if name.startswith("ours"))
        ms, gflop = 1e3 * row["seconds"]["median"], row["operations"] / 1e9
        print(f"  {name:42s}{ms:10.4g}{gflop:9.3g}{row['share_of_limit']:9.1%}   {against}", flush=True)
    same = [f"{k}: {v:.0e}" for k, v in result["agreement"].items() if k != "counts"]
    same += [f"{k}, same counts: p = {v['p']:.2g}" for k, v in result["agreement"].get("counts", {}).items()]
    print("  checked before timing, largest differences:", "; ".join(same))
    if "noise_seconds" in result:
        ours = min(row["seconds"]["median"] for name, row in result["rows"].items() if name.startswith("ours") and "adaptive" not in name)
        print(f"  random numbers: {result['noise_seconds'] / ours:.1%} of the fastest of ours")
    if "successes" in result: print(f"  successes of {result['examples']} at radius {result['radius']:.2g}:", result["successes"])
    if "adaptive" in result:
        a = result["adaptive"]
        print(f"  adaptive: {a['mean_draws']:.0f} draws an image of {a['most']} at most; faster than plain,",
              "; ".join(f"{n} draws: {max(r.values()):.0f} and {min(r.values()):.0f}" for n, r in a["faster_than_fixed"].items()))

@call_parse
def main(
    part:str="all",     # "attack", "certify", "train" or "all"
    threads:int=0,      # of the processor; 0: as many as torch takes
    out:str="",         # results file; if empty benchmarks/results/speed-cpu.json (or -cuda; -partial after quick or part)
    quick:bool=False,   # three repetitions of less work, to see that everything runs
):
    "Measures attacks, certificates and training steps against the plain implementation and writes the results."
    parts = ("all", "attack", "certify", "train")
    if part not in parts: raise SystemExit(f"part must be one of {', '.join(parts)}; got {part}")
    if threads: torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on both sides
    reps, start, results = 3 if quick else 5, time.time(), {}
    rates = measured_rates(reps)
    print(f"{processor()['name']}, {torch.get_num_threads()} threads, {processor()['flags'] or 'no bf16 instructions'}, {device}; "
          "GFLOP/s: " + ", ".join(f"{p} {k} {v / 1e9:.0f}" for p, r in rates.items() for k, v in r.items()))
    less = lambda n, by: max(1, n // by) if quick and n else n
    attack = {"mnist-rts": (50, 16, .25), "mnist-linf-fc": (50, 16, .5), "cifar10": (10, 6, 1)}  # steps, examples, share of radius
    certify = {"mnist-rts": (10_000, 8), "mnist-linf-fc": (10_000, 8), "cifar10": (400, 0)}      # draws, examples of adaptive ones
    jobs = dict(attack={k: partial(attack_part, k, rates, reps, 10 if quick else n, less(m, 3), r)
                        for k, (n, m, r) in attack.items()},
                certify={k: partial(certify_part, k, rates, reps, less(n, 10), less(m, 4)) for k, (n, m) in certify.items()},
                train={k: partial(train_part, k, rates, reps, less(4, 2)) for k in ("mnist_fc", "mnist_conv", "mnist_stn")})
    for kind, cases in jobs.items():
        for name, job in cases.items():
            if part in ("all", kind):
                results.setdefault(kind, {})[name] = job()
                table(f"{kind}: {name}", results[kind][name])
    name = f"speed-{device.type}{'-partial' if quick or part != 'all' else ''}.json"
    path = Path(out or Path(__file__).parent / "results" / name)
    runs.write_results(path, processor=processor(), threads=torch.get_num_threads(), rates=rates, repetitions=reps,
                           quick=quick, seconds=time.time() - start, **results)
    print(f"\n{time.time() - start:.0f} s; written to {path}")
