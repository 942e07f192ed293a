"Run every notebook as a test, each in a fresh process, then check that the book and the library agree."
import ast, os, re, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
root = Path(__file__).resolve().parent.parent
package = root/"learned_perturbations"

def run_notebook(path):
    "Whether every cell of the notebook at `path` runs, and the seconds it took."
    from nbdev.test import test_nb
    os.chdir(path.parent)
    flags = ["notest", "slow", "cuda"]
    return test_nb(path, skip_flags=flags)

def import_order():
    "Raise if a module imports from a chapter after its own (the chapter order is the import order)."
    order = [re.sub(r"^\d+_", "", p.stem) for p in sorted((root/"nbs").glob("[0-9][0-9]_*.ipynb"))]
    for i, name in enumerate(order):
        for node in ast.walk(ast.parse((package/f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or "learned_perturbations" in (node.module or "")):
                source = (node.module or "").split(".")[-1]
                names = [source] if source in order else [a.name for a in node.names]
                late = [n for n in names if n in order[i:]]
                if late: raise AssertionError(f"{name}.py imports {late[0]}, which comes after it")

def in_sync():
    "Raise if exporting the notebooks changes a module."
    before = {p: p.read_text() for p in package.glob("*.py")}
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
                   cwd=root, check=True)
    stale = sorted(p.name for p in package.glob("*.py") if before.get(p) != p.read_text())
    for p, text in before.items(): p.write_text(text)
    if stale: raise AssertionError(f"not in sync with the notebooks: {', '.join(stale)}; run `make sync`")

def check(f):
    "Whether `f` runs without raising."
    try: f()
    except Exception as e:
        print(f"FAILED {f.__name__}: {e}")
        return False
    return True

def main():
    notebooks = sorted(p for p in (root/"nbs").rglob("*.ipynb") if not any(s.startswith((".", "_")) for s in p.relative_to(root).parts))
    if not notebooks: sys.exit("no notebook found in nbs/")
    results = [(f.__name__, check(f)) for f in (import_order, in_sync)]
    start = time.time()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(run_notebook, p): p for p in notebooks}
        for job in as_completed(jobs):
            name = str(jobs[job].relative_to(root))
            try: ok, seconds = job.result()
            except Exception as e: ok, seconds = print(f"{name}: {e}"), 0
            results.append((name, bool(ok)))
            print(f"{'ok    ' if ok else 'FAILED'} {name} {seconds:.0f} s", flush=True)
    failed = [name for name, ok in results if not ok]
    print(f"{time.time() - start:.0f} s in notebooks")
    for name in failed: print("failed:", name)
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))

if __name__ == "__main__": main()
