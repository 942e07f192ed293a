"""What limits a training step, and what each lever gives: the CVAE step of the paper's CIFAR-10 network, hardening and
certificates, measured beside what the device can do and beside `plain.py`, the published manner. Chapter `gpu` reads
the results. Run `python benchmarks/train.py --help`; README.md beside this file says how to read them."""
import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

try: import resource
except ImportError: resource = None  # Windows

import plain
from learned_perturbations import certification, classifiers, cvae, devices, draws, robust_training, runs
from learned_perturbations.pairs import Pairs
from learned_perturbations.sets import RTSSet, warp
from learned_perturbations.training import Step, Training, cvae_loss, fit
from speed import processor

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
cuda, last = device.type == "cuda", torch.channels_last
shape = (3, 32, 32)


# Pairs, made where the images lie

def images(path, n=50_000):
    """Returns uint8 images (N, 3, 32, 32) and labels (N,) on the device: from a .npz or .pt file, or a folder with
    mosaics train_*.webp of 50 × 40 images and labels.npz; else random ones."""
    if path and Path(path).is_dir():
        from PIL import Image
        parts = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(Path(path).glob("train_*.webp"))]
        x = np.stack(parts).reshape(-1, 50, 32, 40, 32, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, *shape)
        y = np.load(f"{path}/labels.npz")["train"][:len(x)]
        return torch.from_numpy(x).to(device), torch.as_tensor(y).long().to(device)
    if path:
        data = np.load(path) if path.endswith(".npz") else torch.load(path, weights_only=True)
        x, y = (torch.as_tensor(data[k]) for k in "xy")
        return x.to(device), y.long().to(device)
    ids = torch.arange(n, device=device)
    x = torch.cat([draws.uniform(i, shape, 0, "images").mul(256).byte() for i in ids.split(2000)])
    return x, draws.integers(ids, 10, 0, "labels")

def perturbed(
    x, # images in [0, 1], (B, C, H, W)
    u, # four numbers for RTSSet, width of the blur and contrast, each in [-1, 1], (B, 6)
    known=RTSSet(angle=15., scale=(.9, 1.1), shift=3.),
):
    "Returns the images turned, shifted, scaled, blurred and with another contrast, (B, C, H, W)."
    x = warp(x, known.matrices(u[:, :4], x.shape[-2:]))
    at = torch.arange(x.shape[-1], device=x.device)
    sigma = (.2 + 1.3 * u[:, 4].abs())[:, None, None]
    w = (-.5 * ((at[:, None] - at) / sigma)**2).softmax(-1)[:, None]  # a row sums to one: borders keep their brightness
    x, mean = w @ x @ w.mT, x.mean((1, 2, 3), keepdim=True)
    return (mean + (1 + .5 * u[:, 5])[:, None, None, None] * (x - mean)).clamp(0, 1)

def make_pairs(data, ids, epoch=0):
    "Returns x and x̃ of these items, float32, on the device: a gather, a flip, and the perturbation."
    x = data[ids].float().div_(255)
    flip = draws.uniform(ids, (1,), 0, "flip", epoch) < .5
    x = torch.where(flip[:, :, None, None], x.flip(-1), x)
    return x, perturbed(x, 2 * draws.uniform(ids, (6,), 0, "pairs", epoch) - 1)


# What a step must do at least

@torch.no_grad()
def pass_costs(
    net,  # a module; it is run on the meta device
    run,  # function that runs it forward once
    bits, # of a number in memory, 16 or 32
    training=False, # mode of the module
):
    """Returns one row for each layer with weights and each pass: operations, bytes. Every tensor that a layer takes or
    gives is read or written once in each of three passes (forward, gradient of the input, gradient of the weights);
    what lies between such layers is taken to cost nothing."""
    rows, size = [], bits // 8
    net = copy.deepcopy(net).to("meta").train(training)
    def hook(name, m, inputs, output):
        i, o, w = inputs[0].numel(), output.numel(), m.weight.numel()
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            kind = "convolution" if isinstance(m, nn.Conv2d) else "dense"
            ops = 2 * o * w // m.weight.shape[0]
            passes = dict(forward=i + o + w, weights=i + o + w, input=o + w + i)
        else:  # in training the gradient of the input needs the input once more, for its statistics
            kind, ops, passes = "normalisation", 0, dict(forward=i + o, input=(1 + m.training) * i + o)
        rows.extend(dict(layer=name, kind=kind, step=step, operations=ops, bytes=n * size, shape=list(m.weight.shape))
                    for step, n in passes.items())
    for name, m in net.named_modules():
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            m.register_forward_hook(lambda m, i, o, name=name: hook(name, m, i, o))
    run(net)
    return rows

def adam_costs(net):
    "Returns the row of Adam, which reads four numbers a weight and writes three."
    n = sum(p.numel() for p in net.parameters())
    return [dict(layer="all", kind="Adam", step="update", operations=0, bytes=7 * 4 * n, shape=[n])]

def meta_batch(net, batch, shape=shape):
    "Returns images and codes for a CVAE, on the meta device."
    return torch.empty(batch, *shape, device="meta"), torch.empty(batch, net.latent_dim, device="meta")

def layer_costs(
    net,   # a CVAE
    batch, # images in the step
    bits,  # of a number in memory, 16 or 32
    shape=shape,
):
    "Returns the rows of `pass_costs` for a training step, and Adam's; no gradient of the image is asked for."
    x, code = meta_batch(net, batch, shape)
    of_image = lambda r: r["step"] == "input" and r["layer"].endswith(("encoder.0", "first"))
    return [r for r in pass_costs(net, lambda net: net(x, x, code), bits, True) if not of_image(r)] + adam_costs(net)

def set_costs(net, f, batch, bits):
    "Returns the rows of prior, generator and classifier, three lists: each in evaluation mode, for `batch` images."
    x, code = meta_batch(net, batch)
    return (pass_costs(net.prior, lambda prior: prior(x), bits),
            pass_costs(net.generator, lambda g: g(g.features(x), code), bits), pass_costs(f, lambda f: f(x), bits))

