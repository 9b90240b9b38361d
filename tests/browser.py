"""The notebooks, the page of results and the site, as a reader sees them in Chromium: `browser.py SCREENSHOTS [SITE]`.

Every notebook must open clean and stay byte for byte. Copies of 00 and 01 must run at smoke from the menu without an
error, and the sliders of `antinb.explore` must change the picture. Neither the page of their results nor one of the
site may log an error or fetch from elsewhere; the former must print on white paper, whole; and every link inside the
site must lead somewhere. Needs Debian's chromium and `pip install ".[browser]"`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

from antinb.reporting import page as results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/[0-9]*.ipynb"))
LONG = 1_200_000  # milliseconds
HOME = "127.0.0.1"
NOTEBOOK = "jupyterapp.shell.currentWidget"
CELLS = f"{NOTEBOOK}.content.widgets.filter(cell => cell.model.type === 'code')"
FLAGS = ["--disable-gpu", "--disable-sync", *["--no-sandbox"] * (os.geteuid() == 0)]


@contextmanager
def jupyter(folder: Path):
    """Yield the address of a JupyterLab in a folder, with settings of its own: no news and no updates."""
    settings = folder / ".lab/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind((HOME, 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name}") for name in ("CONFIG", "RUNTIME")}
    own["JUPYTERLAB_SETTINGS_DIR"] = own["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / ".lab")
    options = [f"--port={port}", f"--ip={HOME}", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}"]
    with (folder / ".log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=os.environ | own, cwd=folder, stdout=log, stderr=log
        )
    try:
        while True:
            assert server.poll() is None, (folder / ".log").read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"http://{HOME}:{port}/api/status").close()
                break
            time.sleep(0.5)
        yield f"http://{HOME}:{port}"
    finally:
        server.terminate()
        server.wait(60)


def opened(page: Page, address: str, name: str) -> None:
    """Open a notebook and wait until its kernel is idle."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_function(f"window.jupyterapp && {NOTEBOOK}?.context?.isReady", timeout=LONG)
    page.wait_for_function(f"{NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'", timeout=LONG)
    page.wait_for_timeout(1500)  # what JupyterLab changes, it changes soon


def close(page: Page) -> None:
    """End the kernel of the notebook that is open."""
    page.evaluate(f"{NOTEBOOK}.sessionContext.shutdown()")


def check_clean(page: Page, address: str, path: Path) -> None:
    """Open a notebook and see that neither JupyterLab nor the file says that it was changed."""
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    opened(page, address, path.name)
    assert not page.evaluate(f"{NOTEBOOK}.context.model.dirty"), f"{path.name} is dirty when opened"
    assert page.locator(".jp-mod-dirty").count() == 0, f"{path.name} has a dirty mark"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before, f"{path.name} was changed by opening it"


