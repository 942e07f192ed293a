"""Accuracy that searches leave against the time they take: the suite, a plain search, and AutoAttack's recipe in the latent
ball. Run `python benchmarks/search.py --help`."""
import math
import time
from pathlib import Path

import torch
from fastcore.script import call_parse

from learned_perturbations import runs
from learned_perturbations.attacks import apgd, random_search
from learned_perturbations.classifiers import evaluating, load_classifier
from learned_perturbations.cvae import LearnedSet
from learned_perturbations.fingerprints import fingerprint
from learned_perturbations.labelled_images import digits
from learned_perturbations.sets import select
from learned_perturbations.suite import attack_suite

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
cases = (("mnist-gaussian", 2.), ("mnist-gaussian", 1.), ("mnist-adversarial", 1.))


def clock():
    "Returns seconds: of this process's processor, or with a GPU of the wall."
    if device.type == "cpu": return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()

def ours(net, S, x, y, radius, most):
    "Yields (seconds, share that stands, what was done) for the suite after 1, 2, 4, … starts, each run anew."
    for work in (2**i for i in range(most.bit_length())):
        start = clock()
        a = attack_suite(net, S, x, y, radius, most=work)
        yield clock() - start, (~a.success).double().mean().item(), f"{a.accuracy[-1][0]} starts"
        if a.converged: return

def plain(net, S, x, y, radius, most, steps=100):
    "Yields the same for random starts on the sphere, momentum 0.8 and the margin, in float32."
    torch.manual_seed(0)
    start, cond, n = clock(), {k: v.detach() for k, v in S.condition(x).items()}, len(x)
    with torch.no_grad(): stands = net(S.perturb(cond, x.new_zeros(n, S.latent_dim))).argmax(1) == y
    for s in range(1, most + 1):
        if not len(i := stands.nonzero()[:, 0]): return
        part, label, rows = select(cond, i), y[i], torch.arange(len(i), device=device)
        u, move = torch.randn(len(i), S.latent_dim, device=device), 0.
        u, held = u * radius / u.norm(dim=1, keepdim=True), torch.ones(len(i), dtype=torch.bool, device=device)
        for t in range(steps + 1):
            u = u.detach().requires_grad_()
            z = net(S.perturb(part, u))
            held &= z.argmax(1) == label
            other = z.scatter(1, label[:, None], -1e9).amax(1)
            grad, = torch.autograd.grad((other - z[rows, label]).sum(), u)
            with torch.no_grad():
                move = .8 * move + grad / grad.norm(dim=1, keepdim=True).clamp_min(1e-12)
                u = u + radius * (.51 + .5 * math.cos(math.pi * t / steps)) * move / move.norm(dim=1, keepdim=True).clamp_min(1e-12)
                u = u * (radius / u.norm(dim=1, keepdim=True)).clamp(max=1)
        stands[i] &= held
        yield clock() - start, stands.double().mean().item(), f"{s} starts of {steps} steps"

def recipe(net, S, x, y, radius, most):
    "Yields the same for AutoAttack's stages without FAB, each on the survivors: APGD 100 steps (ce; dlr at 9 targets), 5,000 queries."
    start, stands = clock(), torch.ones(len(x), dtype=torch.bool, device=device)
    stages = {"apgd ce": lambda *a: apgd(*a, steps=100), "apgd dlr-targeted": lambda *a: apgd(*a, steps=100, restarts=9, loss="dlr-targeted"),
              "random search": lambda *a: random_search(*a, queries=5000)}
    for name, stage in stages.items():
        i = stands.nonzero()[:, 0]
        if not len(i): return
        stands[i] &= ~stage(net, S, x[i], y[i], radius).success
        yield clock() - start, stands.double().mean().item(), name

@call_parse
def main(
    n:int=100,     # test digits
    most:int=64,   # starts of the suite and of the plain search
    threads:int=1, # of the processor
    out:str="",    # results file; if empty benchmarks/results/search-cpu.json (or -cuda)
):
    "Measures accuracy left against seconds and writes the results."
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    S, results = LearnedSet.from_pretrained("mnist-rts").to(device), []
    x, y = (t[:n].to(device) for t in digits("test", pad=7))
    path = Path(out or Path(__file__).parent / "results" / f"search-{device.type}.json")
    weights = {name: fingerprint(S, load_classifier(name)) for name, _ in cases}
    for name, radius in cases:
        net = load_classifier(name).to(device)
        for method in (ours, plain, recipe):
            with evaluating(net): rows = [dict(seconds=s, left=left, after=what) for s, left, what in method(net, S, x, y, radius, most)]
            results.append(dict(classifier=name, radius=radius, method=method.__name__, rows=rows))
            print(name, radius, method.__name__, "; ".join(f"{r['left']:.1%} in {r['seconds']:.0f} s ({r['after']})" for r in rows[-1:] + rows[:-1:4]), flush=True)
            runs.write_results(path, weights=weights, n=n, most=most, threads=threads, clock="processor seconds" if device.type == "cpu" else "seconds", results=results)