def hardening_costs(net, f, batch, bits, steps=7):
    """Returns the rows of a step of hardening: the prior once; in each step of the search generator and classifier forward
    and the gradients of their inputs, no weights'; the image at the end; a training step of the classifier."""
    prior, generator, classifier = set_costs(net, f, batch, bits)
    passes = lambda rows, *kinds: [r for r in rows if r["step"] in kinds]
    trained = pass_costs(f, lambda f: f(meta_batch(net, batch)[0]), bits, True)
    of_image = lambda r: r["step"] == "input" and r["layer"] == trained[0]["layer"]
    return (passes(prior, "forward") + steps * passes(generator + classifier, "forward", "input")
            + passes(generator, "forward") + [r for r in trained if not of_image(r)] + adam_costs(f))

def certify_costs(net, f, draws, bits):
    "Returns the rows of a certificate of one image: the prior once; generator and classifier forward, all draws in one batch."
    drawn = sum(set_costs(net, f, draws, bits)[1:], [])
    return [r for r in set_costs(net, f, 1, bits)[0] + drawn if r["step"] == "forward"]

def small_stem():
    "Returns the untrained classifier of hardening and certificates."
    return classifiers.build_classifier("torchvision", shape, 10, model="resnet18", small_stem=True)

def job_floor(job, name, row, rates, net):
    """Returns the least time of what a row of hardening or certification counts, a step or a draw, in the precision of its
    name; `net` is its CVAE."""
    precision = "bf16" if "bf16" in name else "tf32" if name == "published" and "tf32" in rates["matmul"] else "float32"
    bits, f = 16 if precision == "bf16" else 32, small_stem()
    if job != "certification": return floor_seconds(hardening_costs(net, f, row["batch"], bits), rates, precision)
    return floor_seconds(certify_costs(net, f, row["draws"], bits), rates, precision) / row["draws"]

def floor_seconds(rows, rates, precision):
    "Returns the shortest time of these layers: of each the larger of bytes over bandwidth and operations over rate."
    rate = max(rates[k][precision]["median"] for k in ("matmul", "conv") if precision in rates[k])
    return sum(max(r["bytes"] / rates["copy"]["median"], r["operations"] / rate) for r in rows)

def counted(net, batch):
    "Returns the operations of one step as PyTorch counts them, to check those of `layer_costs` with."
    net = copy.deepcopy(net).to("meta").train()
    x, code = meta_batch(net, batch)
    with FlopCounterMode(display=False) as counter:
        values, kl, _ = net(x, x, code)
        (values.mean() + kl.mean()).backward()
    return counter.get_total_flops()


# Measuring

def wait():
    if cuda: torch.cuda.synchronize()

def spread(values):
    return dict(median=statistics.median(values), min=min(values), max=max(values), n=len(values))

def clock():
    """Returns seconds: by the clock, or, with one process of one thread on a processor, of that thread; others who use the
    machine then do not count."""
    return time.perf_counter() if cuda or torch.get_num_threads() > 1 or "WORLD_SIZE" in os.environ else time.process_time()

def seconds(f, times=1):
    "Returns how long f() takes on average, of `times` in a row that nothing waits between."
    wait(); start = clock()
    for _ in range(times): f()
    wait()
    return (clock() - start) / times

def repeated(f, least, reps):
    "Returns the time of f(), {median, min, max, n}: `reps` stretches of at least `least` seconds; f has run before."
    times = max(1, round(least / max(seconds(f), 1e-6)))
    return spread([seconds(f, times) for _ in range(reps)])

def precise(tf32=False, search=False):
    "Whether float32 convolutions and products may round to TF32; whether cuDNN tries which algorithm is fastest."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = search

def page_faults():
    "Returns how many pages the system has brought to this process so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0

def measured_rates(tiny):
    "Returns bytes a second of a copy (read and written), operations a second of a product and of a convolution."
    n, b, mb = (8192, 512, 1024) if cuda else (512, 8, 64) if tiny else (1024, 16, 256)
    reps, least = 5, .05
    a = torch.empty(mb * 2**20, dtype=torch.uint8, device=device).random_()
    c = torch.empty_like(a)
    t = repeated(lambda: c.copy_(a), least, reps)
    inverse = lambda t, k: dict(median=k / t["median"], min=k / t["max"], max=k / t["min"], n=t["n"])
    rates = dict(copy=inverse(t, 2 * a.numel()), matmul={}, conv={})
    kinds = dict(float32=(torch.float32, False)) | (dict(tf32=(torch.float32, True)) if cuda else {})
    if devices.bf16_available(): kinds["bf16"] = torch.bfloat16, False
    for name, (dtype, tf32) in kinds.items():
        precise(tf32, search=True)
        a = torch.randn(n, n, device=device).to(dtype)
        x = torch.randn(b, 64, 32, 32, device=device).to(dtype).to(memory_format=last)
        w = torch.randn(64, 64, 3, 3, device=device).to(dtype).to(memory_format=last)
        for kind, f, ops in (("matmul", lambda: a @ a, 2 * n**3),
                             ("conv", lambda: F.conv2d(x, w, padding=1), 2 * b * 1024 * 64 * 64 * 9)):
            for _ in range(3): f()
            rates[kind][name] = inverse(repeated(f, least, reps), ops)
    return rates

groups = (("data layout", "nchwToNhwc|nhwcToNchw|Transpose"),
          ("fused by the compiler", "^triton_"),
          ("normalisation", "batch_norm|bn_fw|bn_bw|batchnorm|BatchNorm"),
          ("convolution", "conv|cudnn|fprop|dgrad|wgrad|implicit"),
          ("matrix product", "gemm|nvjet|cublas|cutlass|splitK|addmm|aten::mm|bmm|linear"),
          ("Adam", "multi_tensor|[aA]dam|foreach|lerp|addcmul|addcdiv"),
          ("copies", "[mM]emcpy|[mM]emset|copy|aten::to|fill|cat"),
          ("elementwise and other", ""))

def group_of(name): return next(g for g, pattern in groups if re.search(pattern, name))

