"""A real browser without a screen, driven by W3C WebDriver's own requests to Debian's chromedriver."""

import base64
import shutil
import subprocess
import time

import httpx

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """A window, whose scripts run in the page.

    Args:
        folder: of its profile and downloads.
        size: of the window, in pixels.
    """

    def __init__(self, folder, size=(1400, 1000)):
        self.folder = folder
        self.process = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        line = next(line for line in self.process.stdout if "successfully on port" in line)
        self.base = f"http://127.0.0.1:{line.split('port ')[1].split('.')[0]}"
        flags = [*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder / 'profile'}"]
        prefs = {"download.default_directory": str(folder), "download.prompt_for_download": False}
        prefs["profile.default_content_setting_values.automatic_downloads"] = 1  # several, without a click
        options = {"binary": BROWSER, "args": flags, "prefs": prefs}
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.base += f"/session/{self.ask('session', capabilities={'alwaysMatch': asked})['sessionId']}"

    def ask(self, path, method="POST", **values):
        answer = httpx.request(method, f"{self.base}/{path}", json=values or {}, timeout=120).json()["value"]
        assert not isinstance(answer, dict) or "error" not in answer, answer
        return answer

    def open(self, url):
        self.ask("url", url=url)

    def run(self, script, *values):
        """Run the body of a function; a promise is waited for."""
        return self.ask("execute/sync", script=script, args=list(values))

    def wait(self, condition, seconds=60):
        """Wait until an expression holds in the page."""
        end = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}")):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)
        return found

    def attach(self, selector, *paths):
        """Choose files in a form's field."""
        (element,) = self.ask("element", using="css selector", value=selector).values()
        self.ask(f"element/{element}/value", text="\n".join(map(str, paths)))

    def drag(self, *points):
        """Press the mouse at the first of these pixels of the window, and move it over the others."""
        down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        moves = [{"type": "pointerMove", "duration": 10, "x": round(x), "y": round(y)} for x, y in points]
        mouse = {"type": "pointer", "id": "mouse", "actions": [moves[0], down, *moves[1:], up]}
        self.ask("actions", actions=[mouse])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(httpx.get(f"{self.base}/screenshot", timeout=60).json()["value"]))
        return path

    def resize(self, width, height):
        self.ask("window/rect", width=width, height=height)

    def errors(self):
        """Errors in the console since they were last asked for."""
        return [line["message"] for line in self.ask("se/log", type="browser") if line["level"] == "SEVERE"]

    def close(self):
        try:
            httpx.delete(self.base, timeout=30)
        finally:
            self.process.terminate()
            self.process.wait()
