"""How many times as fast as an earlier commit this one is: python benchmarks/against.py b08d409. Both run the same job in turns, each in
a process of its own on one thread, with its own weights and recipes of the same names; the clock is the processor's."""
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fastcore.script import call_parse

from learned_perturbations.runs import write_results

root = Path(__file__).resolve().parent.parent
jobs = {("certify", "mnist-linf-fc", "float32"): 1.35, ("certify", "mnist-linf-fc", "auto"): 1.35, ("certify", "mnist-rts", "float32"): 1.85, ("certify", "mnist-rts", "auto"): 1.85, ("train", "mnist-rts", "auto"): 1.9}  # and the factor aimed at
readme, mark = root/"benchmarks"/"README.md", "<!-- the table that against.py writes -->\n"
worker = '''
import sys, tempfile, time, torch
from torch import nn
torch.set_num_threads(1); torch.manual_seed(0)
import learned_perturbations, learned_perturbations.robust_training
from learned_perturbations.certification import certify
from learned_perturbations.cvae import LearnedSet
from learned_perturbations.training import get_recipe, train
load = next(m.load_classifier for m in (learned_perturbations, learned_perturbations.robust_training) if hasattr(m, "load_classifier"))  # moved since
job, name, precision = sys.argv[1:]
if job == "certify":  # draws of 8 images
    S, net = LearnedSet.from_pretrained(name), load("mnist-gaussian")
    side, wide = (42, net) if "rts" in name else (28, nn.Sequential(nn.ZeroPad2d(7), net))
    x = torch.rand(8, 1, side, side)
    def seconds():
        start = time.process_time(); certify(wide, S, x, 1., n=2000, precision=precision); return time.process_time() - start
else:  # ten steps of 64 pairs an epoch, with what a run needs before and after them taken away
    def epochs(n):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time(); train(get_recipe(name, data="digits", limit=640, epochs=n), folder); return time.process_time() - start
    def seconds(): return epochs(5) - epochs(1)
for _ in sys.stdin: print("took", seconds(), flush=True)
'''

def begin(folder, *job):
    "Starts a job with the package in `folder`."
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", worker, *job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder,
                            env=dict(PATH="", PYTHONPATH=str(folder), OMP_NUM_THREADS="1", HOME=str(Path.home())))

def seconds(process):
    "Has the job done once and returns its time."
    process.stdin.write("\n"); process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("took"):
        if not line: raise RuntimeError(f"the job ended: {' '.join(process.args[5:])}")
    return float(line.split()[1])

def table(rows):
    "Returns the factors as markdown: aimed at, and measured."
    said = (f"| {r['job']} | {r['aim']:g} | {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f}) |\n" for r in rows)
    return f"| job, precision | aim | measured: median (lowest to highest of {rows[0]['n']}) |\n|---|---|---|\n{''.join(said)}"

@call_parse
def main(
    commit:str, # the earlier one
    n:int=5,    # repetitions, after one that is not counted
    out:str="", # results file; if empty benchmarks/results/against-COMMIT.json
):
    "Measures the jobs and writes how many times as fast this version is: the median, lowest and highest, of the commit that the README beside this file is about also into its table."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
        for job, aim in jobs.items():
            old, new = begin(folder, *job), begin(root, *job)
            pairs = [(seconds(old), seconds(new)) for _ in range(n + 1)][1:]
            for p in (old, new): p.stdin.close(), p.wait()
            times = [a / b for a, b in pairs]
            rows.append(dict(job=" ".join(job), aim=aim, median=statistics.median(times), min=min(times), max=max(times), n=n, before=statistics.median(a for a, _ in pairs), now=statistics.median(b for _, b in pairs)))
            print(f"{rows[-1]['job']}: {rows[-1]['median']:.2f} ({rows[-1]['min']:.2f} to {rows[-1]['max']:.2f}) times as fast", flush=True)
    write_results(Path(out or root/"benchmarks"/"results"/f"against-{commit}.json"), commit=commit, clock="processor seconds, one thread", rows=rows)
    text = readme.read_text(encoding="utf-8")
    if out or commit not in text: return  # the table there is of one commit
    before, _, after = text.split(mark)
    readme.write_text(mark.join((before, table(rows), after)), encoding="utf-8")