def smoke(path: Path, folder: Path) -> Path:
    """Copy a notebook without its outputs, with the smoke profile in its cell of parameters."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace('profile: str = "full"', 'profile: str = "smoke"')
            cell.outputs, cell.execution_count = [], None
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def check_run(page: Page, address: str, path: Path, shots: Path) -> None:
    """Run all cells of a notebook from the menu and see that none has an error."""
    opened(page, address, f"{path.parent.name}/{path.name}")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    failed = f"{CELLS}.some(cell => cell.model.outputs.toJSON().some(output => output.output_type === 'error'))"
    page.wait_for_function(f"{failed} || {CELLS}.every(cell => cell.model.executionCount)")
    page.screenshot(path=shots / f"{path.stem}_run.png")
    page.evaluate(f"{NOTEBOOK}.context.save()")
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    wrong = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert outputs, f"{path.name} has no outputs"
    assert not wrong, f"{path.name} ran with {wrong}"


def check_sliders(page: Page, shots: Path) -> None:
    """Move each slider of the last cell once and see that the picture changes."""
    page.evaluate(f"{NOTEBOOK}.content.scrollToItem({NOTEBOOK}.content.widgets.length - 1)")
    picture = page.locator("img.widget-image")
    sliders = page.locator(".jupyter-widgets .noUi-handle")
    assert sliders.count() == 3, f"{sliders.count()} sliders"
    for number in range(3):
        before = picture.get_attribute("src")
        sliders.nth(number).press("ArrowRight")
        page.wait_for_function("old => document.querySelector('img.widget-image').src !== old", arg=before)
        page.screenshot(path=shots / f"explore_{number}.png")


def check_pages(browser: Browser, paths: list[Path], shots: Path) -> None:
    """Open pages from the disk, light and dark, and see that none logs an error or fetches from elsewhere."""
    found: list[str] = []
    grounds = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(LONG)
        page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("request", lambda asked: found.append(asked.url) if asked.url.startswith("http") else None)
        for path in paths:
            page.goto(path.resolve().as_uri())
            page.wait_for_timeout(300)  # for scripts that start after the page is loaded
            page.screenshot(path=shots / f"{path.stem}_{scheme}.png")
            assert not found, f"{path.name}: {found}"
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert len(grounds) == 2, f"light and dark are both {grounds}"


def check_printed(browser: Browser, path: Path, shots: Path) -> None:
    """Print a page that is dark on the screen: the paper is white and nothing stands beyond its edge."""
    width = round(180 / 25.4 * 96)  # CSS pixels, A4 less the margins of 15 mm
    page = browser.new_page(color_scheme="dark", viewport={"width": width, "height": 1000})
    page.set_default_timeout(LONG)
    page.emulate_media(media="print")
    page.goto(path.resolve().as_uri())
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)", f"the paper is {ground}"
    right = "part.getBoundingClientRect().right"
    beyond = f"[...document.querySelectorAll('body *')].filter(part => {right} > innerWidth + 1)"
    found = page.evaluate(f"{beyond}.map(part => part.textContent)")
    assert not found, f"beyond the edge of the paper: {found}"
    page.pdf(path=shots / f"{path.stem}.pdf", prefer_css_page_size=True, print_background=True)
    page.close()


def check_links(paths: list[Path]) -> None:
    """See that every address inside a site leads to a file and a place in it."""
    text = {path.resolve(): path.read_text(encoding="utf-8") for path in paths}
    places = {path: set(re.findall(r'\bid="([^"]+)"', page)) for path, page in text.items()}
    for path, page in text.items():
        for address, _, place in (link.partition("#") for link in re.findall(r'(?:href|src)="([^"]+)"', page)):
            if re.match(r"[a-z]+:|//", address):
                continue
            target = (path.parent / urllib.request.unquote(address.partition("?")[0])).resolve() if address else path
            assert target.exists(), f"{path.name} links to {address}"
            known = places.get(target)
            assert not place or known is None or urllib.request.unquote(place) in known, (
                f"{path.name}: {address}#{place}"
            )


def main(shots: Path, site: Path | None = None) -> None:
    """Run all checks; an AssertionError names the first that fails."""
    from playwright.sync_api import sync_playwright

    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch).resolve()
        copies = [Path(shutil.copy(path, folder)) for path in NOTEBOOKS]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(LONG)
        with jupyter(folder) as address:
            for path in copies:
                check_clean(page, address, path)
                page.screenshot(path=shots / f"{path.stem}.png")
                close(page)
                print(f"{path.name} opens clean", flush=True)
            for path in NOTEBOOKS[:2]:
                check_run(page, address, smoke(path, folder / "smoke"), shots)
                if path.stem == "00_quickstart":
                    check_sliders(page, shots)
                close(page)
                print(f"{path.name} runs from the menu", flush=True)
        written = results.write(folder / "smoke/out")
        check_pages(browser, [written], shots)
        check_printed(browser, written, shots)
        print("the page of its results logs no error, in light and dark, and prints whole", flush=True)
        if site:
            pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
            check_links(pages)
            check_pages(browser, pages, shots)
            print(f"{len(pages)} pages of the site log no error, their links lead somewhere", flush=True)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