def trace(f):
    """Returns one of three steps f(), from its first kernel to the first of the next: intervals [start, length, group]
    in µs on the device, and starts of what the processor launches; on a processor, the time of each operation in which
    it calls no other."""
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    f(); wait()
    with torch.profiler.profile(activities=kinds) as prof:
        for _ in range(3): f()
        wait()
    with tempfile.TemporaryDirectory() as folder:
        prof.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    events = sorted((e for e in events if e.get("ph") == "X"), key=lambda e: (e["ts"], -e["dur"]))
    if cuda: work = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    else: work = own_time([e for e in events if e.get("cat") == "cpu_op"])
    n = len(work) // 3
    one, end = work[n:2 * n], work[2 * n]["ts"]
    start, where = one[0]["ts"], [g for g, _ in groups]
    lane = [[round(e["ts"] - start, 1), round(e["dur"], 1), where.index(group_of(e["name"]))] for e in one]
    of = lambda e: e.get("args", {}).get("correlation")
    mine = {of(e) for e in one}
    launches = sorted({round(e["ts"] - start, 1) for e in events
                       if e.get("cat") in ("cuda_runtime", "cuda_driver") and of(e) in mine}) if cuda else []
    table = {g: dict(microseconds=sum(d for _, d, k in lane if k == i), kernels=sum(k == i for *_, k in lane))
             for i, g in enumerate(where)}
    return dict(span=end - start, busy=busy(lane), kernels=n, groups={g: t for g, t in table.items() if t["kernels"]},
                names=where, lane=lane if cuda else merged(lane), launches=launches,
                heaviest=[dict(name=k[:90], microseconds=v) for k, v in heaviest(one)])

def own_time(ops):
    "Returns the pieces of time of nested operations, sorted by start: every moment belongs to the innermost one."
    pieces, stack = [], []
    def close(until):
        while stack and stack[-1]["end"] <= until:
            op = stack.pop()
            if op["end"] > op["at"]: pieces.append(dict(op, ts=op["at"], dur=op["end"] - op["at"]))
            if stack: stack[-1]["at"] = op["end"]
    for e in ops:
        if e["tid"] != ops[0]["tid"]: continue
        close(e["ts"])
        if stack and e["ts"] > stack[-1]["at"]:
            pieces.append(dict(stack[-1], ts=stack[-1]["at"], dur=e["ts"] - stack[-1]["at"]))
        stack.append(dict(e, at=e["ts"], end=e["ts"] + e["dur"]))
    close(float("inf"))
    return sorted(pieces, key=lambda e: e["ts"])

def busy(lane):
    "Returns the time covered by the intervals."
    covered, until = 0., -1e9
    for start, length, _ in lane:
        covered += max(0., start + length - max(start, until)); until = max(until, start + length)
    return covered

def merged(lane, least=20.):
    "Returns the intervals with those of one group joined where they follow each other, and without the very short."
    out = []
    for start, length, k in lane:
        if out and out[-1][2] == k and start - out[-1][0] - out[-1][1] < 1: out[-1][1] = round(start + length - out[-1][0], 1)
        elif length >= least: out.append([start, length, k])
    return out

def heaviest(events, n=12):
    sums = {}
    for e in events: sums[e["name"]] = sums.get(e["name"], 0.) + e["dur"]
    return sorted(sums.items(), key=lambda kv: -kv[1])[:n]

def waits(f):
    "Returns how often f() makes the processor wait for the device, as PyTorch tells; None on a processor."
    if not cuda: return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            f()
    finally: torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in seen)


# A step with its levers

@dataclass(frozen=True)
class Lever:
    "What is switched on."
    name: str
    tf32: bool = False    # float32 products may round their factors to 10 bits
    bf16: bool = False    # autocast
    layout: bool = False  # channels_last
    fused: bool = False   # Adam in one kernel
    kept: bool = False    # memory that is freed stays with the process; a GPU's always does
    search: bool = False  # cuDNN tries its algorithms once
    compiled: bool = False
    graph: bool = False   # the whole step recorded once, played back by one launch

    @property
    def precision(self): return "bf16" if self.bf16 else "tf32" if self.tf32 else "float32"

def levers():
    "Returns the levers, each with all those before it."
    one = Lever("float32")
    out = [one]
    add = lambda name, **kw: out.append(replace(out[-1], name=name, **kw))
    if cuda: add("TF32", tf32=True)
    if devices.bf16_available(): add("bf16", bf16=True)
    add("+ channels_last", layout=True)
    add("+ fused Adam", fused=True)
    if not cuda and devices.keep_memory(): add("+ kept memory", kept=True)
    if cuda: add("+ cuDNN search", search=True)
    if cuda: add("+ CUDA graph", graph=True)
    add("+ compile", graph=False, compiled=True)
    if cuda: add("+ compile + CUDA graph", graph=True)
    return out

class Job:
    "What is measured of a step; `use()` sets what belongs to the whole process."
    def timed(self, times):
        "Returns the seconds of a step, of so many in a row, and the pages the system brought in each."
        self.use().step()
        before = page_faults()
        return seconds(self.step, times), (page_faults() - before) / times
    def traced(self): return trace(self.use().step)

class Trainer(Job):
    "A CVAE, its optimiser and one batch on the device; `step()` trains it on that batch and leaves the loss in `loss`."
    def __init__(self,
        net,     # a CVAE to start from; it is copied
        lever,   # a Lever
        x, x_tilde, # the batch, (B, C, H, W) each
        lr=5e-4, # of Adam
        beta=.01,# weight of the KL
    ):
        self.lever, self.lr, self.beta = lever, lr, beta
        self.net = copy.deepcopy(net).train()
        form = last if lever.layout else torch.contiguous_format
        self.net.to(memory_format=form)
        self.x, self.x_tilde = (t.clone(memory_format=form) for t in (x, x_tilde))
        self.ids, self.count = torch.arange(len(x), device=device), torch.zeros((), dtype=torch.long, device=device)
        self.forward = torch.compile(self.losses, dynamic=False) if lever.compiled else self.losses
        how = dict(fused=True, capturable=lever.graph) if lever.fused else {}
        if not cuda: how.pop("capturable", None)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, **how)
        self.recorded = None
        if lever.graph: self.record()

    def losses(self, x, x_tilde, noise):
        "Returns loss and its two parts, means over the batch: squared error of the image, and the KL."
        mu, scale, q = self.net.encode(x, x_tilde)
        logits = self.net.generator(self.net.generator.features(x), mu + scale * (q.m + q.s * noise))
        error, kl = cvae.gaussian(logits.float(), x_tilde).mean(), cvae.gaussian_kl(q.m, q.s).sum(1).mean()
        return error + self.beta * kl, error.detach(), kl.detach()

    def once(self):
        noise = draws.normal(self.ids, (self.net.latent_dim,), 0, "reparameterisation", self.count)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.lever.bf16, cache_enabled=not self.lever.graph):
            loss, error, kl = self.forward(self.x, self.x_tilde, noise)
        loss.backward()
        self.optimizer.step(); self.optimizer.zero_grad()
        self.count += 1
        return torch.stack([loss.detach(), error, kl])

    def record(self):
        "Runs a few steps aside, as graphs want it, and records one."
        precise(self.lever.tf32, self.lever.search)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4): self.once()
        torch.cuda.current_stream().wait_stream(side)
        self.recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.recorded): self.loss = self.once()

    def use(self):
        "Sets what belongs to the whole process."
        precise(self.lever.tf32, self.lever.search)
        if self.lever.kept: devices.keep_memory()
        return self

    def step(self):
        if self.recorded is None: self.loss = self.once()
        else: self.recorded.replay()

    def feed(self, x, x_tilde):
        self.x.copy_(x); self.x_tilde.copy_(x_tilde)

    @torch.no_grad()
    def reset(self, weights):
        "Puts weights and optimiser back to a beginning, in place: a recorded step goes on working."
        self.net.load_state_dict(weights)
        self.count.zero_()
        for state in self.optimizer.state.values():
            for t in state.values():
                if isinstance(t, torch.Tensor): t.zero_()

