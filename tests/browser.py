"""The notebooks in JupyterLab and the site, as a reader sees them in Chromium: `browser.py SCREENSHOTS [SITE]`.

Every notebook must open clean and stay byte for byte. No page of the site may log an error or fetch from elsewhere, and
every link inside the site must lead somewhere. Needs Debian's chromium and `pip install ".[browser]"`.
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

if TYPE_CHECKING:
    from playwright.sync_api import Page

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/[0-9]*.ipynb"))
LONG = 1_200_000  # milliseconds
HOME = "127.0.0.1"
NOTEBOOK = "jupyterapp.shell.currentWidget"


@contextmanager
def jupyter(folder: Path):
    """Yield the address of a JupyterLab in a folder, with settings of its own."""
    with socket.socket() as free:
        free.bind((HOME, 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name}") for name in ("CONFIG", "RUNTIME")}
    own["JUPYTERLAB_SETTINGS_DIR"] = own["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / ".lab")
    options = [f"--port={port}", f"--ip={HOME}", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", f"--ServerApp.root_dir={folder}"]
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


def check_pages(page: Page, paths: list[Path], shots: Path) -> None:
    """Open pages from the disk and see that nothing is logged as an error or fetched from elsewhere."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda asked: found.append(asked.url) if asked.url.startswith("http") else None)
    for path in paths:
        page.goto(path.resolve().as_uri())
        page.wait_for_load_state("networkidle")
        assert not found, f"{path.name}: {found}"
    page.screenshot(path=shots / f"{paths[0].stem}.png")


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
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(LONG)
        with jupyter(folder) as address:
            for path in copies:
                check_clean(page, address, path)
                page.screenshot(path=shots / f"{path.stem}.png")
                close(page)
                print(f"{path.name} opens clean", flush=True)
        if site:
            pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
            check_links(pages)
            check_pages(browser.new_page(), pages, shots)
            print(f"{len(pages)} pages of the site log no error, their links lead somewhere", flush=True)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
