"""A headless Chromium driven over its own DevTools pipe, with nothing but the standard library; also takes pictures:

python tests/chromium.py "file:///…/report.html#view=clips" picture.png [WIDTH HEIGHT] [dark]
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers keep it small
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--mute-audio",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever the page asks of the network, it fails
)


class Chromium:
    """One browser with one tab. `problems` collects what went wrong in the page: errors, dialogs, refused loads."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
        (read, self.out), (self.inp, write) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; move ours out of the way of both.
        child = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (read, write)]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [PROGRAM, *FLAGS, *root, f"--user-data-dir={self.folder.name}", "about:blank"]
        moves = [(os.POSIX_SPAWN_DUP2, child[0], 3), (os.POSIX_SPAWN_DUP2, child[1], 4)]
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        self.pid = os.posix_spawn(PROGRAM, command, os.environ, file_actions=[*moves, *quiet], setsid=True)
        for fd in (read, write, *child):
            os.close(fd)
        self.count, self.buffer, self.session, self.problems, self.requests = 0, b"", None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send one command and wait for its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data) :]
        while (reply := self._receive()).get("id") != self.count:
            self._event(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def _receive(self, seconds=60):
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.inp], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            self.buffer += (data := os.read(self.inp, 1 << 20))
            if not data:
                raise RuntimeError("Chromium has ended")
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def _event(self, message):
        method, facts = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(facts["exceptionDetails"].get("exception", {}).get("description", str(facts)))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.problems.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(str(facts["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {facts['message']}")
            self.call("Page.handleJavaScriptDialog", accept=False)
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])

    def run(self, script):
        """The value of an expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description"))
        return answer["result"].get("value")

    def wait(self, script, seconds=20):
        """Wait until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {seconds} s: {script}")
            time.sleep(0.02)

    def open(self, url, width=1280, height=800, dark=False, ready="document.body?.dataset.ready !== undefined"):
        """Open an address in a window of this size and wait until `ready`."""
        phone = {"mobile": width < 600, "deviceScaleFactor": 2 if width < 600 else 1}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")  # so that another fragment of the same page loads it anew
        self.problems.clear()
        self.requests.clear()
        self.call("Page.navigate", url=url)
        self.wait(f"location.href !== 'about:blank' && document.readyState === 'complete' && ({ready})", 60)

    def press(self, key):
        """Press and release a key as a person would."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **(text if kind == "keyDown" else {}))

    def write(self, text):
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path):
        """Save what the window shows as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        """End the browser."""
        try:
            self.session = None
            self.call("Browser.close")
        except (OSError, RuntimeError, TimeoutError):
            pass
        finally:
            os.close(self.out)
            end = time.monotonic() + 10
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > end:
                    os.killpg(self.pid, signal.SIGKILL)
                time.sleep(0.05)
            os.close(self.inp)
            self.folder.cleanup()


if __name__ == "__main__":
    from PIL import Image

    url, picture, *rest = sys.argv[1:]
    size = [int(word) for word in rest if word.isdigit()] or [1280, 800]
    browser = Chromium()
    browser.open(url, *size, dark="dark" in rest)
    time.sleep(1)  # the clip's first picture
    browser.picture(picture)
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)  # a third of the size
    print(f"{picture}: {Path(picture).stat().st_size} bytes; problems: {browser.problems}")
    browser.close()