class Published(Job):
    """The published step (`plain.train`) with the same batch; `tf32` False: the same without torch's default TF32
    convolutions; `kept`: with memory kept, as a setting outside the program can have it too."""
    def __init__(self, net, x, x_tilde, tf32=True, kept=False):
        self.net, self.tf32, self.kept = plain.PlainCVAE(net), tf32, kept
        self.x, self.x_tilde = x.contiguous(), x_tilde.contiguous()
        self.optimizer = None
    def use(self):
        precise(False)
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.kept: devices.keep_memory()
        return self
    def step(self):
        "As `plain.train` does it, with an optimiser that is kept from step to step."
        if self.optimizer is None: self.optimizer = torch.optim.Adam(self.net.parameters(), lr=5e-4)
        self.optimizer.zero_grad()
        noise = torch.randn(len(self.x), self.net.latent_dim, device=device)
        error, kl = plain.loss(self.net, self.x, self.x_tilde, noise)
        (error + .01 * kl).backward()
        self.optimizer.step()
        self.log = error.item() / len(self.x), kl.item() / len(self.x), error.item() + .01 * kl.item()


def built(least, kind, *args):
    "Returns a job, what building it and its first step tell, and how many steps take `least` seconds."
    if cuda: torch.cuda.reset_peak_memory_stats()
    before, begun = (torch.cuda.memory_allocated() if cuda else 0), time.time()
    job = kind(*args).use()
    job.step(); wait()
    first = time.time() - begun
    for _ in range(2): job.step()
    wait()
    times = max(1, round(least / seconds(job.step, 2)))
    return job, dict(first_step_seconds=first, waits=waits(job.step),
                     memory_bytes=torch.cuda.max_memory_allocated() - before if cuda else None), times

def serve(pipe, threads, *how):
    "Builds a job in this process and answers for it until the other end is gone."
    torch.set_num_threads(threads)
    try:
        job, *told = built(*how)
        pipe.send(told)
        while True:
            name, *args = pipe.recv()
            pipe.send(getattr(job, name)(*args))
    except EOFError: pass
    except Exception as e: pipe.send(e)

class Apart:
    "A job in a process of its own: what it asks the C library for, or leaves in its memory, is nothing to the others."
    def __init__(self, *how):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        context.Process(target=serve, args=(end, torch.get_num_threads(), *how), daemon=True).start()
        end.close()
    def told(self):
        answer = self.pipe.recv()
        if isinstance(answer, Exception): raise answer
        return answer
    def timed(self, times): self.pipe.send(("timed", times)); return self.told()
    def traced(self): self.pipe.send(("traced",)); return self.told()

def built_apart(*how):
    "Like `built`, in another process."
    job = Apart(*how)
    return job, *job.told()


def compact(content):
    "Returns JSON with six digits of each number, and lists of numbers in one line."
    def short(v):
        if isinstance(v, float): return float(f"{v:.6g}")
        if isinstance(v, dict): return {k: short(w) for k, w in v.items()}
        return [short(w) for w in v] if isinstance(v, (list, tuple)) else v
    text = json.dumps(short(content), indent=1, default=runs.plain, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)

def failure(name, e):
    "Prints that something failed; returns what the results say of it."
    print(f"{name} FAILED: {type(e).__name__}: {str(e)[:1500]}", flush=True)
    return f"{type(e).__name__}: {str(e)[:300]}"

class Report:
    "Results, written to a file whenever something is added; a run that is cut keeps what it has."
    def __init__(self, path, limit, **content):
        self.path, self.limit, self.begun, self.content = path, limit, time.time(), content
    def left(self): return self.limit - (time.time() - self.begun)
    def add(self, **more):
        self.content |= more
        self.content["wall_seconds"] = round(time.time() - self.begun, 1)
        if self.path: runs.write_text(self.path, compact(self.content))
    def part(self, name, f, need=0.):
        "Adds what f() returns; a part for which no time is left, or that fails, says so instead."
        if self.left() < need: return self.add(skipped=self.content.get("skipped", []) + [name])
        begun = time.time()
        try: self.add(**{name: f()})
        except Exception as e: self.add(failed=self.content.get("failed", {}) | {name: failure(name, e)})
        if cuda: torch.cuda.empty_cache()
        print(f"[{time.time() - self.begun:5.0f} s] {name}: {time.time() - begun:.1f} s", flush=True)

def say(name, row):
    share = f"{row['share']:6.1%} of the roofline" if "share" in row else ""
    print(f"  {name:32s}{row['images_s']['median']:12.1f} /s {1e3 * row['seconds']['median']:10.3f} ms  {share}",
          flush=True)

def row_of(seconds, batch, floor=None, **more):
    "Returns a row of results: time of a step, images a second, and the roofline's share in that time."
    rate = dict(median=batch / seconds["median"], min=batch / seconds["max"], max=batch / seconds["min"], n=seconds["n"])
    row = dict(batch=batch, seconds=seconds, images_s=rate, **more)
    return row if floor is None else row | dict(floor_seconds=floor, share=floor / seconds["median"])


# The parts

