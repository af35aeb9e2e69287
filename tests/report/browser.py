"""A headless Chromium that opens a page and tells what it drew and what it asked the network for."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest

NOBODY = "not an origin"

# Before the page's own policy, which lets no script run.
PROBE = """<script>
window.violations = [];
document.addEventListener("securitypolicyviolation", event => violations.push(event.blockedURI));
addEventListener("load", () => {
  const box = element => { const {width, height} = element.getBoundingClientRect(); return {width, height}; };
  const plots = [...document.querySelectorAll("svg[role=img]")].map(svg => ({
    title: svg.querySelector("title").textContent,
    ...box(svg),
    marks: [...svg.querySelectorAll(".mark")].map(mark => ({color: getComputedStyle(mark).fill, ...box(mark)})),
  }));
  document.documentElement.dataset.found = JSON.stringify({
    plots,
    violations,
    page: document.documentElement.scrollWidth,
    window: innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
  });
});
</script>"""


@dataclass(frozen=True)
class Opened:
    """What a page looked like, and the addresses that were asked for beside the page itself."""

    plots: list
    violations: list
    page: int
    window: int
    background: str
    requests: list


def chromium():
    """The browser; a run that is to prove something does not go without."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.environ.get("CI"):
        pytest.fail("chromium is not installed: .ci/run installs it")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


def opened(source, folder, *, width=1280, flags=()):
    """Open a page of that source."""
    page, log = folder / "page.html", folder / "network.json"
    page.write_text(source.replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += ["--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1500", f"--log-net-log={log}", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr
    return Opened(**json.loads(html.unescape(found[1])), requests=asked(log, page.as_uri()))


def asked(log, own):
    """Addresses in Chromium's network log that a page asked for; the browser's own errands have no page behind them."""
    details = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked_for = {entry["url"] for entry in details if "url" in entry and entry.get("initiator") not in (None, NOBODY)}
    return sorted(asked_for - {own})
