"Write README.md and nbs/images/ from nbs/index.ipynb: no other program is needed. Run it after the notebook's last run."
import base64, configparser, json, re
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def page_name(notebook):
    "Returns the name of a notebook's page, as nbdev makes it: 07b_gpu -> gpu."
    return re.sub(r"^[0-9]+[a-zA-Z0-9]*_", "", notebook)

def site_urls(text, site):
    "Returns `text` with links to notebooks turned into addresses of the site: 02_pairs.ipynb -> SITE/pairs.html."
    page = lambda m: f"]({site}/{m[1]}{page_name(m[2])}.html)"
    return re.sub(r"\]\(((?:\w+/)*)(\w+)\.ipynb\)", page, text)

def directive(source, name):
    "Returns the value of a cell's `#| name: value` line, or None if it has none."
    found = re.search(rf"^#\| *{name}(?:: *(.*))?$", source, re.MULTILINE)
    return found and (found[1] or "")

def outputs(cell, name, alt, images, site):
    "Yields the markdown of a cell's outputs: what it printed, its text, and its figure, which goes to `images` as name.png."
    printed = "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")
    if printed: yield "".join(f"    {line}\n" for line in printed.splitlines())
    for out in cell["outputs"]:
        if text := out.get("data", {}).get("text/markdown"): yield site_urls("".join(text), site) + "\n"
        if figure := out.get("data", {}).get("image/png"):
            (images / f"{name}.png").write_bytes(base64.b64decode("".join(figure)))
            yield f"![{alt}]({images.relative_to(root).as_posix()}/{name}.png)\n"

def readme(notebook, images, site):
    "Returns the notebook as markdown: prose, code, printed lines and figures, without hidden cells and hidden code."
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(site_urls(source, site) + "\n")
        elif directive(source, "hide") is None:
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            if directive(source, "echo") != "false": parts.append(f"```python\n{code}\n```\n")
            parts += outputs(cell, (directive(source, "label") or "").removeprefix("fig-"), (directive(source, "fig-alt") or "").strip('"'), images, site)
    return "\n".join(parts)

def main():
    settings = configparser.ConfigParser()
    settings.read(root / "settings.ini", encoding="utf-8")
    images, site = root / "nbs" / "images", settings["DEFAULT"]["doc_host"] + settings["DEFAULT"]["doc_baseurl"]
    images.mkdir(exist_ok=True)
    (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb", images, site), encoding="utf-8")

if __name__ == "__main__": main()