def steps_part(report, net, data, rates, batch, chosen, reps, least, traced):
    """Adds the levers at one batch size: all in turn, the order moved by one each time. A row is written as soon as it has
    one time, a traced step for each lever."""
    x, x_tilde = make_pairs(data, torch.arange(batch, device=device))
    jobs, key = {}, f"steps_{batch}"
    content = report.content.setdefault(key, {})
    def build(name, precision, *how):
        if report.left() < 30 or (report.left() < 100 and "compile" in name): return
        try:
            job, row, times = (built if cuda else built_apart)(least, *how)
            content[name], jobs[name] = dict(precision=precision, **row), (job, times)
        except Exception as e: content[name] = dict(failed=failure(name, e))
        report.add()
    build("published", "tf32 convolutions" if cuda else "float32", Published, net, x, x_tilde)
    if cuda: build("published, float32", "float32", Published, net, x, x_tilde, False)
    if any(l.kept for l in chosen): build("published, kept memory", "float32", Published, net, x, x_tilde, True, True)
    for lever in chosen: build(lever.name, lever.precision, Trainer, net, lever, x, x_tilde)
    names, found, faults = list(jobs), {name: [] for name in jobs}, {name: [] for name in jobs}
    for rep in range(reps):
        for name in names[rep % len(names):] + names[:rep % len(names)]:
            if name not in jobs: continue
            job, times = jobs[name]
            try:
                for out, v in zip((found[name], faults[name]), job.timed(times)): out.append(v)
            except Exception as e:
                content[name]["failed"] = failure(name, e)
                jobs.pop(name)
    for name, (job, times) in jobs.items():
        precision = "bf16" if content[name]["precision"] == "bf16" else content[name]["precision"].split()[0]
        floor = floor_seconds(layer_costs(net, batch, 16 if precision == "bf16" else 32), rates, precision)
        content[name] |= row_of(spread(found[name]), batch, floor, steps=times)
        if resource and not cuda: content[name]["page_faults"] = round(statistics.mean(faults[name]))
        say(f"{batch}: {name}", content[name])
    report.add()
    for name in traced:
        if name not in jobs: continue
        try:
            t = jobs[name][0].traced()
            idle = 1 - t["busy"] / 1e6 / content[name]["seconds"]["median"] if cuda else None
            content[name] |= dict(kernels=t["kernels"], busy_seconds=t["busy"] / 1e6, groups=t["groups"], idle=idle)
            report.content.setdefault("timeline", {})[f"{name}, batch {batch}"] = t
        except Exception as e: print(f"trace of {name} FAILED: {e}", flush=True)
        report.add()
    return jobs

def kernels_part(jobs, content):
    "Adds number of kernels, their time, and the share in which the device has nothing to do, of every lever."
    for name, (job, _) in jobs.items():
        if "kernels" in content.get(name, {"kernels": 0}): continue
        t = job.traced()
        idle = 1 - t["busy"] / 1e6 / content[name]["seconds"]["median"] if cuda else None
        content[name] |= dict(kernels=t["kernels"], busy_seconds=t["busy"] / 1e6, groups=t["groups"], idle=idle)

def best(chosen):
    "Returns the fastest lever that compiles nothing."
    return [l for l in chosen if not l.compiled][-1]

def batches_part(net, data, rates, sizes, lever, reps, least):
    "Returns how time grows with the batch: of the eager step, and of the recorded one where there is a GPU."
    out = {}
    for l in [lever] if not lever.graph else [replace(lever, graph=False, name="launched one by one"), lever]:
        for b in sizes:
            job = Trainer(net, l, *make_pairs(data, torch.arange(b, device=device))).use()
            for _ in range(3): job.step()
            floor = floor_seconds(layer_costs(net, b, 16 if l.bf16 else 32), rates, l.precision)
            row = out.setdefault(l.name, {})[str(b)] = row_of(repeated(job.step, least, reps), b, floor)
            say(f"batch {b}, {l.name}", row)
            del job
    return out

def growth_part(make, rates, values, batch, lever, reps, least):
    "Returns how time grows: `make(value)` returns a network and the shape of its images."
    out = {}
    for v in values:
        torch.manual_seed(0)
        net, s = make(v)
        x = draws.uniform(torch.arange(batch, device=device), s, 0, "growth")
        try: job = Trainer(net.to(device), lever, x, x.flip(-1)).use()
        except Exception as e:
            out[str(v)] = dict(failed=failure(v, e))
            continue
        for _ in range(3): job.step()
        costs = layer_costs(net, batch, 16 if lever.bf16 else 32, s)
        row = out[str(v)] = row_of(repeated(job.step, least, reps), batch, floor_seconds(costs, rates, lever.precision),
                                   operations=sum(r["operations"] for r in costs) / batch,
                                   parameters=sum(p.numel() for p in net.parameters()), shape=list(s))
        say(f"{v}", row)
        del job
    return out

def pairs_part(data, batch, reps, least):
    "Returns images a second of pairs made on the device, and of the same made by the processor and carried over."
    ids, out, precise_ = torch.arange(batch, device=device), {}, precise(False)
    out["made on the device"] = row_of(repeated(lambda: make_pairs(data, ids), least, reps), batch)
    host, at = data[:max(batch, 256)].cpu(), torch.arange(batch)
    carry = lambda t: (t.pin_memory() if cuda else t).to(device, non_blocking=True)
    def carried():
        for t in make_pairs(host, at): carry(t)
    carried()
    out["made by the processor"] = row_of(repeated(carried, least, min(reps, 3)), batch)
    def bytes_only(): carry(host[at]).float().div_(255)
    bytes_only()
    out["images carried as bytes"] = row_of(repeated(bytes_only, least, reps), batch)
    for name, row in out.items(): say(f"pairs {name}", row)
    return out

