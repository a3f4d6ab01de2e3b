#!/usr/bin/env python3
"""How long the frames of a map take in a browser while it is dragged, enlarged, searched, and all of it chosen.

    python3 benches/peers/map_frames.py map.html [WIDTH HEIGHT]         # needs Chromium, which draws without a GPU here

Frames are counted by requestAnimationFrame, so none is shorter than that of the screen, 16.7 ms. The map's own time
for a frame, without what the browser does with it, is said beside.
"""
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

DRIVE = """(async () => {
  const map = document.getElementById("map"), box = map.getBoundingClientRect();
  const request = window.requestAnimationFrame.bind(window), own = [];
  window.requestAnimationFrame = draw => request(now => {
    const before = performance.now();
    draw(now);
    own.push(performance.now() - before);
  });
  const frame = () => new Promise(request);
  const point = (type, x, y, more) => map.dispatchEvent(new PointerEvent(type,
    { pointerId: 1, clientX: box.left + x, clientY: box.top + y, bubbles: true, ...more }));
  const lines = [];
  async function time(name, frames, step) {
    const times = [];
    await frame();
    let before = await frame();
    own.length = 0;
    for (let at = 0; at < frames; at++) {
      step(at);
      const now = await frame();
      times.push(now - before);
      before = now;
    }
    const sorted = list => [...list].sort((a, b) => a - b);
    const at = (list, share) => (sorted(list)[Math.min(list.length - 1, Math.floor(share * list.length))] ?? 0).toFixed(1);
    lines.push(`${name}: frames of ${at(times, 0.5)} ms, 95 of 100 at most ${at(times, 0.95)} ms; drawn in ${at(own, 0.5)} ms`);
  }
  const [x, y] = [box.width / 2, box.height / 2];
  const move = at => point("pointermove", x + 80 * Math.sin(at / 9), y + 80 * Math.cos(at / 9));
  const drag = async name => {
    point("pointerdown", x, y + 80);
    await time(name, 120, move);
    point("pointerup", x, y + 80);
  };
  await time("pointing", 120, move);
  await drag("dragging");
  await time("enlarging", 60, at => map.dispatchEvent(new WheelEvent("wheel",
    { deltaY: at < 30 ? -60 : 60, clientX: box.left + x, clientY: box.top + y, bubbles: true, cancelable: true })));
  const search = document.getElementById("search"), said = () => document.getElementById("said").textContent;
  const look = text => { search.value = text; search.dispatchEvent(new Event("input")); };
  await time("searching", 8, at => look("png".slice(at % 3) || "a"));
  await drag(`dragging, ${said()}`);
  look("");
  point("pointerdown", 1, 1, { shiftKey: true });
  point("pointermove", box.width - 1, box.height - 1, { shiftKey: true });
  point("pointerup", box.width - 1, box.height - 1, { shiftKey: true });
  await drag(`dragging, ${said()}`);
  return lines.join("\\n");
})()"""


class Browser:
    """Chromium, told what to do over a pipe."""

    def __init__(self, folder, width, height):
        (reads, self.to), (self.of, writes) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 16) for end in [reads, writes]]
        self.process = subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}",
             f"--user-data-dir={folder}/profile", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, at) for end, at in zip(ends, [3, 4])], pass_fds=[3, 4],
            stderr=subprocess.DEVNULL)
        self.number, self.heard = 0, b""

    def ask(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.heard:
                part = os.read(self.of, 1 << 20)
                assert part, "the browser ended"
                self.heard += part
            answer, self.heard = self.heard.split(b"\0", 1)
            answer = json.loads(answer)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page):
        target = self.ask("Target.createTarget", url=f"file://{page.resolve()}")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        while not self.run(session, "location.protocol === 'file:' && document.readyState === 'complete'"):
            time.sleep(0.1)
        return session

    def run(self, session, script):
        result = self.ask("Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


page, *size = sys.argv[1:]
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    browser = Browser(folder, *(size or (1600, 1000)))
    session = browser.open(pathlib.Path(page))
    print(browser.run(session, DRIVE))
    browser.ask("Browser.close")
    browser.process.wait()
