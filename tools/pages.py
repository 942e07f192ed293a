"Check the pages as far as that goes without Quarto: links, figures, outputs, signatures. Run by tools/test.py; alone: python tools/pages.py"
import ast, configparser, io, json, re, sys, tokenize
from functools import cache
from pathlib import Path

import yaml
from readme import page_name

root = Path(__file__).resolve().parent.parent
settings = configparser.ConfigParser()
settings.read(root/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
site, repository = settings["doc_host"] + settings["doc_baseurl"], settings["git_url"]

@cache
def notebooks():
    "The notebooks of the book and their cells."
    hidden = lambda p: any(s.startswith((".", "_")) for s in p.relative_to(root).parts)
    return {p: json.loads(p.read_text(encoding="utf-8"))["cells"] for p in sorted((root/"nbs").rglob("*.ipynb")) if not hidden(p)}

def source(cell): return "".join(cell["source"])

def options(cell):
    "The options of a code cell, its first lines `#| name: value`, as Quarto reads them."
    lines = [l for l in source(cell).splitlines() if l.startswith("#|") and ": " in l]
    return {k: yaml.safe_load(v) for k, v in (l[2:].strip().split(": ", 1) for l in lines)}

def mixed(cell):
    "Whether nbdev would run a cell for the site only because something is imported in it."
    if source(cell).startswith("#| export") or options(cell).get("eval") is False: return False
    nodes = list(ast.walk(ast.parse(re.sub(r"^%.*$", "", source(cell), flags=re.M))))
    has = lambda *kinds: any(isinstance(n, kinds) for n in nodes)
    return has(ast.Import, ast.ImportFrom) and has(ast.Expr, ast.Assign)

def prose(text):
    "Markdown without code and formulas."
    for pattern in (r"^(```|~~~).*?^\1", r"^(?: {4}|\t).*$", r"``.*?``", r"`[^`\n]*`", r"\$\$.*?\$\$", r"\$[^$\n]+\$"):
        text = re.sub(pattern, "", text, flags=re.S | re.M if pattern[0] == "^" and "```" in pattern else re.S if "$$" in pattern else re.M)
    return text

def anchor(heading):
    "The anchor that pandoc makes of a heading."
    if own := re.search(r"\{#([\w-]+)[^}]*\}\s*$", heading): return own[1]
    text = re.sub(r"[^\w\-. ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower().replace(" ", "-")
    return re.sub(r"^[^a-z]+", "", text) or "section"

@cache
def anchors(path):
    "What may stand behind the # of a link to a page: its headings, and the names that it exports."
    if path.suffix != ".ipynb": texts, names = [path.read_text(encoding="utf-8")], set()
    else:
        texts = [source(c) for c in notebooks()[path] if c["cell_type"] == "markdown"]
        names = {m.lower() for c in notebooks()[path] if source(c).startswith("#| export") for m in re.findall(r"^(?:def|class) (\w+)", source(c), re.M)}
    return names | {anchor(h) for t in texts for h in re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", t, flags=re.S | re.M), re.M)}

def broken(target, page):
    "What is wrong with a link on a page, or None."
    target, _, place = target.partition("#")
    if target.startswith(site):
        pages = {f"{page_name(p.stem)}.html" for p in notebooks()}
        name = target.removeprefix(site).strip("/").split("/")[-1]
        return None if not name or name in pages else "no such page of the site"
    if re.match(rf"{re.escape(repository)}/(blob|tree)/main/", target):
        return None if (root/target.split("/main/", 1)[1]).exists() else "no such file in the repository"
    if re.match(r"[a-z]+:", target): return None
    file = (page.parent/target).resolve() if target else page
    if not file.exists(): return "no such file"
    if page.suffix == ".ipynb" and file.suffix == ".html": return "link to the notebook, not to its page"
    if place and file.suffix in (".ipynb", ".md") and place.lower() not in anchors(file): return f"no heading #{place}"

def link_problems():
    "Links between the pages, and images without alt text, in markdown and in outputs."
    shown = lambda c: "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in c.get("outputs", []))
    texts = [(p, source(c) if c["cell_type"] == "markdown" else shown(c)) for p, cells in notebooks().items() for c in cells]
    texts += [(p, p.read_text(encoding="utf-8")) for p in (*root.glob("*.md"), *root.glob(".github/**/*.md"), *root.glob("benchmarks/*.md"))]
    for page, text in texts:
        text = prose(text)
        for image, alt, target in re.findall(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+(?:\([^()\s]*\))?)[^)]*\)", text):
            if wrong := broken(target, page): yield page, f"link to {target}: {wrong}"
            if image and not alt.strip(): yield page, f"image {target} has no alt text"
        for tag in re.findall(r"<img[^>]*>", text):
            if not re.search(r'\balt=(["\x27])[^"\x27]+\1', tag): yield page, f"{tag[:60]} has no alt text"

def output_problems():
    "Figures without caption and alt text; errors and warnings; what a static page cannot show, or asks other hosts for."
    for page, cells in notebooks().items():
        for cell in cells:
            if cell["cell_type"] != "code": continue
            try: said = options(cell)
            except yaml.YAMLError as e: yield page, f"cell {cell['id']}: {e}"; continue
            where = f"cell {cell['id']}"
            if mixed(cell): yield page, f"{where} mixes imports and other code: building the site would run it"
            for out in cell["outputs"]:
                data = out.get("data", {})
                if out["output_type"] == "error" or out.get("name") == "stderr": yield page, f"{where} shows an error or a warning"
                if any(k.startswith("image/") for k in data):
                    for k in ("fig-cap", "fig-alt"):
                        if len(str(said.get(k) or "")) < 20: yield page, f"{where} shows a figure without {k}"
                    if said.get("fig-alt") and said["fig-alt"] == said.get("fig-cap"): yield page, f"{where}: the alt text only repeats the caption"
                if "application/vnd.jupyter.widget-view+json" in data: yield page, f"{where} shows a widget, which is blank on a page"
                text = "".join(data.get("text/html", ""))
                for tag in re.findall(r"<img[^>]*>", text):
                    if not re.search(r'\balt=(["\x27])[^"\x27]+\1', tag): yield page, f"{where}: an image in its output has no alt text"
                if re.search(r'(?:src|href)="(?:https?:)?//', re.sub(r"<a [^>]*>", "", text)): yield page, f"{where}: its output asks another host for something"

def signature_problems():
    "Comments of parameters in which a page would show backticks or turn an address into a link."
    for page, cells in notebooks().items():
        for cell in cells:
            if not source(cell).startswith("#| export"): continue
            lines = source(cell).splitlines(keepends=True)
            spans = [(n.lineno, n.body[0].lineno) for n in ast.walk(ast.parse(source(cell))) if isinstance(n, ast.FunctionDef)]
            for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
                if token.type not in (tokenize.COMMENT, tokenize.STRING) or not any(a <= token.start[0] < b for a, b in spans): continue
                if token.type == tokenize.COMMENT and "`" in token.string or re.search(r"https?://|www\.", token.string):
                    yield page, f"in a signature: {token.string}"

def chapter_problems():
    "Parts that every chapter has."
    for page, cells in notebooks().items():
        if not re.match(r"\d\d\w?_", page.name): continue
        text = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
        for part in ("Break it", "Limits", "Exercises"):
            if not re.search(rf"^## {part}$", text, re.M): yield page, f"has no part '{part}'"
        if "<details><summary>Solutions</summary>" not in text: yield page, "has no solutions"
        if "After this chapter you can" not in text: yield page, "does not say what a reader will be able to do"
        for needed in (f"colab.research.google.com/github{repository.removeprefix('https://github.com')}/blob/main/nbs/{page.name}", f"git+{repository}"):
            if not any(needed in source(c) for c in cells[:3]): yield page, f"does not offer {needed}"
        here = "\n".join(source(c) for c in cells if c["cell_type"] == "code")
        larger = [p.name for p in (root/"pretrained").iterdir()]
        if re.search(r'read_json\("\.\./|insert\(0, "\.\./|' + "|".join(f'"{n}"' for n in larger), here) and '"git", "clone"' not in here: yield page, "reads files of the repository, which its first cell does not fetch"

def exercise_problems():
    "Exercises that no cell checks, and cells that check them and would run without a reader's answers."
    for page, cells in notebooks().items():
        text = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
        asked = re.findall(r"^(\d+)\. ", text.partition("## Exercises\n")[2].partition("<details>")[0], re.M)
        unsolved = [c for c in cells if c["cell_type"] == "code" and "Put your answers" in source(c)]
        if "## Exercises" in text and not asked: yield page, "has no numbered exercise"
        for n in asked:
            if not any(re.search(rf"# exercise {n}\b", source(c)) for c in unsolved): yield page, f"has no cell that checks exercise {n}"
        if any(options(c).get("eval") is not False or "skip-execution" not in c["metadata"].get("tags", ()) for c in unsolved): yield page, "checks solutions in a cell without `#| eval: false` and the tag skip-execution"

def pages():
    "Raise if a link is broken, a figure has no caption or alt text, an output shows a warning, a comment would be shown as a link, or an exercise has no check."
    found = [f"{page.relative_to(root)}: {what}" for problems in (link_problems, output_problems, signature_problems, chapter_problems, exercise_problems)
             for page, what in problems()]
    if found: raise AssertionError("\n  ".join([f"{len(found)} problems", *found]))

if __name__ == "__main__":
    try: pages()
    except AssertionError as e: sys.exit(str(e))