def epoch_part(jobs, data, batch, epochs=1):
    """Returns images a second of whole epochs, pairs made on the device in every step: as single launches, and recorded
    like the step. The loss after the last step shows that it trained."""
    out = {}
    for name, (job, _) in jobs.items():
        job.use()
        ids, epoch = torch.zeros(batch, dtype=torch.long, device=device), torch.zeros((), dtype=torch.long, device=device)
        make = lambda: job.feed(*make_pairs(data, ids, epoch))
        make()
        if job.lever.graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side): make()
            torch.cuda.current_stream().wait_stream(side)
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded): make()
            make = recorded.replay
        def one():
            for part in draws.permutation(len(data), 0, "order", device=device).split(batch):
                if len(part) < batch: continue  # a recorded step has one size
                ids.copy_(part); make(); job.step()
            epoch.add_(1)
        if cuda: one()
        t = spread([seconds(one) for _ in range(epochs)])
        out[name] = dict(row_of(t, len(data) // batch * batch), step_batch=batch, loss=job.loss[0].item())
        say(f"epoch: {name}", out[name])
    return out

class DevicePairs(Pairs):
    "The pairs of `make_pairs` as a source that remembers when it was asked for a batch."
    def __init__(self, data): self.data, self.device, self.asked = data, data.device, []
    def __len__(self): return len(self.data)
    def batch(self, idx, seed=0, epoch=0):
        self.asked.append(clock())
        return make_pairs(self.data, idx, epoch)

def engine_row(net, data, epochs, batch, **how):
    """Returns a row of the library's own loop, `training.fit`, with its schedules, logs, checks and checkpoints. A step is
    timed in the last three quarters of each epoch but the first; in the first quarter a thread still writes the checkpoint.
    `end_of_epoch` is what an epoch takes beyond its steps: for its means and the checkpoint."""
    pairs, r = DevicePairs(data), Training("speed", epochs=epochs, lr="0:5e-4 1:5e-4", batch_size=batch, **how)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # no progress bars
        history = fit(copy.deepcopy(net), pairs, cvae_loss(net.latent_dim, "0:.01 1:.01"), folder, r)
    asked = torch.tensor([*pairs.asked, clock()], dtype=torch.float64)
    steps = len(pairs.asked) // epochs
    starts, skip = asked[::steps], steps // 4
    times = [(a[-1] - a[skip]).item() / (steps - 1 - skip) for a in asked[steps:-1].split(steps)]
    more = [(b - a).item() - t * steps for a, b, t in zip(starts[1:], starts[2:], times)]
    return row_of(spread(times), batch, loss=[h["loss"] for h in history], steps=steps, end_of_epoch=spread(more))

def engine_part(report, net, data, batches, epochs, compiled):
    "Returns rows of the library's own loop. PyTorch's own settings for TF32 and cuDNN."
    out = {}
    precise(False)
    torch.backends.cudnn.allow_tf32 = True
    ways = {f"{p}, batch {b}": dict(precision=p, batch=b) for b in batches
            for p in ("float32", "bf16")[:1 + devices.bf16_available()]}
    if compiled: ways[f"bf16, compile, batch {batches[0]}"] = dict(precision="bf16", batch=batches[0], compile=True)
    for name, how in ways.items():
        if report.left() < (110 if "compile" in name else 40): continue
        try:
            some = data if cuda else data[:20 * how["batch"]]  # 20 steps an epoch
            out[name] = engine_row(net, some, epochs, **how)
            say(f"fit: {name}", out[name])
        except Exception as e: out[name] = dict(failed=failure(name, e))
    return out

def processes_part(batches, *options):
    """Returns images a second of `training.fit`, by the clock: in one process of one thread, in one of two threads, and in
    two of one thread each, which take half of every batch and exchange their gradients through gloo."""
    out = {}
    ways = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
    for batch in batches:
        for name, (processes, threads) in ways.items():
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            done = subprocess.run([*launch, __file__, "--worker", str(batch), "--threads", str(threads), *options],
                                  env=dict(os.environ, CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True)
            if done.returncode: raise RuntimeError(done.stderr[-1500:])
            row = out.setdefault(str(batch), {})[name] = json.loads(done.stdout.splitlines()[-1])
            say(f"batch {batch}, {name}", row)
    return out

def worker(net, data, batch):
    "Prints the row of this process, if it is the first; `processes_part` starts it."
    row = engine_row(net, data[:20 * batch], 3, batch, precision="auto")
    if os.environ["RANK"] == "0": print(json.dumps(row), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier(); torch.distributed.destroy_process_group()
    os._exit(0)  # on a busy machine a thread of gloo's can abort an interpreter that ends

def item_part(net, data, batch, lever, reps, least):
    "Returns what one `.item()` a step costs: the same step with and without."
    job = Trainer(net, replace(lever, graph=False, compiled=False), *make_pairs(data, torch.arange(batch, device=device))).use()
    def looked(): job.step(); job.loss[0].item()
    out = {}
    for name, f in {"without": job.step, "with .item()": looked}.items():
        for _ in range(3): f()
        out[name] = row_of(repeated(f, least, reps), batch, waits=waits(f))
        say(f"batch {batch}, {name}", out[name])
    return out

def warp_part(data, n=512):
    "Returns how far bf16 moves a warped image: largest shift of a sampling point in pixels, mean error of the images."
    x = data[:n].float() / 255
    theta = RTSSet().matrices(2 * draws.uniform(torch.arange(len(x), device=device), (4,), 0, "warp") - 1, x.shape[-2:])
    points = lambda t: F.affine_grid(t, x.shape, align_corners=False)
    exact, rough = points(theta), points(theta.bfloat16().float())
    half = points(theta).bfloat16().float()
    images = F.grid_sample(x, exact, align_corners=False)
    error = lambda g: (F.grid_sample(x, g, align_corners=False) - images).abs().mean().item()
    return dict(pixels_from_matrix=((rough - exact).abs().max() * 16).item(),
                pixels_from_grid=((half - exact).abs().max() * 16).item(),
                image_error_from_matrix=error(rough), image_error_from_grid=error(half))

def hardening_part(report, net, data, labels, batch, rates, reps, least, compiled):
    "Returns images a second of hardening with 7 inner steps: the published manner, and ours."
    torch.manual_seed(0)
    S = cvae.LearnedSet(copy.deepcopy(net), 2.7).to(device)
    for p in S.parameters(): p.requires_grad_(False)
    f = small_stem().to(device).train()
    ids = torch.arange(batch, device=device)
    x, y, out = make_pairs(data, ids)[0], labels[:batch], {}
    def published():
        model, flat = copy.deepcopy(f), plain.PlainCVAE(S.cvae).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        def step():
            start = 2.7 * torch.rand(batch, S.latent_dim, device=device) / S.latent_dim**.5
            adv = plain.pgd(model, flat, x, y, 2.7, start, 7, once=True)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(adv), y)
            loss.backward(); optimizer.step()
            return loss.item()
        return step
    def ours(bf16, graph, compiled=False):
        T, model = copy.deepcopy(S), copy.deepcopy(f).to(memory_format=last)
        if compiled:
            T.cvae.generator.forward = torch.compile(T.cvae.generator.forward, dynamic=False)
            model.forward = torch.compile(model.forward, dynamic=False)
        how = dict(capturable=True) if graph else {}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, **how)
        radius = torch.tensor(2.7, device=device)  # a number would be carried over at every step
        h, xl = robust_training.Hardening(T, radius, steps=7), x.to(memory_format=last)
        def step():
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=not graph):
                values, _ = robust_training.adversarial_plain(h, model, xl, None, y, Step(.5, ids, 0, 0))
            values.mean().backward()
            optimizer.step(); optimizer.zero_grad()
        if not graph: return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): step()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded): step()
        return recorded.replay
    jobs = {"published": (published, True, False), "ours, float32": (lambda: ours(False, False), False, False)}
    if devices.bf16_available(): jobs["ours, bf16"] = (lambda: ours(True, False), True, True)
    if cuda: jobs["ours, bf16, CUDA graph"] = (lambda: ours(True, True), True, True)
    if compiled: jobs["ours, bf16, compile"] = (lambda: ours(True, False, True), True, True)
    if compiled and cuda: jobs["ours, bf16, compile + CUDA graph"] = (lambda: ours(True, True, True), True, True)
    for name, (make, tf32, search) in jobs.items():
        if report.left() < 40 or ("compile" in name and report.left() < 100): continue
        try:
            precise(tf32, search)
            if name == "published": torch.backends.cuda.matmul.allow_tf32 = False  # torch's defaults
            step = make()
            for _ in range(3 if cuda else 1): step()
            out[name] = row_of(repeated(step, least, reps), batch, job_floor("hardening", name, dict(batch=batch), rates, net),
                               waits=waits(step))
            say(f"harden {batch}: {name}", out[name])
        except Exception as e: out[name] = dict(failed=failure(name, e))
    return out

