"""Compare charting libraries for the report pages: their size in a page, and how fast they draw on a canvas or as SVG.

    python -m benchmarks.instrument.chart_libraries [--points 100000]

Needs Node.js, npm and Chromium. Each library is bundled with what one line and one cloud of dots need, minified by
esbuild, and draws both in a window of 1,080 x 900. The time is from the call until the next frame after it, the median
of five.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PACKAGES = ("echarts@6.1.0", "uplot@1.6.32", "@observablehq/plot@0.6.17", "esbuild@0.28.2")
ENTRIES = {
    "echarts": """
        import { LineChart, ScatterChart } from "echarts/charts";
        import { DataZoomInsideComponent, GridComponent, TooltipComponent } from "echarts/components";
        import { init, use } from "echarts/core";
        import { CanvasRenderer } from "echarts/renderers";
        use([LineChart, ScatterChart, GridComponent, TooltipComponent, DataZoomInsideComponent, CanvasRenderer]);
        window.draw = (box, type, x, y) => {
          const data = x.map((value, k) => [value, y[k]]);
          const form = type === "line" ? { showSymbol: false, sampling: "minmax" } : { symbolSize: 4, large: true };
          const series = [{ type, data, ...form, progressive: 0 }];
          init(box).setOption({ animation: false, tooltip: {}, xAxis: {}, yAxis: {}, series });
        };""",
    "uplot": """
        import uPlot from "uplot";
        window.draw = (box, type, x, y) => {
          const form = type === "line" ? {} : { paths: () => null, points: { show: true, size: 4 } };
          const series = [{}, { stroke: "#0068a3", ...form }];
          new uPlot({ width: 1000, height: 400, scales: { x: { time: false } }, series }, [x, y], box);
        };""",
    "plot": """
        import { dot, line, plot } from "@observablehq/plot";
        window.draw = (box, type, x, y) => {
          const data = x.map((value, k) => ({ x: value, y: y[k] }));
          const mark = type === "line" ? line : dot;
          box.append(plot({ width: 1000, height: 400, marks: [mark(data, { x: "x", y: "y", r: 2 })] }));
        };""",
}
TIMED = """async ([type, points]) => {
    const box = document.body.appendChild(document.createElement("div"));
    Object.assign(box.style, { width: "1000px", height: "400px" });
    let state = 1;
    const random = () => (state = (state * 16807) % 2147483647) / 2147483647;
    const x = Array.from({ length: points }, (_, k) => k);
    const y = x.map((k) => Math.sin(k / 5000) + random());
    const begin = performance.now();
    draw(box, type, x, y);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const took = performance.now() - begin;
    box.remove();
    return took;
}"""


def bundle(folder: Path, name: str) -> Path:
    """Return the minified script of one library."""
    (folder / f"{name}.js").write_text(ENTRIES[name])
    made = folder / f"{name}.min.js"
    subprocess.run(
        ["npx", "esbuild", f"{name}.js", "--bundle", "--minify", "--format=iife", f"--outfile={made.name}",
         '--define:process.env.NODE_ENV="production"', "--log-level=error"],
        cwd=folder, check=True,
    )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    points = parser.parse_args().points
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = Path(made)
        (folder / "package.json").write_text(json.dumps({"private": True}))
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
            cwd=folder,
            check=True,
        )
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        print(f"{'library':<10}{'minified':>12}{'gzip':>12}{'line':>12}{'dots':>12}   of {points:,} points")
        for name in ENTRIES:
            script = bundle(folder, name).read_text(encoding="utf-8")
            sizes = [len(script.encode()), len(gzip.compress(script.encode()))]
            page = browser.new_page(viewport={"width": 1080, "height": 900})
            page.set_content("<body></body>")
            page.evaluate(f"() => {{ {script} }}")
            times = [
                statistics.median(page.evaluate(TIMED, [kind, points]) for _ in range(5))
                for kind in ("line", "scatter")
            ]
            print(
                f"{name:<10}"
                + "".join(f"{size / 1000:>9.0f} kB" for size in sizes)
                + "".join(f"{t:>9.0f} ms" for t in times)
            )
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
