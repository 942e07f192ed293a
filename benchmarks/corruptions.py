"""How many images a second each corruption makes, and the literal version of its definition beside it.
`python benchmarks/corruptions.py --help`. Needs the extra `corruptions`; the literal versions are those
that chapter 14 tests against, read from its notebook, and need scikit-image."""
import statistics
import time
from pathlib import Path

import torch
from fastcore.script import call_parse

from learned_perturbations import corruptions
from learned_perturbations.corruptions import cifar10_sample, corrupt
from learned_perturbations.runs import read_json, write_results

here = Path(__file__).parent


def literal_version():
    "Returns the chapter's function of images, name, severity and seed that makes them one at a time."
    cells = ["".join(c["source"]) for c in read_json(here.parent / "nbs/14_corruptions.ipynb")["cells"]]
    first = cells.index(next(c for c in cells if "import skimage.filters" in c))
    space = dict(vars(corruptions), frost_textures=corruptions.frost_textures)
    exec(cells[first], space)
    exec(next(c for c in cells if "def literally(" in c), space)
    return space["literally"]


def rate(f, images, repetitions, clock):
    "Returns images a second: of the median repetition, after one that does not count."
    f()
    times = []
    for _ in range(repetitions):
        start = clock()
        f()
        times.append(clock() - start)
    return images / statistics.median(times)


@call_parse
def main(
    threads: int = 2,        # of PyTorch
    images: int = 2000,      # in a batch of ours
    alone: int = 20,         # images the literal version makes
    repetitions: int = 3,    # of each, the median counts
    cpu: bool = False,       # count processor time, and divide by the threads: for a machine that others use
    out: str = "benchmarks/results/corruptions-cpu.json", # where the numbers go
):
    "Measures all nineteen at all severities; the slowest severity counts."
    torch.set_num_threads(threads)
    x, _ = cifar10_sample()
    x = x.repeat(-(-images // len(x)), 1, 1, 1)[:images]
    literally, rows = literal_version(), {}
    clock = (lambda: time.process_time() / threads) if cpu else time.perf_counter
    for name in corruptions.names:
        ours = [rate(lambda: corrupt(x, name, s), images, repetitions, clock) for s in range(1, 6)]
        row = dict(ours=min(ours), severities=ours)
        if name != "shot_noise":  # drawn in another way: no literal twin
            alone_clock = time.process_time if cpu else time.perf_counter
            row["literal"] = rate(lambda: literally(x[:alone], name, 1 + ours.index(min(ours))), alone, 1, alone_clock)
        rows[name] = row
        print(f"{name:20s} {row['ours']:10,.0f} images/s   literal {row.get('literal', float('nan')):8,.0f}", flush=True)
    write_results(out, images_per_second=rows, threads=threads, images=images, size=list(x.shape[2:]),
                  clock="processor time / threads" if cpu else "wall")