def certify_part(net, data, n0, n, rates, reps, small):
    "Returns draws a second of a certificate: the published manner, and ours in float32 and bf16; of several images at once too."
    torch.manual_seed(0)
    S = cvae.LearnedSet(copy.deepcopy(net), 2.7).to(device)
    f = small_stem().to(device).eval()
    x, out, flat = make_pairs(data, torch.arange(8, device=device))[0], {}, plain.PlainCVAE(S.cvae).eval()
    quick = copy.deepcopy(f).to(memory_format=last)
    jobs = {"published": (lambda: plain.certify(f, flat, x[0], .84, n0, n, once=True), 1, True)}
    for precision in ("float32", "bf16")[:1 + devices.bf16_available()]:
        for k in (1, 8):
            jobs[f"ours, {precision}, {k} image{'s' * (k > 1)}"] = (lambda p=precision, k=k: certification.certify(
                quick, S, x[:k].to(memory_format=last), .84, n0, n, precision=p), k, False)
    for name, (job, k, tf32) in jobs.items():
        if small and k > 1: continue  # a batch is full with one
        precise(False, search=name != "published")
        torch.backends.cudnn.allow_tf32 = tf32
        job()
        t = spread([seconds(job) / k / (n0 + n) for _ in range(reps)])
        floor = job_floor("certification", name, dict(draws=n0 + n), rates, net)
        out[name] = dict(row_of(t, 1, floor), draws=n0 + n)
        say(f"certify: {name}", out[name])
    return out

