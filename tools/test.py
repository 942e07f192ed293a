"Run every notebook as a test, each in a fresh process, then check that the book and the library agree. With --exercises the solutions too."
import ast, json, os, platform, re, subprocess, sys, textwrap, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from pages import pages

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
root = Path(__file__).resolve().parent.parent
package = root/"learned_perturbations"
wheel_limit = 20.5  # MB of files that the wheel holds, which packs them into less than 20

def notebooks():
    "The notebooks of the book."
    hidden = lambda p: any(s.startswith((".", "_")) for s in p.relative_to(root).parts)
    return sorted(p for p in (root/"nbs").rglob("*.ipynb") if not hidden(p))

def cells(path):
    "Yields source and exported or not of every code cell of a notebook."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code": yield source, source.startswith("#| export")

def solved(notebook):
    "A notebook with the solutions of its exercises in the place of the dots, so that the cell that checks answers runs too."
    cells = notebook.nb.cells
    answers = "\n".join(textwrap.dedent(block) for c in cells if c.cell_type == "markdown" and "<summary>Solution" in c.source
                        for block in re.findall(r"^ *```python\n(.*?)^ *```", c.source, re.S | re.M))
    for c in cells:
        if c.cell_type != "code" or "Put your answers in the place of the dots" not in c.source: continue
        lines = c.source.splitlines()
        last = max(i for i, l in enumerate(lines) if re.search(r"[=:] \.\.\.|\.\.\.$", l.split("#")[0].rstrip()))
        c.source = "\n".join([*lines[:last + 1], answers, *lines[last + 1:]])
        c.directives_.pop("eval:")
    return notebook

def run_notebook(path, exercises=False):
    "Whether every cell of the notebook at `path` runs, with `exercises` the cell that checks answers too, and the seconds it took."
    from nbdev import test
    os.chdir(path.parent)
    read = test.NBProcessor
    with patch.object(test, "NBProcessor", lambda *args, **kwargs: solved(read(*args, **kwargs)) if exercises else read(*args, **kwargs)):
        return test.test_nb(path, skip_flags=["notest", "slow", "cuda"])

def module_order():
    "The modules in the order in which they may import each other: foundations, chapters, tools."
    import yaml
    sidebar = yaml.safe_load((root/"nbs"/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    parts = {s["section"]: s["contents"] for s in sidebar if isinstance(s, dict)}
    first, last = parts.pop("Foundations"), parts.pop("Tools")
    listed = [*first, *(c for part in parts.values() for c in part), *last]
    default = {p.relative_to(root/"nbs").as_posix(): source.split()[-1] for p in notebooks()
               for source, _ in cells(p) if source.startswith("#| default_exp")}
    if missing := sorted(set(default) - set(listed)): raise AssertionError(f"not in sidebar.yml: {', '.join(missing)}")
    return [default[name] for name in listed if name in default]

def import_order():
    "Raise if a module imports from one that comes after it."
    order = module_order()
    for i, name in enumerate(order):
        for node in ast.walk(ast.parse((package/f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or "learned_perturbations" in (node.module or "")):
                source = (node.module or "").split(".")[-1]
                names = [source] if source in order else [a.name for a in node.names]
                late = [n for n in names if n in order[i:]]
                if late: raise AssertionError(f"{name}.py imports {late[0]}, which comes after it")

def short_lines():
    "Raise if an exported line is longer than 95 characters."
    long = [f"{p.name}: {line[:60]}…" for p in notebooks() for source, exported in cells(p) if exported
            for line in source.splitlines() if len(line) > 95]
    if long: raise AssertionError(f"{len(long)} lines of more than 95 characters, the first in {long[0]}")

def in_sync():
    "Raise if exporting the notebooks changes a module."
    before = {p: p.read_text(encoding="utf-8") for p in package.glob("*.py")}
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
                   cwd=root, check=True)
    stale = sorted(p.name for p in package.glob("*.py") if before.get(p) != p.read_text(encoding="utf-8"))
    for p, text in before.items(): p.write_text(text, encoding="utf-8")
    if stale: raise AssertionError(f"not in sync with the notebooks: {', '.join(stale)}; run `make sync`")

def small_wheel():
    "Raise if the files of the package are too large for a wheel."
    size = sum(p.stat().st_size for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts) / 1e6
    if size > wheel_limit: raise AssertionError(f"the package holds {size:.1f} MB of files, at most {wheel_limit} are wanted")

def check(f):
    "Whether `f` runs without raising."
    try: f()
    except Exception as e:
        print(f"FAILED {f.__name__}: {e}")
        return False
    return True

def machine():
    "A line that says what the tests ran on."
    import torch
    info = Path("/proc/cpuinfo")
    names = [l.split(":")[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")] if info.exists() else []
    tests = dict(amx="_is_amx_tile_supported", avx512_bf16="_is_avx512_bf16_supported")
    has = [k for k, f in tests.items() if getattr(torch.cpu, f, lambda: False)()]
    limits = [f"{k}={os.environ[k]}" for k in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA") if k in os.environ]
    return (f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {', '.join(has) or 'no bf16'}, "
            f"{os.environ['OMP_NUM_THREADS']} thread(s) a notebook{''.join(', ' + l for l in limits)}; "
            f"Python {platform.python_version()}, torch {torch.__version__}")

def main():
    exercises, wanted = "--exercises" in sys.argv, [a for a in sys.argv[1:] if a != "--exercises"]
    todo = [p for p in notebooks() if not wanted or any(a in str(p) for a in wanted)]
    if not todo: sys.exit("no notebook found in nbs/")
    print(machine(), flush=True)
    results = [(f.__name__, check(f)) for f in (import_order, short_lines, in_sync, small_wheel, pages)]
    start = time.time()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(run_notebook, p, exercises): p for p in todo}
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