def curves_part(report, jobs, net, data, batch, steps, seeds, bins=30):
    """Returns the loss of every lever over the steps, for several seeds (weights and order of the batches), and the loss in
    evaluation mode, in float32, on pairs that were not trained on. Adds what is finished."""
    held, out = min(2000 if cuda else 500, len(data) // 8), {}
    n = len(data) - held
    fresh = [make_pairs(data, i, 10**6) for i in torch.arange(n, len(data), device=device).split(500)]
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = {k: v.to(device) for k, v in fresh_net(net).state_dict().items()}
        for name, (job, _) in jobs.items():
            if not isinstance(job, Trainer) or report.left() < 25: continue
            job.use().reset(weights)
            losses, order = [], draws.permutation(n, seed, "order", device=device)
            for i in range(steps):
                ids = order[torch.arange(i * batch, (i + 1) * batch, device=device) % n]
                job.feed(*make_pairs(data, ids, seed))
                job.step()
                losses.append(job.loss.clone())
            losses = torch.stack(losses)[:steps // bins * bins].unflatten(0, (bins, -1)).mean(1)
            precise(False)
            with torch.no_grad():
                held_net = copy.deepcopy(job.net).eval()
                ends = [losses_of(held_net, *p, job.beta) for p in fresh]
            out.setdefault(name, []).append(dict(seed=seed, loss=losses[:, 0].tolist(), error=losses[:, 1].tolist(),
                                                 kl=losses[:, 2].tolist(), held_out=statistics.mean(ends)))
        report.add(curves=dict(steps=steps, batch=batch, bins=bins, held_out=held, lr=5e-4, beta=.01,
                               options=net.config["options"], levers=out))
    for name, rows in out.items(): print(f"  {name:32s} held-out loss {[round(r['held_out'], 2) for r in rows]}", flush=True)
    return report.content["curves"]

def losses_of(net, x, x_tilde, beta):
    noise = draws.normal(torch.arange(len(x), device=device), (net.latent_dim,), 0, "held out")
    mu, scale, q = net.encode(x, x_tilde)
    logits = net.generator(net.generator.features(x), mu + scale * (q.m + q.s * noise))
    return (cvae.gaussian(logits, x_tilde) + beta * q.kl.sum(1)).mean().item()

def fresh_net(like):
    "Returns an untrained CVAE of the same kind."
    return cvae.build("cifar10_rectangle", shape, "gaussian", **like.config["options"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="", help="results file; default benchmarks/results/train-cuda.json or train-cpu.json")
    parser.add_argument("--data", default="", help=".npz or .pt with x, uint8 (N, 3, 32, 32), and y, or a folder "
                        "of mosaics train_*.webp with labels.npz; default: random images")
    parser.add_argument("--tiny", action="store_true", help="a small network and few repetitions: a look whether all runs")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0: as many as torch takes")
    parser.add_argument("--batch", type=int, default=0, help="images in the main step; default 128, on a processor 16")
    parser.add_argument("--short", action="store_true", help="only the levers, the library's loop, and two processes")
    parser.add_argument("--limit", type=float, default=340, help="seconds after which no further part is begun")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a processor too: some minutes more")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)  # batch of one of several processes
    a = parser.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    path = Path(a.out) if a.out else None if a.tiny else Path(__file__).parent / "results" / f"train-{device.type}.json"
    options = dict(blocks=1, big=16, small=8, latent_dim=32) if a.tiny else {}
    small = a.tiny or not cuda
    reps, least = 3 if a.tiny else 5, .05 if small else .2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cvae.build("cifar10_rectangle", shape, "gaussian", **options).to(device)
    data, labels = images(a.data, 2000 if small else 50_000)
    if a.worker: worker(net, data, a.worker)
    report = Report(path, a.limit)
    report.add(**devices.environment(), processor=processor(), tiny=a.tiny, options=options,
               data=Path(a.data).name or "random images", threads=torch.get_num_threads(),
               compute_capability=torch.cuda.get_device_capability() if cuda else None)
    if cuda: report.add(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
                        memory_bytes=torch.cuda.get_device_properties(0).total_memory)
    print(report.content["device"], torch.__version__, flush=True)
    report.part("rates", lambda: measured_rates(a.tiny))
    rates = report.content["rates"]
    for kind in ("matmul", "conv"): print(f"  {kind}:", {k: f"{v['median'] / 1e12:.3f} TFLOP/s" for k, v in rates[kind].items()})
    print(f"  copy: {rates['copy']['median'] / 1e9:.1f} GB/s", flush=True)
    costs = layer_costs(net, 1, 32)
    ops, torch_ops = sum(r["operations"] for r in costs), counted(net, 1)
    assert abs(ops / torch_ops - 1) < .01, f"the hooks count {ops:.3g} operations, PyTorch {torch_ops:.3g}"
    report.add(layers={str(bits): layer_costs(net, 1, bits) for bits in (32, 16)}, operations=ops,
               parameters=sum(p.numel() for p in net.parameters()))
    every = levers()
    chosen = [l for l in every if not (l.compiled and (a.no_compile or small and not a.compile))]
    main_batch, sizes = (128, (32, 64, 128, 256, 512, 1024, 2048)) if not small else (16, (4, 8, 16, 32))
    main_batch = a.batch or main_batch
    lever = best(chosen)
    jobs = steps_part(report, net, data, rates, main_batch, chosen, reps, least,
                      [] if a.short else ["published", chosen[0].name, lever.name, chosen[-1].name])
    engine = lambda: engine_part(report, net, data, (main_batch, 512)[:1 + cuda], 3 if cuda else 4,
                                 cuda and not (a.tiny or a.no_compile))
    if a.short:
        del jobs
        report.part("engine", engine, 60)
        report.part("processes", lambda: processes_part((16, main_batch), "--data", a.data, *["--tiny"] * a.tiny), 60)
        return report.add(finished=True)
    report.part("kernels", lambda: kernels_part(jobs, report.content[f"steps_{main_batch}"]), 60)
    report.part("batches", lambda: batches_part(net, data, rates, sizes, lever, reps, least), 60)
    if not cuda:  # those in processes of their own end here; this process keeps its memory from the levers on
        one = make_pairs(data, torch.arange(main_batch, device=device))
        jobs = {l.name: (Trainer(net, l, *one), 1) for l in (chosen if a.tiny else chosen[chosen.index(lever):])}
    late = [l.name for l in chosen]
    late = late[late.index("+ cuDNN search" if cuda else lever.name):]
    report.part("epochs", lambda: epoch_part({k: v for k, v in jobs.items() if k in late}, data[:320] if small else data,
                                             main_batch, 3 if small else 2), 60)
    report.part("engine", engine, 60)
    report.part("pairs", lambda: pairs_part(data, main_batch, reps, least))
    report.part("item", lambda: {str(b): item_part(net, data, b, lever, reps, least) for b in sizes[::2][:3]}, 40)
    report.part("warp", lambda: warp_part(data))
    report.part("certification", lambda: certify_part(net, data, *((100, 10_000) if not small else (4, 28)),
                                                      rates, reps, small), 40)
    report.part("hardening", lambda: hardening_part(report, net, data, labels, 256 if not small else 2, rates,
                                                    reps, least, False), 60)
    if cuda or a.tiny: learning = jobs, net, 300 if not small else 30
    else:  # the small network learns something in the time that there is
        with torch.random.fork_rng():
            torch.manual_seed(0)
            own = cvae.build("cifar10_rectangle", shape, "gaussian", blocks=1, big=16, small=8, latent_dim=32).to(device)
        one = make_pairs(data, torch.arange(main_batch, device=device))
        learning = {l.name: (Trainer(own, l, *one), 1) for l in chosen if not l.compiled}, own, 210
    report.part("curves", lambda: curves_part(report, *learning[:2], data, main_batch, learning[2], 3), 60)
    del jobs
    widths = lambda v: (cvae.build("cifar10_rectangle", shape, "gaussian", **{**options, "big": v, "small": v // 4}), shape)
    sides = lambda v: (cvae.build("unet", (3, v, v), "gaussian", **(dict(widths=(16, 16), latents=16) if a.tiny else {})),
                       (3, v, v))
    report.part("widths", lambda: growth_part(widths, rates, (32, 64, 128, 256) if not small else (16, 32, 64),
                                              main_batch if not small else 8, lever, reps, least), 60)
    report.part("sides", lambda: growth_part(sides, rates, (32, 64, 128, 256) if not small else (16, 32, 64),
                                             64 if not small else 4, lever, reps, least), 60)
    if cuda and not a.tiny:
        if report.left() > 60:
            large = steps_part(report, net, data, rates, 1024, [l for l in chosen if l.name not in ("float32", "+ fused Adam")],
                               reps, least, [chosen[-1].name])
            del large
        if not a.no_compile and report.left() > 120:
            report.part("hardening_compiled", lambda: hardening_part(report, net, data, labels, 256, rates, reps, least, True))
    report.add(finished=True)
    print(f"{time.time() - report.begun:.0f} s; {path or 'nothing written'}")

if __name__ == "__main__": main()
